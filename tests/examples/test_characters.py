"""The recurrent example runs, with every kind of cell, and leaves what it says."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from examples import characters

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_example(cell, tmp_path, capsys, one_thread):
    few = ["--cell", cell, "--steps", "4", "--hidden", "8", "--seeds", "1", "--out", str(tmp_path)]
    assert characters.main(few) == 0
    kept = json.loads((tmp_path / "characters.json").read_text())
    assert cell in str(kept)
    assert kept["versions"]["torch"]
    for suffix in ("png", "svg"):
        assert (tmp_path / f"characters.{suffix}").stat().st_size > 10_000
    assert "alpha" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--steps", "0"], ["--alpha", "-1"], ["--cell", "cnn"]])
def test_wrong_options(option, capsys):
    with pytest.raises(SystemExit):
        characters.main(option)
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_gradient_through_time(cell, one_thread):
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
    parts = states if isinstance(states, tuple) else (states,)
    differences = []
    for part in parts:
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
