"""The benchmarks' command line: what is taken, and what is refused before anything is timed."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

from bench.harness import options

ROOT = Path(__file__).parents[2]


def test_what_is_taken(tmp_path):
    assert options.exponents("10, 14,20") == (10, 14, 20)
    assert options.dtypes("float32, bfloat16") == ("float32", "bfloat16")
    assert options.modes("eager,graph") == ("eager", "graph")
    assert options.seconds("1e-3") == 1e-3
    assert options.count("2") == 2
    assert options.device("cpu") == torch.device("cpu")
    assert options.folder(str(tmp_path)) == tmp_path
    assert options.file_to_write(str(tmp_path / "new.json")) == tmp_path / "new.json"


@pytest.mark.parametrize(
    ("option", "text", "rule"),
    [
        ("exponents", "", "whole numbers from 4 to 40"),
        ("exponents", "0", "whole numbers from 4 to 40"),
        ("exponents", "60", "whole numbers from 4 to 40"),
        ("exponents", "ten", "whole numbers from 4 to 40"),
        ("dtypes", "", "one or more of float16, bfloat16, float32, float64"),
        ("dtypes", "int8,float32", "one or more of float16, bfloat16, float32, float64"),
        ("modes", "fast", "one or more of eager, compile, graph"),
        ("seconds", "-1", "a positive number of seconds"),
        ("seconds", "nan", "a positive number of seconds"),
        ("seconds", "soon", "a positive number of seconds"),
        ("count", "0", "a whole number >= 1"),
        ("count", "-1", "a whole number >= 1"),
        ("device", "gpu", "must be one of cpu"),
        ("device", "cuda:77", "must be one of cpu"),
        ("device", "meta", "must be one of cpu"),
        ("folder", "/nowhere", "name one that exists"),
        ("file_to_write", "/nowhere/x.json", "a file in a folder that exists"),
    ],
)
def test_what_is_refused(option, text, rule):
    with pytest.raises(ArgumentTypeError, match=rule) as error:
        getattr(options, option)(text)
    assert str(error.value).startswith(repr(text))


def test_pytest_ends_before_anything_is_collected():
    pytest.importorskip("pytest_benchmark")
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "-q", "--seconds", "never"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 4
    assert "--seconds: 'never': must be a positive number of seconds" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
