"""The benchmarks' command line: what is taken, and what is refused before anything is timed."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

import options
import table4


def test_what_is_taken(tmp_path):
    assert options.exponents("10, 14,20") == (10, 14, 20)
    assert options.dtypes("float32, bfloat16") == ("float32", "bfloat16")
    assert options.modes("eager,graph") == "eager,graph"
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
        ("dtypes", "", "one of float16, bfloat16, float32, float64"),
        ("dtypes", "int8,float32", "one of float16, bfloat16, float32, float64"),
        ("modes", "fast", "one of eager, compile, graph"),
        ("seconds", "-1", "a positive number of seconds"),
        ("seconds", "nan", "a positive number of seconds"),
        ("seconds", "soon", "a positive number of seconds"),
        ("count", "0", "a whole number from 1 on"),
        ("count", "-1", "a whole number from 1 on"),
        ("device", "gpu", "must be cpu, or cuda"),
        ("device", "cuda:77", "must be cpu, or cuda"),
        ("device", "meta", "must be cpu, or cuda"),
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
    command = [sys.executable, "-m", "pytest", BENCH, "--benchmark-only", "-q", "--seconds", "never"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parent)
    assert ended.returncode == 4
    assert "--seconds: 'never': must be a positive number of seconds" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_table_4_asks_for_its_folder_first(capsys):
    with pytest.raises(SystemExit):
        table4.arguments_of_pytest(["--out", "/nowhere/x.json"])
    assert (
        "argument --out: '/nowhere/x.json': must be a file in a folder that exists" in capsys.readouterr().err
    )
