"""What `mypy --strict` says of code that uses the package, by either kind of install (half a minute each)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parent.parent
SETTINGS = """
[mypy]
strict = True
[mypy-torch.*,numpy.*]
follow_imports = skip
"""
RIGHT = """
import torch
import sigscale as ss
from sigscale import nn as scaled

x = torch.ones(3)
ss.tanh(x, alpha=1.5, save="input")
layer: ss.nn.Tanh = ss.nn.Tanh(alpha=2.0, learnable=True)
recurrent: scaled.LSTM = ss.nn.LSTM(2, 3)
function: ss.ActivationFunction = ss.softsign
report: ss.ConversionReport = ss.scale_activations(layer, functions=("tanh", "sigmoid"))
entry: ss.ConversionEntry = report.changed[0]
ss.fold(layer)
ss.quantile(x, [0.5])
ss.init.large_uniform_(layer)
with ss.GradientMonitor(layer) as monitor:
    history: ss.GradientHistory = monitor.history()
ss.plot.gradients(monitor)
sketch = ss.QuantileSketch()
histogram: ss.Histogram = sketch.to_histogram()
print(ss.theory, ss.FUNCTIONS["tanh"], ss.__version__)
"""
WRONG = {
    "ss.tahn(x)": 'has no attribute "tahn"',
    "ss.nn.Tahn()": 'has no attribute "Tahn"',
    "ss.functional.tahn(x)": 'has no attribute "tahn"',
    "ss.tanh(x, aplha=2.0)": 'Unexpected keyword argument "aplha"',
    'ss.tanh(x, save="inputs")': "incompatible type",
    "ss.gradient_monitor": 'has no attribute "gradient_monitor"',
}


@pytest.fixture(scope="module", params=["installed", "editable"])
def mypy(request, tmp_path_factory):
    """Runs mypy on code, in an environment in which a copy of the package is installed."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "source"
    for part in ("sigscale", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "kernels" if part == "sigscale" else "")
        shutil.copytree(ROOT / part, source / part, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv.create(folder / "env", with_pip=False)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text("\n".join(path for path in sys.path if "-packages" in path))
    python = str(folder / "env" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *["-e"] * (request.param == "editable"), str(source)], check=True)
    shutil.rmtree(source / "build", ignore_errors=True)
    cache = str(tmp_path_factory.getbasetemp() / "mypy")
    (folder / "mypy.ini").write_text(SETTINGS)

    def run(code: str) -> str:
        (folder / "code.py").write_text(code)
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--python-executable",
            python,
            "--cache-dir",
            cache,
            "code.py",
        ]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout

    run.source, run.python = source, python
    return run


def test_the_public_api_is_declared(mypy):
    """Everything that is right passes, and every line that is wrong is an error."""
    found = mypy(RIGHT + "\n".join(WRONG))
    errors = [line for line in found.splitlines() if ": error: " in line]
    assert len(errors) == len(WRONG), found
    first = RIGHT.count("\n") + 1
    for number, (error, message) in enumerate(zip(errors, WRONG.values(), strict=True), first):
        assert error.startswith(f"code.py:{number}:")
        assert message in error


@pytest.mark.parametrize("mypy", ["editable"], indirect=True)
def test_new_files_of_an_editable_install_appear(mypy):
    for place in ("sigscale/new.py", "sigscale/monitor/new.py", "kernels/new.py"):
        (mypy.source / place).write_text("x: int = 3\n")
    code = "\n".join(
        [
            "from sigscale.kernels.new import x as a",
            "from sigscale.monitor.new import x as b",
            "from sigscale.new import x",
            "import sigscale as ss",
            "text: str = a + b + x",
        ]
    )
    assert "expression has type" in mypy(code)
    subprocess.run([mypy.python, "-c", code], check=True, cwd=mypy.source.parent)
