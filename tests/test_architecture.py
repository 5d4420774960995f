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
    "launcher",
    "math",
    "functions",
    "reference",
    "reference_penalty",
    "launcher",
    "reference_sketch",
    "reference_select",
    "multi_tensor",
    "counters",
    "sketch",
    "summary",
    "record",
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


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Modules that import each other while they are loaded, in order; empty if there are none."""
    done: set[str] = set()

    def search(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        found: list[str] = []
        if module not in done:
            found = next((c for to in sorted(edges[module]) if (c := search(to, [*path, module]))), [])
            done.add(module)
        return found

    return next((found for module in edges if (found := search(module, []))), [])


def test_no_circle_among_kernel_files():
    edges = {
        layer: {name[1:] for name in imports(ROOT / "kernels" / f"{layer}.py") if name.startswith(".")}
        for layer in LAYERS
    }
    assert circle(edges) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_kernels_never_import_the_rest_of_sigscale():
    for path in (ROOT / "kernels").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith(("..", "sigscale"))], path


def asks_for_the_accelerator(tree: ast.AST) -> list[str]:
    """Expressions that ask which accelerator there is, such as torch.cuda and x.is_cuda."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            if text in ("torch.cuda", "torch.version.hip", "torch.xpu", "torch.mps") or node.attr in (
                "is_cuda",
                "is_xpu",
                "is_mps",
            ):
                found.append(text)
        elif isinstance(node, ast.Constant) and node.value in ("cuda", "hip", "nccl"):
            found.append(repr(node.value))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            found += [name for name in names if "cuda" in name]
    return found


def test_only_the_device_module_asks_for_the_accelerator():
    for folder in ("kernels", "sigscale"):
        for path in (ROOT / folder).rglob("*.py"):
            asked = asks_for_the_accelerator(ast.parse(path.read_text()))
            assert bool(asked) == (path == ROOT / "kernels" / "device.py"), f"{path}: {asked}"


def python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("code", ["from kernels import functions", "import kernels; kernels.tanh"])
def test_the_folder_refuses_its_bare_name(code):
    run = python(code, ROOT)
    assert (
        "ImportError: this folder is the package sigscale.kernels, not 'kernels': run `pip install"
        in run.stderr
    )
    assert "No module named 'kernels.functions'" in python("import kernels.functions", ROOT).stderr


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
