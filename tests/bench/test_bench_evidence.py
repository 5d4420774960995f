"""The benchmarks' options; `make evidence`: the plan, budgets and limits, and what a call cut off leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tarfile
import time
from argparse import ArgumentTypeError

import pytest

from bench import evidence, precompile
from bench.evidence import ROOT, Runner, Step
from bench.harness import options


@pytest.fixture
def runner(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "GRACE", 0.5)
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    return lambda seconds, rehearse=False: Runner(1, seconds, tmp_path, rehearse, "c0ffee")


def packed(runner):
    with tarfile.open(runner.archive) as archive:
        return {member.name: archive.extractfile(member).read().decode() for member in archive.getmembers()}


def test_outcomes_are_packed_after_each_step(runner):
    run = runner(60)
    run.run(Step("one", 1, "", "echo hello"))
    assert packed(run)["call-1/one.log"] == "hello\n"
    run.run(Step("two", 1, "", "echo '{commit} {epochs}'; exit 3"))
    assert packed(run)["call-1/two.log"] == "c0ffee 16\n"
    outcomes = json.loads(packed(run)["call-1/steps.json"])
    assert [(of["name"], of["outcome"]) for of in outcomes] == [("one", "passed"), ("two", "failed")]


def test_a_call_begins_with_an_empty_folder(runner):
    for name in ("first", "second"):
        run = runner(60)
        run.run(Step(name, 1, "", "echo done"))
    assert sorted(packed(run)) == ["call-1/second.log", "call-1/steps.json"]


def test_budget_and_limits(runner, monkeypatch):
    """A step that the budget has no room for is left out; one that takes too long is cut off."""
    monkeypatch.setattr(evidence, "LIMIT", 0.5)
    run = runner(8)
    run.run(Step("large", 100, "", "echo never"))
    run.run(Step("slow", 1, "", "echo begun; sleep 60"))
    assert [of["outcome"] for of in run.outcomes] == ["left out", "cut off"]
    assert packed(run)["call-1/slow.log"] == "begun\n"


def test_side_by_side(runner):
    run = runner(60)
    run.run(Step("both", 5, "", "sleep 1; exit 1 & sleep 1"))
    run.run(Step("other", 5, "", "sleep 0 & exit 1"))
    run.run(Step("fine", 5, "", "sleep 0 & sleep 0"))
    assert [of["outcome"] for of in run.outcomes] == ["failed", "failed", "passed"]


def test_cut_off_from_outside(tmp_path):
    """What a step has written so far is packed."""
    script = (
        "import sys; from pathlib import Path; from bench import evidence\n"
        "evidence.CALLS = {1: '    long 9 s: x\\n        echo begun; sleep 60\\n'}\n"
        "evidence.ROOT = Path(sys.argv[1])\n"
        "sys.exit(evidence.main(['--call', '1', '--out', sys.argv[1], '--commit', 'c0ffee']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=ROOT)
    log = tmp_path / "build/call-1/long.log"
    while not (log.exists() and log.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    with tarfile.open(tmp_path / "call-1.tar.xz") as archive:
        assert {"call-1/long.log", "call-1/steps.json"} == set(archive.getnames())


@pytest.mark.parametrize("call", evidence.CALLS)
def test_plan(call):
    steps = evidence.steps_of(call)
    assert len(steps) == evidence.CALLS[call].count(" s: ")
    assert len({step.name for step in steps}) == len(steps)
    text = evidence.plan(call, evidence.SECONDS[call])
    assert int(text.splitlines()[-1].split()[0]) <= evidence.SECONDS[call]
    for word in (
        " ".join(step.shell(of, folder="f", commit="c", epochs="1") for step in steps for of in (False, True))
        .replace(";", "")
        .split()
    ):
        if word.startswith(("bench/", "tests/")):
            path, _, name = word.partition("::")
            assert (ROOT / path).exists(), word
            assert not name or f"def {name}(" in (ROOT / path).read_text(), word


def test_every_step_has_a_rehearsal():
    for call in evidence.CALLS:
        for step in evidence.steps_of(call):
            text = step.shell(True, folder="f", commit="c", epochs="1")
            assert "compute-sanitizer" not in text
            assert "{" not in text
            assert "-m gpu" not in text
            if step.command.startswith("{bench}"):
                assert evidence.REHEARSED["small"] in text


def test_the_first_step_installs_what_the_others_import():
    code = "import sys; sys.modules['sigscale'] = None; import bench.evidence, bench.precompile"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_plan_is_printed(capsys):
    assert evidence.main(["--seconds", "20"]) == 0
    assert "15 s  LEFT OUT ceilings" in capsys.readouterr().out


def test_a_carried_cache_of_another_triton_is_not_used(tmp_path, monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(precompile, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(precompile, "KEY", tmp_path / "cache/key")
    monkeypatch.setattr(precompile, "ENVIRONMENT", {})
    monkeypatch.setattr(precompile, "triton_key", lambda: "triton 3.6")
    monkeypatch.setattr(precompile, "compile_all", lambda cases: compiled.append(cases) or 7)
    file = tmp_path / "cache.txz"
    assert precompile.main([str(file)]) == 0
    assert precompile.main([str(file), "--unpack"]) == 0
    assert compiled == [None]
    monkeypatch.setattr(precompile, "triton_key", lambda: "triton 3.9")
    assert precompile.main([str(file), "--unpack", "--cases", "1"]) == 0
    assert compiled == [None, 1]
    assert "is of triton 3.6, not triton 3.9: compiling" in capsys.readouterr().out


def test_what_is_taken(tmp_path):
    assert options.some_of(options.EXPONENTS)("10, 14,20") == ("10", "14", "20")
    assert options.some_of(options.MODES)("eager,graph") == ("eager", "graph")
    assert options.seconds("1e-3") == 1e-3
    assert options.file_to_write(str(tmp_path / "new.json")) == tmp_path / "new.json"


@pytest.mark.parametrize(
    ("kind", "text", "rule"),
    [
        (options.some_of(options.EXPONENTS), "", "one or more of 4, 5, 6, "),
        (options.some_of(options.EXPONENTS), "0", "one or more of 4, 5, 6, "),
        (options.some_of(options.EXPONENTS), "10,ten", "one or more of 4, 5, 6, "),
        (options.some_of(options.DTYPES), "int8,float32", "one or more of float32, bfloat16, float16, "),
        (options.some_of(options.MODES), "fast", "one or more of eager, compile, graph"),
        (options.seconds, "-1", "a positive number of seconds"),
        (options.seconds, "nan", "a positive number of seconds"),
        (options.seconds, "soon", "a positive number of seconds"),
        (options.file_to_write, "/nowhere/x.json", "a file in a folder that exists"),
    ],
)
def test_what_is_refused(kind, text, rule):
    with pytest.raises(ArgumentTypeError, match=rule) as error:
        kind(text)
    assert str(error.value).startswith(repr(text))


def test_pytest_ends_before_anything_is_collected():
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "--seconds", "never"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 4
    assert "--seconds: 'never': must be a positive number of seconds" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
