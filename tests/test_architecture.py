"""What the layout promises: who imports whom, what an import needs, under which name `kernels` is found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    "_optional",
    "coefficients",
    "elementary",
    "registry",
    "functions",
    "pointwise",
    "constants",
    "bins",
    "counters",
    "sketch",
    "learned",
    "select",
    "multi_tensor",
    "penalty",
    "tables",
    "summary",
    "summarize",
    "cached",
    "reference",
    "reference_counts",
    "reference_learned",
    "reference_penalty",
    "launch",
    "launch_penalty",
    "launch_learned",
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
    third_party = {"torch", "triton", "numpy"} if layer == "elementary" else {"torch", "triton"}
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
from sigscale.kernels import launch
launch.takes_kernel = lambda x: True
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


def imported_files(path: Path) -> set[Path]:
    """Files of the package, but for kernels, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = path.parents[node.level - 1]
        for name in [node.module] if node.module else [alias.name for alias in node.names]:
            place = folder.joinpath(*name.split("."))
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()}
    return {file for file in found if "kernels" not in file.relative_to(ROOT).parts}


def test_no_circle_of_files():
    """Nor of files that import each other for a type checker alone."""
    files = [p for p in (ROOT / "sigscale").rglob("*.py") if "kernels" not in p.relative_to(ROOT).parts]
    waiting = {path: imported_files(path) - {path} for path in files}
    while waiting:
        free = [path for path, needs in waiting.items() if needs.isdisjoint(waiting)]
        assert free, f"a circle in {', '.join(str(path.relative_to(ROOT)) for path in waiting)}"
        for path in free:
            del waiting[path]
