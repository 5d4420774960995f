"""What the layout promises: who imports whom, what an import needs, under which name `kernels` is found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    "_triton",
    "device",
    "math",
    "functions",
    "reference",
    "reference_learned",
    "reference_penalty",
    "reference_sketch",
    "reference_select",
    "launcher",
    "multi_tensor",
    "counters",
    "sketch",
    "summary",
    "select",
    "activation",
    "learned",
    "penalty",
    "convolution",
]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, relative ones with their dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            found |= {name + alias.name for alias in node.names} if node.module is None else {name}
    return found


def test_every_kernel_module_has_its_layer():
    assert {path.stem for path in (ROOT / "kernels").glob("*.py")} == {"__init__", *LAYERS}


@pytest.mark.parametrize("layer", LAYERS)
def test_kernels_import_downwards_and_only_torch_and_triton(layer):
    allowed = {f".{lower}" for lower in LAYERS[: LAYERS.index(layer)]}
    third_party = {"torch", "triton", "numpy"} if layer == "math" else {"torch", "triton"}
    for module in imports(ROOT / "kernels" / f"{layer}.py"):
        if module.startswith("."):
            assert module in allowed, f"{layer} imports {module}"
        else:
            top = module.split(".")[0]
            assert top in third_party or top in sys.stdlib_module_names, f"{layer} imports {module}"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_the_folder_refuses_its_bare_name():
    run = python("import kernels", ROOT)
    assert (
        "ImportError: this folder is the package sigscale.kernels, not 'kernels': run `pip install"
        in run.stderr
    )


def test_without_triton(tmp_path):
    """The package imports and computes on the CPU; a kernel is refused with the remedy."""
    code = """
import sys
sys.modules["triton"] = None
import torch, sigscale as ss
x = torch.randn(5, requires_grad=True)
ss.tanh(x).sum().backward()
torch.testing.assert_close(x.grad, torch.cosh(x.detach() / 2) ** -2)
from sigscale.kernels import device
device.takes_kernel = lambda x: True
try:
    ss.tanh(x.detach())
except ImportError as error:
    print(error)
"""
    run = python(code, tmp_path)
    assert run.returncode == 0, run.stderr
    assert "needs Triton, which is not installed here: pip install triton" in run.stdout


def test_a_plain_import_is_light(tmp_path):
    """Nothing is imported beyond what torch, triton and numpy bring."""
    code = """
import sys, torch, triton, triton.language.extra.libdevice, numpy
before = {name.split(".")[0] for name in sys.modules}
import sigscale
print(*{name.split(".")[0] for name in sys.modules} - before - sys.stdlib_module_names)
"""
    run = python(code, tmp_path)
    assert {name for name in run.stdout.split() if "editable" not in name} == {"sigscale"}, run.stderr
