"""The recurrent example runs, with every kind of cell, and leaves what it says."""

from __future__ import annotations

import json

import pytest

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
