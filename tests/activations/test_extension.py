"""A function registered here works everywhere: one entry in the registry is all it takes."""

from __future__ import annotations

import pytest
import torch

import sigscale as ss
from sigscale.kernels._optional import tl, triton
from sigscale.kernels.registry import Function


@triton.jit
def _value(x, alpha, inv, DTYPE: tl.constexpr):
    u = x * inv.to(x.dtype)
    return x * tl.rsqrt(1.0 + u * u)


@triton.jit
def _slope(x, alpha, inv, DTYPE: tl.constexpr):
    u = x * inv.to(x.dtype)
    r = tl.rsqrt(1.0 + u * u)
    return r * r * r


@triton.jit
def _slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    t = y * inv.to(y.dtype)
    c = 1.0 - t * t
    return c * tl.sqrt(c)


@pytest.fixture
def toy():
    function = Function(
        name="algebraic",
        formula="u / sqrt(1 + u^2)",
        value=_value,
        slope=_slope,
        slope_from_output=_slope_from_output,
        torch_value=lambda u: u * torch.rsqrt(1 + u * u),
        torch_slope=lambda u: torch.rsqrt(1 + u * u) ** 3,
        torch_gradient_of_value=lambda g, t: g * (1 - t * t) ** 1.5,
        lower=-1.0,
        upper=1.0,
        value_at_zero=0.0,
        slope_at_zero=1.0,
        symmetry="odd",
    )
    yield ss.FUNCTIONS.register(function)
    ss.FUNCTIONS.unregister("algebraic")


def test_end_to_end(toy, device):
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


def test_gone_when_unregistered(toy):
    ss.FUNCTIONS.unregister("algebraic")
    assert not hasattr(ss, "algebraic")
    assert not hasattr(ss.nn, "Algebraic")
    ss.FUNCTIONS.register(toy)


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match=r"cannot register 'algebraic'.*not yet taken"):
        ss.FUNCTIONS.register(toy)
