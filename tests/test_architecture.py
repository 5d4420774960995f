"""What the layout promises: who imports whom, what an import needs, under which name `kernels` is found."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [path for folder in ("kernels", "sigscale") for path in sorted((ROOT / folder).rglob("*.py"))]
FILES = [path for path in FILES if (ROOT / "sigscale" / "kernels") not in path.parents]  # the same once more


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


def imported_files(path: Path) -> set[Path]:
    """Files of the same folder tree, `kernels` or `sigscale`, that a file imports."""
    found = set()
    for name in imports(path):
        dots = len(name) - len(name.lstrip("."))
        if dots:
            place = path.parents[dots - 1].joinpath(*name[dots:].split("."))
            found |= {place.with_suffix(".py"), place / "__init__.py"}
    return (found & {*FILES}) - {path}


def circle(edges: dict[Path, set[Path]]) -> set[Path]:
    """Files that import each other, also for a type checker alone, and those that import them."""
    waiting = dict(edges)
    while free := [path for path, needs in waiting.items() if needs.isdisjoint(waiting)]:
        for path in free:
            del waiting[path]
    return {*waiting}


def test_no_circle_of_files():
    edges = {path: imported_files(path) for path in FILES}
    assert sum(map(len, edges.values())) > 100
    assert circle(edges) == set()
    a, b, c = map(Path, "abc")
    assert circle({a: {b}, b: {c}, c: {b}}) == {a, b, c}


def test_kernels_import_only_torch_and_triton():
    for path in (ROOT / "kernels").glob("*.py"):
        third_party = {"torch", "triton"} | ({"numpy"} if path.name == "math.py" else set())
        for name in imports(path):
            assert not name.startswith(".."), f"{path} imports {name}"
            top = name.split(".")[0] or "torch"
            assert top in third_party or top in sys.stdlib_module_names, f"{path} imports {name}"


def asks_for_the_accelerator(tree: ast.AST) -> list[str]:
    """Expressions that ask which accelerator there is, such as torch.cuda and x.is_cuda."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            modules = ("torch.cuda", "torch.version.hip", "torch.xpu", "torch.mps")
            if text in modules or node.attr in ("is_cuda", "is_xpu", "is_mps"):
                found.append(text)
        elif isinstance(node, ast.Constant) and node.value in ("cuda", "hip", "nccl"):
            found.append(repr(node.value))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if "cuda" in name]
    return found


def test_only_the_device_module_asks_for_the_accelerator():
    for path in FILES:
        asked = asks_for_the_accelerator(ast.parse(path.read_text()))
        assert bool(asked) == (path == ROOT / "kernels" / "device.py"), f"{path}: {asked}"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_the_folder_refuses_its_bare_name():
    code = """
for line in ("from kernels import functions", "import kernels; kernels.tanh", "import kernels.functions"):
    try:
        exec(line)
    except ImportError as error:
        print(error)
"""
    refused, again, missing = python(code, ROOT).stdout.splitlines()
    assert refused == again
    assert refused.startswith("this folder is the package sigscale.kernels, not 'kernels': run `pip install")
    assert missing == "No module named 'kernels.functions'"


def test_the_folder_stands_aside_for_its_namesake(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("from kernels.layer import version as __version__\n")
    (tmp_path / "kernels" / "layer.py").write_text("version = '1.0'\n")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import kernels; print(kernels.__version__)"
    run = python(code, ROOT)
    assert run.stdout == "1.0\n", run.stderr


def test_transformers_imports_in_the_checkout():
    """It probes for Hugging Face's package `kernels`, and finds none in the folder of that name."""
    pytest.importorskip("transformers")
    run = python("from transformers.utils import is_kernels_available as found; print(found())", ROOT)
    assert run.stdout in ("False\n", "True\n"), run.stderr


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
