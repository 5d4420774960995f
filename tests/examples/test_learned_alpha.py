"""The example that learns an alpha for every layer runs, and leaves what it says."""

from __future__ import annotations

import json

import pytest
import torch

from examples import learned_alpha
from examples.cifar10 import data

pytest.importorskip("matplotlib")


@pytest.fixture
def few_images(monkeypatch):
    images = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    split = data.Split(images, torch.randint(10, (300,)))
    monkeypatch.setattr(data, "load", lambda *_, **__: data.Cifar10(split, split, "a few", "0" * 64))


def test_learned_alpha(few_images, tmp_path, capsys, one_thread):
    assert learned_alpha.main(["--steps", "12", "--batch", "8", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "learned_alpha.json").read_text())["results"]
    assert list(results) == list(learned_alpha.WAYS)
    for name, alpha in (("alpha = 1", 1.0), ("alpha = 2", 2.0)):
        assert results[name]["alphas"] == [[alpha] * 8] * 2
    first, later = results[learned_alpha.LEARNED]["alphas"]
    assert first == [2.0] * 8
    assert all(a != 2.0 for a in later)
    assert results["alpha = 2"]["losses"][0] == results[learned_alpha.LEARNED]["losses"][0]
    for suffix in ("png", "svg"):
        assert (tmp_path / f"learned_alpha.{suffix}").stat().st_size > 10_000
    assert f"{learned_alpha.LEARNED}: test accuracy" in capsys.readouterr().out


def test_every_layer_is_named_in_the_picture(tmp_path, monkeypatch):
    seen = []

    def save(figure, stem):
        renderer = figure.canvas.get_renderer()
        figure.draw(renderer)  # which puts everything in its place
        boxes = {text.get_text(): text.get_tightbbox(renderer) for text in figure.axes[1].texts}
        seen.append((boxes, figure.bbox))
        return []

    monkeypatch.setattr(learned_alpha, "save", save)
    result = {"test_accuracy": 0.5, "losses": torch.rand(9), "alphas": torch.rand(9, 8) + 1.5}
    learned_alpha.draw(dict.fromkeys(learned_alpha.WAYS, result), tmp_path / "picture", "title")
    ((boxes, whole),) = seen
    assert boxes.keys() == set(learned_alpha.NAMES)
    for name, box in boxes.items():
        assert box.width > 10, f"{name} is not drawn"
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1, f"{name} is cut off"


@pytest.mark.parametrize("option", ["--steps", "--batch"])
def test_wrong_numbers(option, capsys):
    with pytest.raises(SystemExit):
        learned_alpha.main([option, "0"])
    assert "must be at least 1; got" in capsys.readouterr().err


def test_no_data(tmp_path, capsys):
    assert learned_alpha.main(["--data", str(tmp_path)]) == 2
    assert "no CIFAR-10 there" in capsys.readouterr().err
