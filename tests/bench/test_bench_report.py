"""REPORT.md says what lies under bench/results/, and what is stale is printed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

import codehash
import rendering
import report
from places import without_places

PROVENANCE = {
    **{"device": "a processor", "sigscale": "0.1.0", "torch": "2.14", "triton": "3.8", "python": "3.11"},
    **{"command": "pytest bench", "date": "2026-11-26 12:00 UTC"},
}
RESULT = {
    "kind": "penalty",
    "parameters": "some",
    "way": "gradient",
    "dtype": "float32",
    "provider": "sigscale",
}
RUN = report.Run(PROVENANCE, [{**RESULT, "seconds": 1e-5, "ratios": {"eager": [0.5, 0.4, 0.6]}}])
ABOUT = {
    **{"gpu": "NVIDIA H200", "driver": "580.1", "cuda": "13.0", "cpu": "a processor, 2 cores", "quick": "no"},
    **{"torch": "2.14", "triton": "3.8", "sigscale": "0.1.0", "python": "3.11", "command": "make evidence"},
    "date": "2026-11-26 12:00 UTC",
}


@pytest.fixture
def results(tmp_path):
    place = tmp_path / "results"
    report.write(place / "cpu-2026-11-23", RUN)
    stage = place / "nvidia-h200-2026-11-26" / "kernels"
    report.write(stage, report.Run(PROVENANCE, RUN.results, codehash.record(())))
    (stage / "bandwidth.png").touch()
    (stage.parent / "environment.json").write_text(json.dumps(ABOUT))
    found = {
        **{"outcome": "timed out", "seconds": 449.6, "remark": "kernels: cut off after 450 s; 1 results"},
        **{"date": ABOUT["date"], "about": {"commit": 4 * "0123456789" + " and changes"}},
        **{"code": codehash.record(()), "files": ["results.json", "tables.md", "bandwidth.png", "log.txt"]},
    }
    (stage / "stage.json").write_text(json.dumps(found))
    return place


def test_up_to_date():
    """After a change under bench/results/: `make report`."""
    assert (BENCH / "REPORT.md").read_text(encoding="utf-8") == rendering.report(BENCH / "results")


def test_sections(results):
    text = rendering.report(results)
    assert text.index("## nvidia-h200-2026-11-26") < text.index("## cpu-2026-11-23")
    evidence, other = text.split("## ")[1:]
    assert "NVIDIA H200, host a processor, 2 cores; driver 580.1, cuda 13.0, sigscale 0.1.0" in evidence
    assert "| kernels | timed out | 450 | kernels: cut off after 450 s; 1 results |" in evidence
    assert "| 0123456789 and changes |" in evidence
    assert codehash.record(())["hash"] in evidence
    assert "[kernels/tables.md](results/nvidia-h200-2026-11-26/kernels/tables.md)" in evidence
    assert "![kernels/bandwidth.png](results/nvidia-h200-2026-11-26/kernels/bandwidth.png)" in evidence
    assert "a processor; sigscale 0.1.0, torch 2.14, triton 3.8, python 3.11; `pytest bench`" in other
    assert "Without a code hash." in other
    assert "[tables.md](results/cpu-2026-11-23/tables.md)" in other


def test_the_report_does_not_change_with_the_code(results):
    before = rendering.report(results)
    stage = results / "nvidia-h200-2026-11-26/kernels/stage.json"
    assert "stale" not in before
    found = json.loads(stage.read_text())
    found["code"]["files"]["kernels/activation.py"] = "another"
    stage.write_text(json.dumps(found))
    assert rendering.report(results) == before


def test_staleness(results):
    hash_ = codehash.record(())["hash"]
    assert [*rendering.staleness(results)] == [
        "cpu-2026-11-23: without a code hash",
        f"nvidia-h200-2026-11-26/kernels ({hash_}): of the code as it is",
    ]
    stage = results / "nvidia-h200-2026-11-26/kernels/stage.json"
    found = json.loads(stage.read_text())
    found["code"]["files"] |= {"kernels/activation.py": "another", "kernels/gone.py": "some"}
    stage.write_text(json.dumps(found))
    stale = [*rendering.staleness(results)][1]
    assert stale.endswith("**stale**, since then changed: kernels/activation.py, kernels/gone.py")


def test_a_run_with_its_code(results):
    code = codehash.record(["bench/test_penalty.py"])
    report.write(results / "h200", report.Run(PROVENANCE, RUN.results, code))
    assert report.load(results / "h200/results.json") == report.Run(PROVENANCE, RUN.results, code)
    assert f"Code {code['hash']}." in rendering.report(results)
    assert f"h200 ({code['hash']}): of the code as it is" in [*rendering.staleness(results)]


def test_a_folder_of_evidence_is_one_run(results):
    stage = results / "nvidia-h200-2026-11-26"
    report.write(stage / "table4", RUN)
    (stage / "gpu-tests").mkdir()
    (stage / "gpu-tests/results.json").write_text("{}")
    assert report.load(stage).results == [*RUN.results, *RUN.results]
    assert report.load(results / "cpu-2026-11-23").results == RUN.results
    with pytest.raises(SystemExit, match="holds no results of benchmarks"):
        report.load(stage / "gpu-tests")


def test_check(results, capsys):
    assert rendering.main(results, check=True) == 1
    assert "REPORT.md is out of date: `make report`" in capsys.readouterr().out
    assert rendering.main(results) == 0
    assert rendering.main(results, check=True) == 0


def test_commands_name_no_places():
    given = ["bench", "--data", "/somewhere", "-q", "--benchmark-json=/x.json", "--data=/y", "--seconds", "1"]
    assert without_places(given) == ["bench", "-q", "--seconds", "1"]
    assert without_places(["--benchmark-json", "/x.json", "bench"]) == ["bench"]


@pytest.mark.parametrize("content", [None, "{", "[]", '{"x": 1}'])
def test_files_of_something_else(tmp_path, content):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit, match=r"run.json: must be what `pytest bench"):
        report.load(path)


@pytest.mark.parametrize(
    "arguments", [["--name", "x"], ["--readme", "/nowhere.md"], ["x.json", "--readme", "/y"]]
)
def test_options_that_say_too_little(monkeypatch, arguments, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    assert "--readme" in capsys.readouterr().err
