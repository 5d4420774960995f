"""A function that the package does not have, u / sqrt(1 + u^2), as a user would add it.

As a plugin (`pytest -p tests.oracles.toy`) it registers the function before tests are collected.
"""

from __future__ import annotations

import torch

import sigscale as ss
from sigscale.kernels._triton import tl, triton
from sigscale.kernels.functions import Function


@triton.jit
def _clamped(u):
    """u where its square is a number, NaN included."""
    return tl.where(tl.abs(u) > 1e9, tl.where(u > 0, 1e9, -1e9), u)


@triton.jit
def _value(x, alpha, inv, DTYPE: tl.constexpr):
    u = _clamped(x * inv.to(x.dtype))
    return alpha.to(x.dtype) * (u * tl.rsqrt(1.0 + u * u))


@triton.jit
def _slope(x, alpha, inv, DTYPE: tl.constexpr):
    u = x * inv.to(x.dtype)
    r = tl.rsqrt(1.0 + u * u)
    return r * r * r


@triton.jit
def _slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    t = y * inv.to(y.dtype)
    c = 1.0 - t * t
    c = tl.where(c < 0, 0.0, c)
    return c * tl.sqrt(c)


@triton.jit
def _alpha_slope(x, alpha, inv, DTYPE: tl.constexpr):
    u = _clamped(x * inv.to(tl.float32))
    t = u * tl.rsqrt(1.0 + u * u)
    return t * t * t


ALGEBRAIC = Function(
    name="algebraic",
    formula="u / sqrt(1 + u^2)",
    value=_value,
    slope=_slope,
    slope_from_output=_slope_from_output,
    alpha_slope=_alpha_slope,
    torch_value=lambda u: u.clamp(-1e9, 1e9) * torch.rsqrt(1 + u.clamp(-1e9, 1e9) ** 2),
    torch_slope=lambda u: torch.rsqrt(1 + u * u) ** 3,
    torch_alpha_slope=lambda u, s: (u * torch.rsqrt(1 + u * u)) ** 3,
    torch_gradient_of_value=lambda g, t: g * (1 - t * t).clamp(min=0) ** 1.5,
    mp_value=lambda u: u / u.context.sqrt(1 + u * u),
    mp_slope=lambda u: u.context.sqrt(1 + u * u) ** -3,
    kernel_ulp=5.0,
    torch_ulp=5.0,
    lower=-1.0,
    upper=1.0,
    value_at_zero=0.0,
    slope_at_zero=1.0,
    symmetry="odd",
)


def pytest_configure() -> None:
    ss.FUNCTIONS.register(ALGEBRAIC)
