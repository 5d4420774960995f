"""The public surface: names, documentation and pages, a function of one's own, and what bad input is told."""

from __future__ import annotations

import doctest
import fractions
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import sigscale as ss
from tests.oracles.toy import ALGEBRAIC
from tests.oracles.works_with import BEGIN, END, GUIDE, claims, marked, rendered

X = torch.ones(3)
TESTS = Path(__file__).parent
ROOT = TESTS.parent


@pytest.mark.parametrize(
    "alpha", [2, 2.0, np.float32(2.0), np.float64(2.0), np.int64(2), fractions.Fraction(2)]
)
@pytest.mark.interpreter
def test_any_real_number_is_an_alpha(alpha):
    assert torch.equal(ss.tanh(X, alpha), 2 * torch.tanh(X / 2))
    assert ss.nn.Tanh(alpha).alpha == 2.0


VALUES = [
    0.0,
    -0.0,
    -1.5,
    float("nan"),
    float("inf"),
    -float("inf"),
    1e30,
    1e-30,
    fractions.Fraction(10**400),
]
TYPES = ["2", True, None, 1 + 2j, [2.0]]


@pytest.mark.parametrize(
    ("alpha", "error"), [*((v, ValueError) for v in VALUES), *((v, TypeError) for v in TYPES)], ids=str
)
def test_bad_alpha(alpha, error):
    for call in (lambda: ss.tanh(X, alpha), lambda: ss.nn.Sigmoid(alpha)):
        with pytest.raises(error, match=f"alpha must .*got .*{re.escape(repr(alpha))}.*: .+"):
            call()


@pytest.mark.parametrize(
    ("x", "received", "remedy"),
    [
        (torch.arange(3), "dtype torch.int64", r"x.float\(\)"),
        (torch.ones(3, dtype=torch.bool), "dtype torch.bool", r"x.float\(\)"),
        (torch.ones(3, dtype=torch.complex64), "dtype torch.complex64", "real and the imaginary part"),
        (torch.ones(3).to(torch.float8_e4m3fn), "dtype torch.float8_e4m3fn", r"x.float\(\)"),
        (X.to_sparse(), "layout torch.sparse_coo", r"x.to_dense\(\)"),
        (torch.eye(3).to_sparse_csr(), "layout torch.sparse_csr", r"x.to_dense\(\)"),
        ([1.0, 2.0], "list", "torch.as_tensor"),
        (np.ones(3), "ndarray", "torch.as_tensor"),
        (1.0, "float", "torch.as_tensor"),
        (None, "NoneType", "torch.as_tensor"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.interpreter
def test_bad_input(x, received, remedy):
    for call in (ss.arctan, ss.nn.Arctan()):
        message = rf"arctan\(\) takes a dense tensor .*got {received}.*: .*{remedy}"
        with pytest.raises(TypeError, match=message):
            call(x)


@pytest.mark.filterwarnings("ignore")
def test_quantized_input():
    x = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    with pytest.raises(TypeError, match=r"got dtype torch.quint8: .*x.dequantize\(\)"):
        ss.tanh(x)


@pytest.mark.parametrize("save", ["x", "Input", "", 1, True, ["input"]])
def test_bad_save(save):
    for call in (lambda: ss.tanh(X, save=save), lambda: ss.nn.Tanh(save=save)):
        message = 'save must be "input", "output" or None .*got ' + re.escape(repr(save))
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("place", "name", "message"),
    [
        (ss, "tahn", "'sigscale' has no attribute 'tahn': it has tanh, sigmoid, arctan"),
        (ss, "logsigmoid", r"no attribute 'logsigmoid': it is sigscale\.sigmoid"),
        (ss.nn, "Tahn", "no attribute 'Tahn'"),
    ],
)
def test_unknown_names(place, name, message):
    with pytest.raises(AttributeError, match=message):
        getattr(place, name)
    with pytest.raises(ValueError, match="unknown function 'tahn': choose one of tanh, sigmoid, arctan, so"):
        ss.FUNCTIONS["tahn"]


@pytest.mark.gpu
def test_gradient_from_another_device():
    y = ss.tanh(torch.ones(3, device="cuda", requires_grad=True))
    with pytest.raises(RuntimeError, match="device"):
        y.backward(torch.ones(3))


def documented() -> dict[str, Any]:
    """Every public function and class whose documentation has an example, by its name in `sigscale`."""
    places = {"": ss, "nn.": ss.nn, "init.": ss.init, "plot.": ss.plot}
    places |= {"theory.": ss.theory, "theory.exact.": ss.theory.exact}
    found = {}
    for prefix, place in places.items():
        for name in getattr(place, "__all__", dir(place)):
            each = getattr(place, name)
            if "Example:" in (each.__doc__ or "") and getattr(each, "__module__", "").startswith("sigscale"):
                found[prefix + name] = each
    return found


DOCUMENTED = documented()
PARTS = {
    **dict.fromkeys(
        (*ss.FUNCTIONS, *(f"nn.{ss.nn.class_name(name)}" for name in ss.FUNCTIONS)),
        ("alpha * f(x / alpha)", "Args:", "Source: L. Ven and J. Lederer", "eq. (1)"),
    ),
    **dict.fromkeys(("GradientMonitor", "GradientHistory", "plot.gradients"), ("Args:",)),
    "fold": ("Args:", "Raises:", "Source: L. Ven and J. Lederer", "Sec. 2.3"),
    "WeightPenalty": ("Keras's", "Source: L. Ven and J. Lederer"),
    "theory": ("Returns:", "Source: ", "arXiv 2106.02260"),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documentation(name):
    """Examples run, those of methods as well; what stems from the paper says so."""
    for part in PARTS.get(name, PARTS["theory"] if name.startswith("theory.") else ()):
        assert part in DOCUMENTED[name].__doc__
    globs = {"theory": ss.theory, "mpmath": mpmath}
    for example in doctest.DocTestFinder().find(DOCUMENTED[name], name, globs=globs, module=False):
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example).failed == 0


def test_documented_names():
    theory = {f"theory.{name}" for name in ("network", "theorem_1", "theorem_2", "exact.gradient")}
    others = {"nn.GRU", "init.small_normal_", "plot.gradients", "quantile", "GradientMonitor", "fold"}
    assert {*ss.FUNCTIONS, *theory, *others} <= DOCUMENTED.keys()
    assert {*ss.FUNCTIONS} <= {*dir(ss)} & {*ss.__all__}
    assert "logsigmoid" in ss.sigmoid.__doc__  # the paper's name


@pytest.mark.parametrize("name", list(ss.FUNCTIONS))
@pytest.mark.interpreter
def test_facts(name):
    """The registry's facts hold for the function itself."""
    function, activation = ss.FUNCTIONS[name], getattr(ss, name)
    x = torch.linspace(-1e4, 1e4, 20001, dtype=torch.float64)
    y = activation(x, 1.0)
    assert function.lower <= y.min()
    assert y.max() <= function.upper
    assert y.max() > function.upper - 2e-4
    assert y.min() < function.lower + 2e-4
    assert y.diff().ge(0).all()
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    at_zero = activation(zero, 1.0)
    at_zero.backward()
    assert at_zero.item() == function.value_at_zero
    assert zero.grad.item() == pytest.approx(function.slope_at_zero, rel=1e-15)
    center = {"odd": 0.0, "odd about (0, 1/2)": 0.5}[function.symmetry]
    torch.testing.assert_close(y.flip(0) - center, center - y)


def test_repr_shows_what_was_chosen():
    assert repr(ss.nn.Softsign(0.5, save="input")) == "Softsign(alpha=0.5, save='input')"
    assert repr(ss.nn.Tanh()) == "Tanh(alpha=2.0)"


OF_ANY_FUNCTION = ("activations", "quantiles/test_grad_sketch.py", "theory", "test_api.py")


@pytest.fixture
def toy():
    if "algebraic" in ss.FUNCTIONS:  # by the plugin
        yield ss.FUNCTIONS["algebraic"]
        return
    yield ss.FUNCTIONS.register(ALGEBRAIC)
    ss.FUNCTIONS.unregister("algebraic")


@pytest.mark.interpreter
@pytest.mark.usefixtures("toy")
def test_end_to_end(device):
    layer = ss.nn.Algebraic(alpha=1.7)
    assert repr(layer) == "Algebraic(alpha=1.7)"
    assert "u / sqrt(1 + u^2)" in ss.algebraic.__doc__
    for save in ("input", "output"):
        x = torch.linspace(-3, 3, 11, dtype=torch.float64, device=device).requires_grad_()
        y = ss.algebraic(x, 1.7, save=save)
        torch.testing.assert_close(y, x / torch.sqrt(1 + (x / 1.7) ** 2))
        assert torch.autograd.gradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
        assert torch.autograd.gradgradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
    x = torch.randn(1000, device=device)
    torch.testing.assert_close(layer(x), x / torch.sqrt(1 + (x / 1.7) ** 2))


@pytest.mark.long
def test_suite_on_registered_function():
    """Registered before collection, it goes through every test that is parametrized by the registry.

    Through the interpreter, `tests/kernels/test_interpreter.py` does that.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.oracles.toy"]
    command += ["-m", "not gpu", "-k", "algebraic", *(TESTS / suite for suite in OF_ANY_FUNCTION)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_XDIST_WORKER"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) >= 30, run.stdout


def test_registering(toy):
    with pytest.raises(ValueError, match=r"cannot register 'algebraic'.*not yet taken"):
        ss.FUNCTIONS.register(toy)
    ss.FUNCTIONS.unregister("algebraic")
    assert not hasattr(ss, "algebraic")
    assert not hasattr(ss.nn, "Algebraic")
    ss.FUNCTIONS.register(toy)


PAGES = ("README.md", "examples/README.md")
MANY = ("README.md", "examples/README.md", "examples/cifar10/README.md", "bench/README.md", "bench/NOTES.md")


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", MANY)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_fits_one_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_table_is_that_of_the_tests():
    table = GUIDE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == rendered(marked()), "run pytest -m works_with --works-with"


def test_unknown_cells():
    with pytest.raises(ValueError, match=r"got 'FSDP3', 'monitor'"):
        [*claims("FSDP3", "monitor")]
