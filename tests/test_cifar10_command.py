"""`python -m examples.cifar10` from its options to its files."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import sigscale as ss
from examples.cifar10 import cli, data, download, figures, heatmaps, options, train
from examples.cifar10.data import GENERATED, Cifar10, Split
from examples.cifar10.results import Outcome
from examples.cifar10.train import FIGURE_3, Settings

pytestmark = pytest.mark.usefixtures("one_thread")


def split(images):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (images,), generator=generator)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(pixels.contiguous(memory_format=torch.channels_last), labels)


@pytest.fixture
def loaded(monkeypatch):
    """70 + 30 images in place of whatever would be loaded; change `cifar` to change the data."""
    loaded = {"cifar": Cifar10(split(70), split(30), "a test", "0")}
    monkeypatch.setattr(data, "load", lambda directory, allow_generated: loaded["cifar"])
    return loaded


def command(out, *more):
    return cli.main(["--out", str(out), "--epochs", "2", "--batch", "8", "--device", "cpu", *more])


def columns(path):
    rows = list(csv.DictReader(path.open()))
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.usefixtures("loaded")
class TestRun:
    def test_files_and_table(self, tmp_path, capsys):
        assert command(tmp_path, "--seeds", "2") == 0
        printed = capsys.readouterr().out
        assert "tanh, alpha = 2, r = 0.01" in printed.splitlines()[-5]
        found = json.loads((tmp_path / "results.json").read_text())
        assert found["experiment"]["lr"] == 0.001
        assert found["experiment"]["data_source"] == "a test"
        assert set(found["versions"]) == {"python", "torch", "sigscale", "numpy"}
        assert [(run["pipeline"], run["seed"]) for run in found["runs"]] == [
            (pipeline.name, seed) for seed in (0, 1) for pipeline in FIGURE_3
        ]
        rows = columns(tmp_path / "results.csv")
        assert len(rows) == len(FIGURE_3) * 2 * 2
        assert float(rows[0]["gradient_q50"]) == found["runs"][0]["epochs"][0]["gradient_q50"]
        assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "figure3.svg").read_text()
        assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "gradients.svg").read_text()
        assert len(list((tmp_path / "gradients").iterdir())) == len(FIGURE_3) * 2
        history = ss.GradientHistory.load(tmp_path / "gradients" / "relu-penalty-seed1.npz")
        assert history.step_count == len(history) == 2 * 8
        assert not list(tmp_path.rglob("*.part"))

    def test_interrupted_and_resumed(self, tmp_path, capsys, monkeypatch):
        assert command(tmp_path / "whole") == 0
        save, saves = cli.Folder.save, []

        def save_and_interrupt(folder, run):
            save(folder, run)
            saves.append(run)
            if len(saves) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr(cli.Folder, "save", save_and_interrupt)
        assert command(tmp_path / "parts") == 130
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("interrupted; to go on: python -m examples.cifar10 --out ")
        assert message.endswith(" --resume")
        assert command(tmp_path / "parts") == 2
        assert (
            "holds an unfinished run of these settings. Continue it with --resume" in capsys.readouterr().err
        )
        assert command(tmp_path / "parts", "--resume") == 0
        assert len(saves) == 2 * len(FIGURE_3)
        assert columns(tmp_path / "parts/results.csv") == columns(tmp_path / "whole/results.csv")
        for file in (tmp_path / "whole" / "gradients").iterdir():
            whole, parts = (
                ss.GradientHistory.load(tmp_path / folder / "gradients" / file.name)
                for folder in ("whole", "parts")
            )
            assert whole.steps.tolist() == parts.steps.tolist()
            assert np.array_equal(whole.values, parts.values, equal_nan=True)
        assert (tmp_path / "parts/gradients.png").read_bytes() == (
            tmp_path / "whole/gradients.png"
        ).read_bytes()

    def test_folder_of_another_run_is_left_alone(self, tmp_path, capsys, loaded):
        assert command(tmp_path) == 0
        before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
        assert command(tmp_path) == 2
        assert "holds a finished run of these settings" in capsys.readouterr().err
        for more in (["--lr", "0.5"], ["--lr", "0.5", "--resume"]):
            assert command(tmp_path, *more) == 2
            assert "holds another run (lr 0.001 there, 0.5 now)" in capsys.readouterr().err
        loaded["cifar"] = Cifar10(split(70), split(30), "a test", "1")
        assert command(tmp_path, "--resume") == 2
        assert "data_sha256 '0' there, '1' now" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before

    def test_generated_images_are_called_so(self, tmp_path, capsys, loaded):
        loaded["cifar"] = Cifar10(split(70), split(30), GENERATED, "2")
        assert command(tmp_path) == 0
        assert capsys.readouterr().out.count(cli.GENERATED_WARNING) == 2
        assert json.loads((tmp_path / "results.json").read_text())["experiment"]["data_generated"] is True
        for picture in ("figure3.svg", "gradients.svg"):
            assert "GENERATED IMAGES" in (tmp_path / picture).read_text()


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--seeds", "0"], "argument --seeds: '0': must be a whole number from 1 on"),
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
            cli.main(arguments)
        assert message in capsys.readouterr().err

    @pytest.mark.usefixtures("loaded")
    def test_batch_larger_than_the_data(self, tmp_path, capsys):
        assert command(tmp_path / "out", "--batch", "71") == 2
        assert "--batch 71: a batch cannot have more than the 70 training images" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_out_is_checked_before_the_data_is_loaded(self, tmp_path, capsys):
        (tmp_path / "file").touch()
        assert command(tmp_path / "file" / "out", "--data", "/nowhere") == 2
        assert "file is not a folder. Name another" in capsys.readouterr().err
        (tmp_path / "results.json").touch()
        assert command(tmp_path, "--data", "/nowhere") == 2
        assert "results.json is there, but not the run.json" in capsys.readouterr().err
        (tmp_path / "run.json").write_text("{")
        assert command(tmp_path, "--data", "/nowhere") == 2
        assert "run.json: not readable as JSON" in capsys.readouterr().err

    def test_wrong_data_folder_is_never_replaced(self, tmp_path, capsys):
        assert command(tmp_path / "out", "--quick", "--data", str(tmp_path)) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path}: no CIFAR-10 there.")

    def test_without_data_and_network(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
        assert command(tmp_path / "out") == 2
        assert "download failed" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_quick_changes_defaults_only():
    def settings(*arguments):
        return options.settings(options.parser().parse_args(arguments))

    assert settings() == Settings()
    assert settings("--quick") == options.QUICK
    assert settings("--quick", "--lr", "0.1", "--bias").lr == 0.1
    assert train.PIXELS[0] == Settings.pixels


def test_module_has_help():
    found = subprocess.run(
        [sys.executable, "-m", "examples.cifar10", "--help"], capture_output=True, text=True
    )
    assert found.returncode == 0
    assert "about two minutes" in " ".join(found.stdout.split())


def outcomes(epochs, value, seeds=1):
    """Runs that had the same gradient everywhere and always."""
    row = {"test_accuracy": 0.1, **dict.fromkeys(figures.GRADIENTS, value)}
    names = [*("all activations", "all parameters"), "conv1_1_activation", "conv1_1.weight"]
    kinds = ["total", "total", "activation", "parameter"]
    values = np.full((epochs, len(names), 7), value)
    gradients = ss.GradientHistory(
        np.arange(epochs), names, kinds, (0.5, 0.95), (), values, step_count=epochs
    )
    return [
        Outcome(pipeline, seed, [row] * epochs, gradients) for seed in range(seeds) for pipeline in FIGURE_3
    ]


@pytest.mark.parametrize("draw", [figures.draw, heatmaps.draw], ids=["figure3", "gradients"])
@pytest.mark.parametrize(
    ("epochs", "value"), [(1, 0.0), (3, float("nan")), (3, float("inf")), (3, 1e9), (100, 1e-30)]
)
def test_figures_of_any_length_and_any_gradients(tmp_path, draw, epochs, value):
    paths = draw(outcomes(epochs, value, seeds=2), tmp_path / "figure", title="a test", warning="a warning")
    assert [path.name for path in paths] == ["figure.png", "figure.svg"]
    assert all(path.stat().st_size > 5000 for path in paths)
