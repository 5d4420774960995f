"""The smaller examples run, and leave what they say."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import sigscale as ss
from examples import characters, convert, distributed, learned_alpha
from examples import theory as theory_example
from examples.cifar10 import data
from examples.cifar10.data import GENERATED, Cifar10, Split
from sigscale import theory


def pictured(folder, name):
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")


@pytest.fixture
def few_images(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (40,), generator=generator))
    monkeypatch.setattr(data, "load", lambda *_, **__: Cifar10(split, split, GENERATED, ""))


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_characters(cell, tmp_path, capsys):
    few = ["--cell", cell, "--steps", "4", "--hidden", "8", "--seeds", "1", "--out", str(tmp_path)]
    assert characters.main(few) == 0
    kept = json.loads((tmp_path / "characters.json").read_text())
    assert kept["settings"]["cell"] == cell
    assert kept["versions"]["torch"]
    assert [row["cell"] for row in kept["summary"]] == [
        "alpha = 1, plain",
        "alpha = 2",
        "alpha learned, from 2",
    ]
    pictured(tmp_path, "characters")
    assert "| alpha = 2 " in capsys.readouterr().out


def test_convert(few_images, tmp_path, capsys):
    assert convert.main(["--out", str(tmp_path), "--steps", "2", "--alpha", "1.7"]) == 0
    pictured(tmp_path, "convert")
    content = json.loads((tmp_path / "convert.json").read_text())
    numbers = content["numbers"]
    assert numbers["activations_changed"] == 10
    assert len(numbers["median_gradient_ratio"]) == 11
    assert 0 <= numbers["fold_largest_difference"] <= 1e-5 * numbers["fold_largest_output"]
    assert "block1.act2  Tanh -> Tanh(alpha=1.7)" in capsys.readouterr().out
    assert content["settings"]["data"] == GENERATED


def test_learned_alpha(few_images, tmp_path, capsys):
    assert learned_alpha.main(["--steps", "12", "--batch", "8", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "learned_alpha.json").read_text())["results"]
    assert list(results) == list(learned_alpha.WAYS)
    for name, alpha in (("alpha = 1", 1.0), ("alpha = 2", 2.0)):
        assert results[name]["alphas"] == [[alpha] * 8] * 2
    first, later = results[learned_alpha.LEARNED]["alphas"]
    assert first == [2.0] * 8
    assert all(a != 2.0 for a in later)
    assert results["alpha = 2"]["losses"][0] == results[learned_alpha.LEARNED]["losses"][0]
    pictured(tmp_path, "learned_alpha")
    assert f"{learned_alpha.LEARNED}: test accuracy" in capsys.readouterr().out


def test_theory(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert theory_example.main(["--out", str(folder), "--draws", "60"]) == 0
    assert (folder / "theory.txt").read_text() in capsys.readouterr().out
    pictured(folder, "theory")


@pytest.mark.parametrize(
    ("module", "words"),
    [("examples.theory", "usage: python -m examples.theory"), ("examples.cifar10", "at most 3 minutes")],
)
def test_help(module, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert words in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (characters, ["--steps", "0"], "argument --steps: '0': must be a whole number from 1 on"),
        (characters, ["--alpha", "-1"], "argument --alpha: '-1': must be a positive number"),
        (characters, ["--cell", "cnn"], "argument --cell: invalid choice: 'cnn'"),
        (learned_alpha, ["--batch", "0"], "argument --batch: '0': must be a whole number from 1 on"),
        (theory_example, ["--draws", "0"], "argument --draws: '0': must be a whole number from 1 on"),
    ],
)
def test_wrong_options(script, options, message, capsys):
    with pytest.raises(SystemExit):
        script.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", [convert, learned_alpha])
def test_no_data(script, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        script.main(["--data", str(tmp_path)])
    assert "no CIFAR-10 there" in capsys.readouterr().err


def test_missing_packages(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        theory_example.main([])
    assert 'needs matplotlib, mpmath, not installed here: pip install -e ".[ex' in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_gradient_through_time(cell):
    """Against central differences of the loss in every coordinate of the states, letters before its end."""
    torch.manual_seed(0)
    network = characters.Network(cell, 5, alpha=2.0, learnable=False).double()
    letters, following = (part[-4:, :2] for part in next(characters.batches(0, 1)))
    found = torch.tensor(characters.gradient_through_time(network, letters, following))
    norms = [norm_by_differences(network, letters, following, t) for t in (2, 1, 0)]
    assert len(found) == 4
    assert found[0] == 1.0
    torch.testing.assert_close(found[1:] / found[1], torch.tensor(norms) / norms[0], rtol=1e-4, atol=0)


@torch.no_grad()
def norm_by_differences(network, letters, following, t, step=1e-5):
    """Of dL/dh_t, L being the loss of the last letter, which is not that of letter t."""
    _, states = network(letters[: t + 1])
    differences = []
    for part in states if isinstance(states, tuple) else (states,):
        for i in range(part.numel()):
            losses = []
            for shift in (step, -step):
                part.view(-1)[i] += shift
                scores, _ = network(letters[t + 1 :], states)
                losses.append(F.cross_entropy(scores[-1], following[-1]))
                part.view(-1)[i] -= shift
            differences.append((losses[0] - losses[1]) / (2 * step))
    return float(torch.stack(differences).norm())


def test_writing_goes_on_from_the_start():
    torch.manual_seed(0)
    text = characters.write(characters.Network("gru", 5, 2.0, False), "He left", 30)
    assert text.startswith("He left")
    assert len(text) == 30


@pytest.fixture(scope="module")
def report():
    return "\n\n".join(theory_example.report(600, 0))


def test_the_report_says_what_the_theory_says(report):
    for row in theory.theorem_1_domain(draws=600):
        assert re.search(rf"^{row.t:.4g} +{row.first} +{row.second}\b", report, re.M)
    assert "true for t <= 0.7385, claim 2 for t <= 0.6230" in report
    assert re.search(r"^sigmoid +yes, 1 .*NO +yes, a = 0\.25$", report, re.M)
    assert re.search(r"^arctan +NO, 1\.571 ", report, re.M)
    assert re.search(r"^tanh +0\.000000e\+00 +4\.381933e-360$", report, re.M)
    assert [len(re.findall(rf"^{name} ", report, re.M)) for name in ("tanh", "softsign")] == [8, 8]


def test_the_same_again(report):
    assert report.startswith(next(theory_example.report(600, 0)))
    assert not report.startswith(next(theory_example.report(600, 1)))


@pytest.mark.long
def test_distributed(tmp_path):
    """Compiled, sharded over two processes, logged and resumed: the history of one eager process."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    argv = ["--double", "--out", str(tmp_path / "two"), "--steps"]
    code = f"from examples.distributed import main; main({[*argv, '15']}); main({[*argv, '30']})"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*torchrun, "--no-python", sys.executable, "-c", code], check=True, timeout=300)
    distributed.main(["--eager", "--double", "--out", str(tmp_path / "one"), "--steps", "30"])
    one, two = (ss.GradientHistory.load(tmp_path / name / "gradients.npz") for name in ("one", "two"))
    assert one.steps.tolist() == two.steps.tolist() == [0, 10, 20]
    assert one.names == two.names
    assert one.values.tobytes() == two.values.tobytes()
    events = EventAccumulator(str(tmp_path / "two" / "events")).Reload()
    for name in ("all activations", "1.1", "0.weight"):
        scalars = events.Scalars(f"gradients/q50/{name.replace(' ', '_')}")
        numbers = two.quantile(0.5)[:, two.names.index(name)].astype("f4").tolist()
        assert {event.step: event.value for event in scalars} == dict(zip((0, 10, 20), numbers, strict=True))
