"""The README's tables of the paper's claims, out of what runs of the example left behind."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import claims

STATEMENT = {
    **{"name": "C2a", "counts": True, "words": "at once", "measured": "median |g|", "verdict": "reproduced"},
    **{
        "unit": "decimal logarithm",
        "p": 0.03125,
        "effect": 1.0,
        "interval": [0.0, 2.0],
        "seeds": 6,
        "why": "",
    },
}
SETTINGS = {
    "epochs": 15,
    "pixels": "unit",
    "conv": None,
    "bias": None,
    "batch": 32,
    "lr": 0.001,
    "steps": None,
}


@pytest.fixture
def run(tmp_path):
    def written(name, statements, generated=False, **settings):
        folder = tmp_path / name
        folder.mkdir()
        found = {"data_generated": generated, "statements": statements}
        (folder / "claims.json").write_text(json.dumps(found))
        (folder / "run.json").write_text(json.dumps({**SETTINGS, **settings}))
        return folder

    return written


def readme_of(tmp_path, monkeypatch, *arguments):
    readme = tmp_path / "README.md"
    sections = (
        f"<!-- bench:{name}:begin -->\n<!-- bench:{name}:end -->\n" for name in ("claims", "readings")
    )
    readme.write_text("".join(sections))
    monkeypatch.setattr(sys, "argv", ["claims.py", *map(str, arguments), "--readme", str(readme)])
    claims.main()
    return readme.read_text()


def test_statements_that_count(run, tmp_path, monkeypatch):
    text = readme_of(
        tmp_path, monkeypatch, run("a", [STATEMENT, {**STATEMENT, "name": "C2x", "counts": False}])
    )
    assert '| C2a | "at once" | median \\|g\\| | 10 (1 to 1e+02) times | 0.031 | **reproduced** |' in text
    assert "C2x" not in text


@pytest.mark.parametrize(
    ("unit", "effect", "interval", "words"),
    [
        ("per cent", 2.04, [-0.5, 4.0], "+2.0 (-0.5 to +4.0) points"),
        ("per cent", -2.0, [None, None], "-2.0 points"),
        ("decimal logarithm", -1.0, [-2.0, 0.0], "0.1 (0.01 to 1) times"),
        ("share of runs", 0.25, [None, None], "in 25% of the runs, against the claim"),
        ("per cent", None, [None, None], "too short"),
    ],
)
def test_effects_in_words(unit, effect, interval, words):
    statement = {**STATEMENT, "unit": unit, "effect": effect, "interval": interval, "why": "too short"}
    (row,) = claims.rows({"statements": [statement]})
    assert row["our runs"] == words


def test_other_readings_are_named_by_their_options(run, tmp_path, monkeypatch):
    other = {**STATEMENT, "name": "C1a"}
    default = run("default", [other, STATEMENT])
    found = [{**STATEMENT, "effect": 0.0, "p": None, "seeds": 3, "verdict": "not reproduced"}]
    byte = run("byte", found, pixels="byte", bias=True, epochs=6)
    without = run("without", found, bias=False, lr=0.01)
    text = readme_of(tmp_path, monkeypatch, default, "--readings", byte, without)
    _, *lines = text.partition("bench:readings:begin")[2].splitlines()
    assert lines[0] == "| reading | epochs | seeds | C2a, median \\|g\\| |"
    assert lines[2] == "| the default | 15 | 6 | 10 (1 to 1e+02) times, p = 0.031: reproduced |"
    assert lines[3] == "| `--pixels byte --bias` | 6 | 3 | 1 (1 to 1e+02) times: not reproduced |"
    assert lines[4] == "| `--no-bias --lr 0.01` | 15 | 3 | 1 (1 to 1e+02) times: not reproduced |"


def test_generated_images_say_nothing(run, tmp_path, monkeypatch):
    real, generated = run("real", [STATEMENT]), run("generated", [STATEMENT], generated=True)
    for arguments in ((generated,), (real, "--readings", generated)):
        with pytest.raises(SystemExit, match="generated images, which say nothing"):
            readme_of(tmp_path, monkeypatch, *arguments)
    assert (tmp_path / "README.md").read_text().count("\n") == 4


def test_a_readme_without_markers_stays_as_it_is(run, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    monkeypatch.setattr(sys, "argv", ["claims.py", str(run("a", [STATEMENT])), "--readme", str(readme)])
    with pytest.raises(SystemExit, match=r"has no <!-- bench:claims:begin --> \.\.\."):
        claims.main()
    assert readme.read_text() == "no markers"


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_folders_of_something_else(run, tmp_path, monkeypatch, content):
    folder = run("a", [STATEMENT])
    (folder / "claims.json").unlink()
    if content is not None:
        (folder / "claims.json").write_text(content)
    with pytest.raises(SystemExit, match=r"must be an output folder of examples\.cifar10"):
        readme_of(tmp_path, monkeypatch, folder)


def test_readings_of_other_claims(run, tmp_path, monkeypatch):
    other = run("other", [{**STATEMENT, "name": "C1a"}])
    with pytest.raises(SystemExit, match="judge no statement that all have in common"):
        readme_of(tmp_path, monkeypatch, run("a", [STATEMENT]), "--readings", other)
