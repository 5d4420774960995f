"""`python -m examples.cifar10` from its options to its files."""

import json
import shutil

import numpy as np
import pytest
import torch

import sigscale as ss
from examples import common
from examples.cifar10 import __main__ as command_line
from examples.cifar10 import data, figures, train
from examples.cifar10.data import GENERATED, Cifar10
from examples.cifar10.pipelines import ALSO, FIGURES
from examples.cifar10.store import Folder
from examples.cifar10.train import NUMBERS, Settings
from tests.oracles.cifar10 import same_history, split

EXPERIMENT = {"epochs": 2}


@pytest.fixture
def loaded(monkeypatch):
    """70 + 30 images in place of whatever would be loaded; change `cifar` to change the data."""
    loaded = {"cifar": Cifar10(split(70), split(30), "a test", "0")}
    monkeypatch.setattr(data, "load", lambda directory, allow_generated: loaded["cifar"])
    return loaded


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures, which take seconds, are not drawn; the figures that would be."""
    asked = []
    monkeypatch.setattr(figures, "draw", lambda figure, *arguments, **texts: asked.append(figure.name))
    for name in ("draw_layers", "draw_escapes"):
        monkeypatch.setattr(figures, name, lambda *arguments, **texts: None)
    return asked


def command(out, *more):
    fixed = ["--out", str(out), "--epochs", "2", "--batch", "8", "--device", "cpu"]
    return command_line.main([*fixed, *more])


def arrays(folder):
    """All numbers of all runs: {name in runs.npz: values}"""
    with np.load(folder / "runs.npz") as archive:
        return {name: archive[name].tolist() for name in archive.files if "/monitor/" not in name}


def stems(folder):
    return sorted({name.partition("/")[0] for name in arrays(folder)})


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """The command computes them as 0; the tests after it do not."""
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("loaded")
class TestRun:
    def test_files_and_table(self, tmp_path, capsys):
        assert command(tmp_path, "--seeds", "2") == 0
        printed = capsys.readouterr().out
        names = [pipeline.name for pipeline in FIGURES["3"].pipelines]
        assert all(pipeline.label in printed for pipeline in FIGURES["3"].pipelines)
        assert stems(tmp_path) == sorted(f"{name}-seeds0-1" for name in names)
        identity = json.loads((tmp_path / "run.json").read_text())
        assert (identity["lr"], identity["data_sha256"]) == (0.001, "0")
        about = identity["groups"][0]
        assert (about["device"], about["seeds"], about["epochs"]) == ("cpu", [0, 1], 2)
        assert set(about["versions"]) == {"python", "torch", "sigscale", "numpy"}
        assert about["commit"] == common.commit()
        found = arrays(tmp_path)
        assert {name.partition("/")[2] for name in found} == set(NUMBERS)
        assert all(np.shape(curves) == (2, 2) for curves in found.values())
        for picture in ("figure3", "figure3-layers", "figure3-escapes"):
            assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (tmp_path / f"{picture}.svg").read_text()
        assert "figure3.png" in (tmp_path / "report.md").read_text()
        history = Folder(tmp_path).read_groups()[0].history
        assert isinstance(history, ss.GradientHistory)
        assert (history.step_count, len(history)) == (2 * 8, 2 * 4)
        assert not list(tmp_path.rglob("*.part"))

    def test_figures_that_share_pipelines(self, tmp_path, undrawn, monkeypatch):
        """Trained once for both; subnormal numbers are 0, which would take as long as hundreds of others."""
        seen, train_epoch = [], train.train_epoch

        def watched(runs, after_step):
            seen.append(float(torch.full((), 2.0**-140) * torch.ones(())))
            train_epoch(runs, after_step)

        monkeypatch.setattr(train, "train_epoch", watched)
        assert command(tmp_path, "--figure", "4,3") == 0
        assert len(stems(tmp_path)) == 6
        assert len(seen) == 6 * 2
        assert set(seen) == {0.0}
        assert undrawn == [FIGURES[key].name for key in "34"]

    @pytest.mark.usefixtures("undrawn")
    def test_interrupted_and_resumed(self, tmp_path, capsys, monkeypatch):
        assert command(tmp_path / "whole", "--seeds", "2") == 0
        save, saves = Folder.save, []

        def save_and_interrupt(folder, run):
            save(folder, run)
            saves.append(run)
            if len(saves) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(Folder, "save", save_and_interrupt)
        assert command(tmp_path / "parts", "--seeds", "2") == 130
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("interrupted; to go on: python -m examples.cifar10 --out ")
        assert message.endswith(" --resume")
        assert command(tmp_path / "parts", "--seeds", "2") == 2
        assert "Continue, extend or report them with --resume" in capsys.readouterr().err
        assert command(tmp_path / "parts", "--seeds", "2", "--resume") == 0
        assert len(saves) == 2 * 4
        assert arrays(tmp_path / "parts") == arrays(tmp_path / "whole")
        groups = (Folder(tmp_path / name).read_groups() for name in ("parts", "whole"))
        assert all(same_history(a.history, b.history) for a, b in zip(*groups, strict=True))

    @pytest.mark.usefixtures("undrawn")
    def test_epochs_are_added(self, tmp_path, capsys):
        """To the same bits as of a run that was to have as many from the first; never taken away."""
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        assert command(whole, "--figure", "2", "--epochs", "3") == 0
        assert command(parts, "--figure", "2") == 0
        assert command(parts, "--figure", "2", "--epochs", "3") == 2
        assert command(parts, "--figure", "2", "--epochs", "3", "--resume") == 0
        assert arrays(parts) == arrays(whole)
        (one, *_), (other, *_) = (Folder(folder).read_groups() for folder in (whole, parts))
        assert same_history(one.history, other.history)
        assert json.loads((parts / "run.json").read_text())["epochs"] == 3
        capsys.readouterr()
        assert command(parts, "--figure", "2", "--resume") == 2
        assert "epochs 3 there, 2 now" in capsys.readouterr().err

    @pytest.mark.usefixtures("undrawn")
    def test_seeds_are_added(self, tmp_path):
        """In the same folder and from others; only `state` is not needed to report them again."""
        one, two, both = (tmp_path / name for name in ("one", "two", "both"))
        assert command(one, "--figure", "2", "--seeds", "1") == 0
        assert command(one, "--figure", "2", "--seeds", "1-1", "--resume") == 0
        assert command(two, "--figure", "2", "--seeds", "2-2") == 0
        assert command(both, "--figure", "2", "--seeds", "3", "--merge", str(one), str(two)) == 0
        assert arrays(both) == arrays(one) | arrays(two)
        assert len(stems(both)) == 6
        shutil.rmtree(both / "state")
        before = (both / "runs.npz").read_bytes()
        assert command(both, "--figure", "2", "--seeds", "3", "--resume") == 0
        assert (both / "runs.npz").read_bytes() == before

    @pytest.mark.usefixtures("undrawn")
    def test_merging_what_does_not_belong_together(self, tmp_path, capsys):
        one, two = str(tmp_path / "one"), str(tmp_path / "two")
        assert command(one, "--figure", "2") == 0
        assert command(two, "--figure", "2", "--lr", "0.1") == 0
        assert command(tmp_path / "all", "--figure", "2", "--merge", one, two) == 2
        assert "lr 0.1 there, 0.001 now" in capsys.readouterr().err
        assert command(tmp_path / "none", "--merge", str(tmp_path / "nothing")) == 2
        assert "nothing: holds no runs" in capsys.readouterr().err
        identity = json.loads((tmp_path / "two" / "run.json").read_text())
        (tmp_path / "two" / "run.json").write_text(json.dumps({**identity, "lr": 0.001}))
        assert command(tmp_path / "all", "--figure", "2", "--merge", one, two) == 2
        assert "have different results for deep-tanh" in capsys.readouterr().err
        assert command(one, "--figure", "2", "--resume", "--merge", two) == 2
        assert "have different results for deep-tanh" in capsys.readouterr().err
        assert not (tmp_path / "all").exists()
        assert not (tmp_path / "none").exists()

    def test_one_command_at_a_time(self, tmp_path, capsys):
        folder = Folder(tmp_path)
        with folder.alone():
            assert command(tmp_path, "--figure", "2") == 2
        assert "another command is at work here" in capsys.readouterr().err

    @pytest.mark.usefixtures("undrawn")
    def test_folder_of_another_run_is_left_alone(self, tmp_path, capsys, loaded):
        assert command(tmp_path, "--figure", "2") == 0
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
        assert command(tmp_path, "--figure", "2") == 2
        assert "holds runs of these settings" in capsys.readouterr().err
        for more in (["--lr", "0.5"], ["--lr", "0.5", "--resume"]):
            assert command(tmp_path, "--figure", "2", *more) == 2
            assert "holds another run (lr 0.001 there, 0.5 now)" in capsys.readouterr().err
        loaded["cifar"] = Cifar10(split(70), split(30), "a test", "1")
        assert command(tmp_path, "--figure", "2", "--resume") == 2
        assert "data_sha256 '0' there, '1' now" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before

    def test_generated_images_are_called_so(self, tmp_path, capsys, loaded):
        loaded["cifar"] = Cifar10(split(70), split(30), GENERATED, "2")
        assert command(tmp_path, "--figure", "2") == 0
        assert "GENERATED IMAGES, NOT CIFAR-10" in capsys.readouterr().out
        for file in ("figure2.svg", "figure2-layers.svg", "report.md"):
            assert "GENERATED IMAGES" in (tmp_path / file).read_text()

    @pytest.mark.usefixtures("undrawn")
    def test_damaged_results(self, tmp_path, capsys):
        """Are made again from the states once they are deleted."""
        assert command(tmp_path, "--figure", "2") == 0
        before = arrays(tmp_path)
        file = tmp_path / "runs.npz"
        whole = file.read_bytes()
        for content in (b"PK", b"", whole[:-50], whole[:200]):
            file.write_bytes(content)
            assert command(tmp_path, "--figure", "2", "--resume") == 2
            assert "runs.npz: missing or damaged" in capsys.readouterr().err
        file.unlink()
        assert command(tmp_path, "--figure", "2", "--resume") == 0
        assert arrays(tmp_path) == before

    def test_quick_says_how_long_it_takes(self, tmp_path, capsys, undrawn):
        assert command(tmp_path, "--quick", "--figure", "2") == 0
        assert "This takes about 1 min." in capsys.readouterr().out

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nMore words."),
            RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 9 bytes."),
            MemoryError(),
        ],
        ids=["GPU", "CPU", "Python"],
    )
    def test_out_of_memory(self, tmp_path, capsys, monkeypatch, error):
        def full(runs, after_step):
            raise error

        monkeypatch.setattr(train, "train_epoch", full)
        assert command(tmp_path, "--seeds", "6") == 2
        first, last = capsys.readouterr().err.splitlines()[-2:]
        assert first == f"error: out of memory on cpu ({str(error).splitlines()[0] if str(error) else ''})"
        assert last == "Lower --together, say to 3, or --batch, and go on with --resume."

    def test_disk_full(self, tmp_path, capsys, monkeypatch):
        def full(path, data):
            with open("/dev/full", "wb") as file:
                file.write(data)

        monkeypatch.setattr("pathlib.Path.write_bytes", full)
        assert command(tmp_path) == 2
        first, last = capsys.readouterr().err.splitlines()[-2:]
        state = tmp_path / "state" / "combined-tanh-seeds0-0.pt"
        assert first == f"error: [Errno 28] No space left on device: '{state}'"
        assert last == "Make room on that disk and go on with --resume; no file is half written."
        assert not list(tmp_path.rglob("*.part"))


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seeds", "0"], "argument --seeds: '0': must be how many, such as 25, or ranges"),
            (["--figure", "5"], "argument --figure: '5': the paper's figures are 1, 2, 3, 4; name one"),
            (["--epochs", "-3"], "argument --epochs: '-3': must be a whole number from 1 on"),
            (["--batch", "2.5"], "argument --batch: '2.5': must be a whole number from 1 on"),
            (["--lr", "nan"], "argument --lr: 'nan': must be a positive number"),
            (["--lr", "fast"], "argument --lr: 'fast': must be a positive number"),
            (["--device", "tpu"], "argument --device: 'tpu': must be cpu, or cuda or cuda:N for one of the"),
            (["--device", "cuda:99"], "argument --device: 'cuda:99': must be cpu"),
            (["--pixels", "bits"], "argument --pixels: invalid choice: 'bits'"),
        ],
    )
    def test_options(self, capsys, arguments, message):
        with pytest.raises(SystemExit, match="2"):
            command_line.main(arguments)
        assert message in capsys.readouterr().err

    @pytest.mark.usefixtures("loaded")
    def test_batch_larger_than_the_data(self, tmp_path, capsys):
        assert command(tmp_path / "out", "--batch", "71") == 2
        assert "--batch 71: a batch cannot have more than the 70 training images" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_out_is_checked_before_the_data_is_loaded(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert command(tmp_path / "file" / "out", "--data", "/nowhere") == 2
        assert "file is not a folder to write in. Name another" in capsys.readouterr().err
        assert command(tmp_path / "nothing", "--data", "/nowhere", "--resume") == 2
        assert "nothing: no run.json to resume. Name another folder" in capsys.readouterr().err
        (tmp_path / "state").mkdir()
        assert command(tmp_path, "--data", "/nowhere") == 2
        assert "state is there, but not its run.json" in capsys.readouterr().err
        for content, message in (("{", "not readable as JSON"), ("{}", "written by an earlier version")):
            (tmp_path / "run.json").write_text(content)
            assert command(tmp_path, "--data", "/nowhere", "--resume") == 2
            assert message in capsys.readouterr().err

    def test_wrong_data_folder_is_never_replaced(self, tmp_path, capsys):
        assert command(tmp_path / "out", "--quick", "--data", str(tmp_path)) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no CIFAR-10 there.")

    def test_without_data_and_network(self, nowhere, capsys):
        assert command(nowhere / "out") == 2
        assert "download failed" in capsys.readouterr().err
        assert not (nowhere / "out").exists()


def test_quick_changes_defaults_only():
    def settings(*arguments):
        return command_line.settings_of(command_line.parse(arguments))

    assert settings() == Settings()
    assert settings("--quick") == command_line.QUICK
    assert settings("--quick", "--lr", "0.1", "--bias").lr == 0.1
    assert settings("--no-bias").bias is False
    assert train.PIXELS[0] == Settings.pixels
    quick = command_line.parse(["--quick"])
    assert (command_line.figures_of(quick), quick.seeds) == ([FIGURES["1"]], (0, 1, 2, 3))
    given = command_line.parse(["--quick", "--figure", "2", "--seeds", "7-8"])
    assert (command_line.figures_of(given), given.seeds) == ([FIGURES["2"]], (7, 8))
    assert command_line.parse([]).seeds == (0,)


def test_figures_asked_for():
    def chosen(*arguments):
        return command_line.figures_of(command_line.parse(arguments))

    assert chosen() == [FIGURES["3"]]
    assert chosen("--figure", "2,1") == [FIGURES["1"], FIGURES["2"]]
    assert chosen("--figure", "all", "--also") == [*FIGURES.values(), *ALSO.values()]
