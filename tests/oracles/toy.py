"""A function that the package does not have, u / sqrt(1 + u^2), as a user would add it."""

from __future__ import annotations

import torch

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


ALGEBRAIC = Function(
    name="algebraic",
    formula="u / sqrt(1 + u^2)",
    value=_value,
    slope=_slope,
    slope_from_output=_slope_from_output,
    torch_value=lambda u: u * torch.rsqrt(1 + u * u),
    torch_slope=lambda u: torch.rsqrt(1 + u * u) ** 3,
    torch_gradient_of_value=lambda g, t: g * (1 - t * t) ** 1.5,
    mp_value=lambda u: u / u.context.sqrt(1 + u * u),
    mp_slope=lambda u: u.context.sqrt(1 + u * u) ** -3,
    kernel_ulp=3.0,
    torch_ulp=3.0,
    lower=-1.0,
    upper=1.0,
    value_at_zero=0.0,
    slope_at_zero=1.0,
    symmetry="odd",
)
