"""`examples/theory.py`, run as a module and as a file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from examples import theory as example
from sigscale import theory

ROOT = Path(__file__).parents[2]


def test_run(tmp_path, capsys):
    folder = tmp_path / "new" / "folder"
    assert example.main(["--out", str(folder), "--draws", "60"]) == 0
    assert {path.name for path in folder.iterdir()} == {"theory.txt", "theory.png", "theory.svg"}
    assert (folder / "theory.txt").read_text() in capsys.readouterr().out
    assert (folder / "theory.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(folder / "theory.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("start", [["-m", "examples.theory"], ["examples/theory.py"]], ids=["module", "file"])
def test_both_ways_to_start_it(start):
    run = subprocess.run([sys.executable, *start, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert "usage: python -m examples.theory" in run.stdout, run.stderr


@pytest.fixture(scope="module")
def report():
    return "\n\n".join(example.report(600, 0))


def test_the_report_says_what_the_theory_says(report):
    for row in theory.theorem_1_domain(draws=600):
        assert re.search(rf"^{row.t:.4g} +{row.first} +{row.second}\b", report, re.M)
    assert "true for t <= 0.7385, claim 2 for t <= 0.6230" in report
    assert re.search(r"^sigmoid +yes, 1 .*NO +yes, a = 0\.25$", report, re.M)
    assert re.search(r"^arctan +NO, 1\.571 ", report, re.M)
    assert re.search(r"^tanh +0\.000000e\+00 +4\.381933e-360$", report, re.M)


def test_every_function_is_in_every_table(report):
    assert [len(re.findall(rf"^{name} ", report, re.M)) for name in ("tanh", "softsign")] == [8, 8]


def test_the_same_again(report):
    assert report.startswith(next(example.report(600, 0)))
    assert not report.startswith(next(example.report(600, 1)))


def test_bad_arguments(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        example.main(["--draws", "0"])
    assert "--draws must be at least 1; got 0" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        example.main([])
    assert (
        'needs matplotlib, mpmath, not installed here: pip install -e ".[examples]"'
        in capsys.readouterr().err
    )
