"""The public surface: names, documentation, and what bad input is told."""

from __future__ import annotations

import doctest
import fractions
import re
from typing import Any

import mpmath
import numpy as np
import pytest
import torch

import sigscale as ss

X = torch.ones(3)


@pytest.mark.parametrize(
    "alpha", [2, 2.0, np.float32(2.0), np.float64(2.0), np.int64(2), fractions.Fraction(2)]
)
@pytest.mark.interpreter
def test_any_real_number_is_an_alpha(alpha):
    assert torch.equal(ss.tanh(X, alpha), 2 * torch.tanh(X / 2))
    assert ss.nn.Tanh(alpha).alpha == 2.0


@pytest.mark.parametrize(
    ("alpha", "error", "received"),
    [
        (0.0, ValueError, "0.0"),
        (-0.0, ValueError, "-0.0"),
        (-1.5, ValueError, "-1.5"),
        (float("nan"), ValueError, "nan"),
        (float("inf"), ValueError, "inf"),
        (-float("inf"), ValueError, "-inf"),
        (1e30, ValueError, r"1e\+30"),
        (fractions.Fraction(10**400), ValueError, "Fraction"),
        (1e-30, ValueError, "1e-30"),
        ("2", TypeError, "'2' of type str"),
        (True, TypeError, "True of type bool"),
        (None, TypeError, "None of type NoneType"),
        (1 + 2j, TypeError, "complex"),
        ([2.0], TypeError, "list"),
    ],
)
def test_bad_alpha(alpha, error, received):
    for call in (lambda: ss.tanh(X, alpha), lambda: ss.nn.Sigmoid(alpha)):
        with pytest.raises(error, match=f"alpha must .*got .*{received}.*: .+"):
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
