"""The benchmarks' command line: what is taken, and what is refused before anything is timed."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from bench.harness import options

ROOT = Path(__file__).parents[2]


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
