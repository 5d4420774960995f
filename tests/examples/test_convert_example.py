"""The example of conversion runs, and its numbers are those of the networks it makes."""

from __future__ import annotations

import json

import pytest
import torch

from examples import convert
from examples.cifar10.data import GENERATED, Cifar10, Split

pytest.importorskip("matplotlib")


def test_example(tmp_path, monkeypatch, capsys, one_thread):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(10, (40,), generator=generator))
    monkeypatch.setattr(convert, "load", lambda *_, **__: Cifar10(split, split, GENERATED, ""))
    content = convert.main(["--out", str(tmp_path), "--steps", "2", "--alpha", "1.7"])
    assert (tmp_path / "convert.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "convert.json").read_text()) == content
    numbers = content["numbers"]
    assert numbers["activations_changed"] == 10
    assert len(numbers["median_gradient_ratio"]) == 11
    assert 0 <= numbers["fold_largest_difference"] <= 1e-5 * numbers["fold_largest_output"]
    assert "block1.act2  Tanh -> Tanh(alpha=1.7)" in capsys.readouterr().out
    assert content["settings"]["data"] == "generated images"
