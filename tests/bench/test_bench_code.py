"""The hash of the code behind a result: what counts, which files, and what has changed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import codehash
import stages

KERNEL = '''"""Adds."""

def add(x, y):  # quickly
    """Of numbers.

    Two of them.
    """
    return x + y
'''


@pytest.fixture
def repository(tmp_path):
    files = {
        "kernels/__init__.py": KERNEL,
        "sigscale/__init__.py": "import kernels\n",
        "sigscale/inner/nn.py": "x = 1\n",
        "bench/test_speed.py": "import numpy\nfrom cases import CASES\nfrom examples.toy import data\n",
        "bench/cases.py": "import measure\nCASES = 1\n",
        "bench/measure.py": "def later():\n    import late\n",
        "bench/late.py": "",
        "bench/other.py": "",
        "examples/toy/__init__.py": "",
        "examples/toy/data.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def recorded(repository):
    return codehash.record(["bench/test_speed.py"], repository)


def test_the_files_are_the_package_and_what_is_imported(repository):
    assert recorded(repository)["files"].keys() == {
        *("kernels/__init__.py", "sigscale/__init__.py", "sigscale/inner/nn.py"),
        *("bench/test_speed.py", "bench/cases.py", "bench/measure.py", "bench/late.py"),
        *("examples/toy/__init__.py", "examples/toy/data.py"),
    }


@pytest.mark.parametrize(
    "text",
    [
        KERNEL.replace("\n", "\r\n"),
        KERNEL.replace("  # quickly", ""),
        KERNEL.replace("Of numbers.", "Of any two numbers, without rounding."),
        KERNEL.replace("\n\n", "\n\n\n"),
        KERNEL.replace("y):", "y):  "),
        "# Copyright\n" + KERNEL,
    ],
    ids=["line ends", "comment", "docstring", "blank lines", "spaces", "header"],
)
def test_what_does_not_count(repository, text):
    before = recorded(repository)
    (repository / "kernels/__init__.py").write_bytes(text.encode())
    assert recorded(repository) == before
    assert codehash.changed(before, repository) == []


@pytest.mark.parametrize(
    "text",
    [
        KERNEL.replace("x + y", "x - y"),
        KERNEL.replace("    return", "        return"),
        KERNEL.replace("return x + y", 'return "# x"'),
        KERNEL.replace("    return", '    asm = """a"""\n    return'),
        "def broken(:\n",
    ],
)
def test_what_counts(repository, text):
    before = recorded(repository)
    (repository / "kernels/__init__.py").write_text(text)
    assert codehash.changed(before, repository) == ["kernels/__init__.py"]
    after = recorded(repository)
    assert after["hash"] != before["hash"]


def test_a_hash_sign_in_a_string_is_no_comment():
    assert codehash.essence('x = "# y"  # z\n') == 'x = "# y"'


def test_a_string_that_shares_its_line_stays():
    assert codehash.essence('def f(): "words"; return 1\n') == 'def f(): "words"; return 1'


def test_files_that_are_gone_new_or_not_involved(repository):
    before = recorded(repository)
    (repository / "bench/other.py").write_text("x = 2\n")
    (repository / "bench/late.py").unlink()
    (repository / "kernels/new.py").write_text("")
    assert codehash.changed(before, repository) == ["bench/late.py", "kernels/new.py"]


def test_the_order_of_files_does_not_count():
    files = {"b.py": "1", "a.py": "2"}
    assert codehash.combined(files) == codehash.combined(dict(reversed(files.items())))
    assert codehash.combined(files) != codehash.combined({"b.py": "2", "a.py": "1"})


def test_of_the_stages(tmp_path):
    """Each has code of its own behind it, and no presentation."""
    made = stages.stages(stages.Options(tmp_path, gpu=False))
    codes = {stage.name: codehash.record(stage.starts)["files"] for stage in made}
    assert "bench/cases.py" in codes["kernels"]
    assert "bench/quantile_cases.py" in codes["quantiles"]
    assert "examples/cifar10/train.py" in codes["figures"]
    assert "tests/test_sketch.py" in codes["sanitize"]
    assert not any(file.startswith("bench/") for file in codes["figures"])
    for name, files in codes.items():
        assert "kernels/activation.py" in files, name
        assert not {"bench/report.py", "bench/evidence.py"} & files.keys() or name in (
            "gpu-tests",
            "sanitize",
        )
