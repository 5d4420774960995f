"""THE place where an activation lives: device math, plain-PyTorch math, exact values and facts of every f.

The paper's alpha-scaled activation, eq. (1), is f_alpha(z) = alpha f(z / alpha); below, u = x / alpha.
To add a function, write its device functions and register one `Function`. Modules, kernels, tests, benchmarks
and tables iterate over the registry.

Device functions receive x (or y) in the type that arithmetic runs in (fp32, or fp64 for fp64 tensors), alpha
and 1 / alpha as fp64 scalars, and `DTYPE`, the tensor's own type, which sets the accuracy needed: at a GPU's
memory speed, bf16 leaves 31 instructions per element and needs 2^-17; fp32 leaves 62 and needs a few ulp.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._triton import tl, triton
from .math import (
    ARCTAN,
    ARCTAN_BF16,
    ARCTAN_NEAR_ZERO,
    HALF_PI,
    LOG2E,
    SIN,
    TANH,
    TANH_ALPHA,
    TANH_BF16,
    TANH_FP16,
    TANH_NEAR_ZERO,
    at_least,
    at_most,
    atan64,
    clamp,
    copysign,
    exp2,
    exp2_accurate,
    exp_minus,
    fma,
    logistic_slope,
    polynomial,
    product,
    quotient,
    rounded_off,
    sin64,
    split,
    tanh64,
)


class Scale(NamedTuple):
    """What alpha means for tensors of a dtype.

    Numbers are 0-d tensors here, since a Python number costs an operation a microsecond to wrap.
    """

    alpha: Tensor
    exactly: float | Tensor  # alpha as it was given: a number, or for each channel in float64
    is_exact: bool  # whether dividing by alpha rounds nothing
    over_alpha: Callable[[Tensor, Tensor], Tensor]  # x / alpha, written to memory of the computing type
    slope_reach: float  # of abs(u), beyond which the slope is computed in fp64

    def at(self, far: Tensor, x: Tensor) -> Tensor:
        """x / alpha in fp64 where `far`."""
        alpha = self.exactly
        return x[far].double() / (alpha.expand_as(x)[far] if isinstance(alpha, Tensor) else alpha)


@dataclass(frozen=True, eq=False)
class Function:
    """A sigmoid-type function f: its device math, plain-PyTorch math, exact values and facts.

    `value`, `slope` and `slope_from_output` are device functions of (x or y, alpha, 1 / alpha, DTYPE) that
    return alpha f(x / alpha), f'(x / alpha) from x, and f'(x / alpha) from y = alpha f(x / alpha).
    `alpha_slope` is the derivative with respect to alpha, f(u) - u f'(u) at u = x / alpha, in fp32: for
    functions where the difference of value and slope cancels.

    In PyTorch, `torch_value(u)` is f(u), `torch_slope(u)` is f'(u), without cancellation, and
    `torch_gradient_of_value(g, t)` is g f'(u) from t = f(u), all differentiable and out of place. Where that
    is faster, `torch_value_(u)`, `torch_gradient_(g, u)` and `torch_gradient_of_value_(g, t)` leave f(u),
    g f'(u) and g f'(u) in the memory of u or t, which they own. `slope_reach` (of abs(u)) says how far fp32
    is as accurate as the package promises for a u that was rounded; beyond, slopes are evaluated in fp64.
    Where alpha f(u) suffers too much from that rounding, or takes fewer operations, `torch_scaled_value(x,
    scale, out)` gives it in `out` or in memory of its own, of a dtype that may be wider. Where f(u) - u f'(u)
    cancels or is slow, `torch_alpha_slope(u, f'(u))` gives it in fp32. `torch_by_table` says that looking up
    the result of a 16-bit value is faster than computing it.

    `mp_value` and `mp_slope` are f and f' of an mpmath number, at its precision; they find mpmath's functions
    in the number's `context`. They define what the package computes, and the tests hold it to them. In fp32,
    alpha f(x / alpha) errs by at most `kernel_ulp` units in the last place in the kernel and by `torch_ulp`
    in plain PyTorch.

    `torch_aliases` are PyTorch's other names for f.
    """

    name: str
    formula: str
    value: Any
    slope: Any
    slope_from_output: Any
    torch_value: Callable[[Tensor], Tensor]
    torch_slope: Callable[[Tensor], Tensor]
    torch_gradient_of_value: Callable[[Tensor, Tensor], Tensor]
    mp_value: Callable[[Any], Any]
    mp_slope: Callable[[Any], Any]
    kernel_ulp: float
    torch_ulp: float
    lower: float
    upper: float
    value_at_zero: float
    slope_at_zero: float
    symmetry: str
    alpha_slope: Any = None
    torch_value_: Callable[[Tensor], Tensor] | None = None
    torch_gradient_: Callable[[Tensor, Tensor], Tensor] | None = None
    torch_gradient_of_value_: Callable[[Tensor, Tensor], Tensor] | None = None
    torch_alpha_slope: Callable[[Tensor, Tensor], Tensor] | None = None
    torch_scaled_value: Callable[[Tensor, Scale, Tensor], Tensor] | None = None
    torch_by_table: bool = False
    slope_reach: float = math.inf
    paper_name: str = ""
    torch_aliases: tuple[str, ...] = ()


class Registry(Mapping[str, Function]):
    """The functions by name, in the order in which they were registered."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def register(self, function: Function) -> Function:
        """Add a function under its name, which must be a new Python identifier."""
        name = function.name
        if not name.isidentifier() or name in self._functions:
            raise ValueError(
                f"cannot register {name!r}: the name must be an identifier that is not yet taken"
            )
        self._functions[name] = function
        return function

    def unregister(self, name: str) -> None:
        del self._functions[name]

    def __getitem__(self, name: str) -> Function:
        try:
            return self._functions[name]
        except (KeyError, TypeError):
            known = ", ".join(self._functions)
            raise ValueError(f"unknown function {name!r}: choose one of {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


@triton.jit
def tanh_value(x, alpha, inv, DTYPE: tl.constexpr):
    # Near 0, x + x p keeps subnormals; beyond, alpha - 2 alpha / (1 + e^(2|u|)), where an overflowing
    # exponential is harmless. Leaving the sign of u in the exponent (bf16) is cheaper and doubles the error
    # for u < 0.
    if DTYPE == tl.float64:
        y = alpha * tanh64(x / alpha)
    else:
        a = alpha.to(tl.float32)
        high, low = split(inv * (2 * LOG2E))
        if DTYPE == tl.bfloat16:
            v = x * high
        else:
            v = product(at_most(tl.abs(x), 64.0 * a), high, low)
        w = v * v
        far = fma(quotient(1.0, 1.0 + exp2(v)), -2.0 * a, a)
        if DTYPE == tl.bfloat16:
            y = tl.where(tl.abs(v) < 0.5 * LOG2E, x * fma(w, polynomial(w, TANH_BF16), 1.0), far)
        elif DTYPE == tl.float16:
            near = x * fma(w, polynomial(w, TANH_FP16), 1.0)
            y = tl.where(v < 0.6 * LOG2E, near, copysign(far, x))
        else:
            y = copysign(tl.where(v < 2.5 * LOG2E, fma(x, w * polynomial(w, TANH), x), far), x)
    return y


@triton.jit
def tanh_slope(x, alpha, inv, DTYPE: tl.constexpr):
    # 4 e / (1 + e)^2 with e = e^(-2|u|): never 1 - t^2, which is 0 or noise where tanh saturates.
    if DTYPE == tl.float64:
        e4 = 4.0 * tl.exp(-2.0 * tl.abs(x / alpha))
    else:
        e4 = exp_minus(tl.abs(x), alpha, inv * 2.0, 2.0, DTYPE)
    return logistic_slope(e4, 0.25)


@triton.jit
def tanh_slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    # alpha may have been rounded up in y, and a slope must not become negative.
    t = y * inv.to(y.dtype)
    return at_least(fma(-t, t, 1.0), 0.0)


@triton.jit
def tanh_alpha_slope(x, alpha, inv, DTYPE: tl.constexpr):
    # t - u (1 - t^2) = 1 - 4 e r (1/2 + |u| r) for u > 0, with e as in the slope and r = 1 / (1 + e).
    m = tl.abs(x)
    u = at_most(m * inv.to(tl.float32), 64.0)
    w = u * u
    e4 = exp_minus(m, alpha, inv * 2.0, 2.0, DTYPE)
    r = quotient(1.0, fma(e4, 0.25, 1.0))
    far = fma(-e4, r * fma(u, r, 0.5), 1.0)
    return copysign(tl.where(u < 0.8, u * (w * polynomial(w, TANH_ALPHA)), far), x)


@triton.jit
def sigmoid_value(x, alpha, inv, DTYPE: tl.constexpr):
    # alpha 2^-k / (2^-k + 2^-k e^(-u)): the scale 2^-k keeps the reciprocal of a large denominator out of the
    # subnormal numbers, which the hardware flushes, so that results down to 2^-149 come out.
    if DTYPE == tl.float64:
        u = x / alpha
        e = tl.exp(-tl.abs(u))
        y = alpha * tl.where(u < 0, e, 1.0) / (1.0 + e)
    else:
        a = alpha.to(tl.float32)
        high, low = split(inv * -LOG2E)
        if DTYPE == tl.bfloat16:
            y = quotient(a * 2.0**-12, exp2(fma(x, high, -12.0)) + 2.0**-12)
        else:
            x = at_least(at_most(x, 30.0 * a), -130.0 * a)
            mantissa, power = exp2_accurate(x, high, low, 64)
            d = fma(mantissa, power, 2.0**-64)
            r = quotient(1.0, d)
            y = (a * 2.0**-64) * fma(fma(-d, r, 1.0) + rounded_off(alpha, inv), r, r)
    return y


@triton.jit
def sigmoid_slope(x, alpha, inv, DTYPE: tl.constexpr):
    if DTYPE == tl.float64:
        e = tl.exp(-tl.abs(x / alpha))
    else:
        e = exp_minus(tl.abs(x), alpha, inv, 0.0, DTYPE)
    return logistic_slope(e, 1.0)


@triton.jit
def sigmoid_slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    s = y * inv.to(y.dtype)
    return at_least(fma(-s, s, s), 0.0)


@triton.jit
def arctan_value(x, alpha, inv, DTYPE: tl.constexpr):
    # With z = min(|u|, 1 / |u|): x + x z^2 p(z^2) up to |u| = 1, alpha (pi / 2 - arctan z) beyond.
    if DTYPE == tl.float64:
        y = alpha * atan64(x / alpha)
    else:
        a = alpha.to(tl.float32)
        high, low = split(inv)
        limit, rest = split(alpha * HALF_PI)
        if DTYPE == tl.bfloat16:
            u = tl.abs(x) * high
            r = quotient(1.0, u)
        else:
            u = product(at_most(tl.abs(x), 2.0**60 * a), high, low)
            r = quotient(1.0, u)
            r = fma(fma(-u, r, 1.0), r, r)  # a Newton step
        far = u > 1.0
        z = tl.where(far, r, u)
        w = z * z
        if DTYPE == tl.float32:
            wp = w * polynomial(w, ARCTAN)
            q = z + fma(z, wp + rounded_off(alpha, inv), -rest * high)
            y = copysign(tl.where(far, fma(q, -a, limit), fma(x, wp, x)), x)
        else:
            t = fma(w, polynomial(w, ARCTAN_BF16 if DTYPE == tl.bfloat16 else ARCTAN), 1.0)
            y = tl.where(far, copysign(fma(z * t, -a, limit), x), x * t)
    return y


@triton.jit
def arctan_slope(x, alpha, inv, DTYPE: tl.constexpr):
    if DTYPE == tl.float64:
        u = x / alpha
        slope = 1.0 / (1.0 + u * u)
    else:
        u = x * inv.to(tl.float32)
        slope = quotient(1.0, fma(u, u, 1.0))
    return slope


@triton.jit
def arctan_slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    # cos^2 t as sin^2(pi / 2 - t), which is small where t is near its limit.
    s = HALF_PI - tl.abs(y * inv.to(y.dtype))
    if DTYPE == tl.float64:
        c = sin64(s)
    else:
        w = s * s
        c = fma(s, w * polynomial(w, SIN), s)
    return c * c


@triton.jit
def arctan_alpha_slope(x, alpha, inv, DTYPE: tl.constexpr):
    # With z = min(|u|, 1 / |u|) and s = 1 / (1 + z^2): arctan z = z + z^3 p, and |u| f'(u) = z s = z - z^3 s.
    u = at_most(tl.abs(x) * inv.to(tl.float32), 2.0**60)
    far = u > 1.0
    z = tl.where(far, quotient(1.0, u), u)
    w = z * z
    s = quotient(1.0, w + 1.0)
    p = polynomial(w, ARCTAN if DTYPE == tl.float32 else ARCTAN_BF16)
    return copysign(tl.where(far, fma(-z, fma(w, p, 1.0) + s, HALF_PI), z * (w * (p + s))), x)


@triton.jit
def softsign_value(x, alpha, inv, DTYPE: tl.constexpr):
    if DTYPE == tl.float64:
        u = x / alpha
        y = tl.where(tl.abs(u) > 2.0**60, tl.where(u > 0, alpha, -alpha), x / (1.0 + tl.abs(u)))
    else:
        high, low = split(inv)
        x = clamp(x, 2.0**60 * alpha.to(tl.float32))
        m = tl.abs(x)
        d = fma(m, high, 1.0)
        if DTYPE == tl.bfloat16:
            y = quotient(x, d)
        else:
            # A Newton step for 1 / (d + rest), where rest is what rounding d has lost.
            rest = fma(m, low, fma(m, high, 1.0 - d))
            r = quotient(1.0, d)
            y = x * fma(fma(-rest, r, fma(-d, r, 1.0)), r, r)
    return y


@triton.jit
def softsign_slope(x, alpha, inv, DTYPE: tl.constexpr):
    if DTYPE == tl.float64:
        r = 1.0 / (1.0 + tl.abs(x / alpha))
    else:
        r = quotient(1.0, fma(tl.abs(x), inv.to(tl.float32), 1.0))
    return r * r


@triton.jit
def softsign_slope_from_output(y, alpha, inv, DTYPE: tl.constexpr):
    r = 1.0 - tl.abs(y * inv.to(y.dtype))
    return r * r


@triton.jit
def softsign_alpha_slope(x, alpha, inv, DTYPE: tl.constexpr):
    # u |u| / (1 + |u|)^2
    u = at_most(tl.abs(x) * inv.to(tl.float32), 2.0**60)
    t = quotient(u, u + 1.0)
    return copysign(t * t, x)


FUNCTIONS = Registry()


# 0-d tensors, since wrapping a Python number costs an operation a microsecond.
ONE, FOUR = (torch.tensor(number, dtype=torch.float32, device="cpu") for number in (1.0, 4.0))
FLAT = 60.0  # from here on 1 / (1 + e^-u) is 1 in every dtype
SUBNORMAL = 86.0  # e^-u is subnormal in fp32 a little further on


def _times_logistic(g: Tensor, u: Tensor, scale: float, out: Tensor) -> Tensor:
    # g / (1 + e^(-scale u)), as g e / (e + 1) in one pass.
    torch.ops.aten.softplus_backward.grad_input(g, u, scale, FLAT, grad_input=out)
    return out


def _logistic_gradient_(g: Tensor, u: Tensor, scale: float) -> Tensor:
    # g r (1 - r) with r = 1 / (1 + e^(scale abs(u))), which does not cancel.
    r = _times_logistic(ONE, u.abs_(), -scale, u)
    torch.ops.aten.sigmoid_backward.grad_input(g, r, grad_input=r)
    return r


def _sigmoid_scaled(x: Tensor, scale: Scale, out: Tensor) -> Tensor:
    alpha = scale.exactly
    # In fp64 where a subnormal e^u has lost digits, and alpha makes a normal number of it.
    if isinstance(alpha, Tensor) or (alpha > 4.0 and x.numel() and not x.amin().item() >= -SUBNORMAL * alpha):
        u = x.double() / alpha
        return _times_logistic(ONE, u, 1.0, u).mul_(alpha)
    if scale.is_exact and x.dtype != torch.float16:  # which may not hold alpha
        return _times_logistic(scale.alpha, x, 1 / alpha, out)
    u = scale.over_alpha(x, torch.empty_like(x, dtype=torch.float32) if x.dtype.itemsize == 2 else out)
    if x.dtype != torch.float32:
        return _times_logistic(scale.alpha, u, 1.0, u)
    # What rounding u has lost, (x - alpha u) f'(u) to first order.
    nearest = scale.alpha.item()
    rest = torch.add(x, u, alpha=-nearest).add_(u, alpha=nearest - alpha).nan_to_num_(nan=0.0)
    t = _times_logistic(ONE, u, 1.0, u)
    torch.ops.aten.sigmoid_backward.grad_input(rest, t, grad_input=rest)
    return torch.add(rest, t, alpha=nearest, out=t)


def _softsign(u: Tensor) -> Tensor:
    u = u.clamp(-1e18, 1e18)
    return u / (u.abs() + 1)


def _softsign_scaled(x: Tensor, scale: Scale, out: Tensor) -> Tensor:
    # x / (1 + |x / alpha|)
    alpha = scale.exactly
    if isinstance(alpha, Tensor):
        x = x.double().clamp(-1e18 * alpha, 1e18 * alpha)
        return x / (x.abs() / alpha + ONE)
    lost = _lost_in_float32(1 / alpha) if x.dtype == torch.float32 else 0.0
    x = (x.float() if x.dtype.itemsize == 2 else x).clamp(-1e18 * alpha, 1e18 * alpha)
    y = x / torch.add(ONE, x.abs(), alpha=1 / alpha)
    return torch.addcmul(y, y, y.abs(), value=-lost).copysign_(y) if lost else y


@lru_cache(maxsize=1024)
def _lost_in_float32(number: float) -> float:
    return number - float(struct.unpack("f", struct.pack("f", number))[0])


def _horner(w: Tensor, coefficients: tuple[Tensor, ...]) -> Tensor:
    first, second, *others = coefficients
    result = torch.addcmul(second, w, first)
    for coefficient in others:
        torch.addcmul(coefficient, result, w, out=result)
    return result


def _numbers(*numbers: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(number, dtype=torch.float32, device="cpu") for number in numbers)


def _near_or_far(u: Tensor, w: Tensor, limit: float, coefficients: tuple[Tensor, ...], far: Tensor) -> Tensor:
    # u w p(w) with w = u^2 up to `limit`, u far beyond; by arithmetic, since torch.where is slow.
    is_far = torch.add(_numbers(-1e30 * limit)[0], w, alpha=1e30).clamp_(0, 1)
    w.clamp_(max=limit)
    near = _horner(w, coefficients).mul_(w)
    return torch.lerp(near, far, is_far, out=near).mul_(u)


def _tanh_alpha_slope(u: Tensor, s: Tensor) -> Tensor:
    # |tanh u| = sqrt(1 - s), where that does not cancel.
    w = u * u
    far = torch.sub(ONE, s).div_(w.clamp(min=0.64)).sqrt_().sub_(s)
    return _near_or_far(u, w, 0.64, TANH_NEAR, far)


def _arctan_alpha_slope(u: Tensor, s: Tensor) -> Tensor:
    far = u.arctan().div_(u.abs().clamp_(min=0.3).copysign_(u)).sub_(s)
    return _near_or_far(u, u * u, 0.09, ARCTAN_NEAR, far)


def _softsign_alpha_slope(u: Tensor, s: Tensor) -> Tensor:
    t = u / u.abs().add_(ONE)
    return t.abs().mul_(t)


TANH_NEAR = _numbers(*TANH_NEAR_ZERO)
ARCTAN_NEAR = _numbers(*ARCTAN_NEAR_ZERO)


FUNCTIONS.register(
    Function(
        name="tanh",
        formula="tanh(u)",
        value=tanh_value,
        slope=tanh_slope,
        slope_from_output=tanh_slope_from_output,
        alpha_slope=tanh_alpha_slope,
        torch_value=torch.tanh,
        torch_by_table=True,
        torch_value_=torch.tanh_,
        torch_slope=lambda u: 4 * torch.sigmoid(2 * u) * torch.sigmoid(-2 * u),
        torch_gradient_=lambda g, u: _logistic_gradient_(FOUR, u, 2.0).mul_(g),
        torch_alpha_slope=_tanh_alpha_slope,
        torch_gradient_of_value=torch.ops.aten.tanh_backward.default,
        torch_gradient_of_value_=lambda g, t: torch.ops.aten.tanh_backward.grad_input(g, t, grad_input=t),
        mp_value=lambda u: u.context.tanh(u),
        mp_slope=lambda u: u.context.sech(u) ** 2,
        kernel_ulp=2.5,
        torch_ulp=2.5,
        slope_reach=10.0,
        lower=-1.0,
        upper=1.0,
        value_at_zero=0.0,
        slope_at_zero=1.0,
        symmetry="odd",
    )
)
FUNCTIONS.register(
    Function(
        name="sigmoid",
        formula="1 / (1 + exp(-u))",
        value=sigmoid_value,
        slope=sigmoid_slope,
        slope_from_output=sigmoid_slope_from_output,
        torch_value=torch.sigmoid,
        torch_scaled_value=_sigmoid_scaled,
        torch_slope=lambda u: torch.sigmoid(u) * torch.sigmoid(-u),
        torch_gradient_=lambda g, u: _logistic_gradient_(g, u, 1.0),
        torch_gradient_of_value=torch.ops.aten.sigmoid_backward.default,
        torch_gradient_of_value_=lambda g, t: torch.ops.aten.sigmoid_backward.grad_input(g, t, grad_input=t),
        mp_value=lambda u: 1 / (1 + u.context.exp(-u)),
        mp_slope=lambda u: u.context.sech(u / 2) ** 2 / 4,
        kernel_ulp=3.0,
        torch_ulp=5.0,
        slope_reach=20.0,
        lower=0.0,
        upper=1.0,
        value_at_zero=0.5,
        slope_at_zero=0.25,
        symmetry="odd about (0, 1/2)",
        paper_name="logsigmoid",
        torch_aliases=("expit",),
    )
)
FUNCTIONS.register(
    Function(
        name="arctan",
        formula="arctan(u)",
        value=arctan_value,
        slope=arctan_slope,
        slope_from_output=arctan_slope_from_output,
        alpha_slope=arctan_alpha_slope,
        torch_value=torch.arctan,
        torch_by_table=True,
        torch_value_=torch.arctan_,
        torch_slope=lambda u: 1 / (1 + u * u),
        torch_gradient_=lambda g, u: torch.div(g, u.square_().add_(ONE), out=u),
        torch_alpha_slope=_arctan_alpha_slope,
        torch_gradient_of_value=lambda g, t: t.cos().square() * g,
        torch_gradient_of_value_=lambda g, t: t.cos_().square_().mul_(g),
        mp_value=lambda u: u.context.atan(u),
        mp_slope=lambda u: 1 / (1 + u * u),
        kernel_ulp=2.5,
        torch_ulp=2.5,
        lower=-math.pi / 2,
        upper=math.pi / 2,
        value_at_zero=0.0,
        slope_at_zero=1.0,
        symmetry="odd",
        torch_aliases=("atan",),
    )
)
FUNCTIONS.register(
    Function(
        name="softsign",
        formula="u / (1 + |u|)",
        value=softsign_value,
        slope=softsign_slope,
        slope_from_output=softsign_slope_from_output,
        alpha_slope=softsign_alpha_slope,
        torch_value=_softsign,
        torch_scaled_value=_softsign_scaled,
        torch_slope=lambda u: 1 / (1 + u.abs()).square(),
        torch_gradient_=lambda g, u: torch.div(g, u.abs_().add_(ONE).square_(), out=u),
        torch_alpha_slope=_softsign_alpha_slope,
        torch_gradient_of_value=lambda g, t: (t.abs() - 1).square() * g,
        torch_gradient_of_value_=lambda g, t: t.abs_().sub_(ONE).square_().mul_(g),
        mp_value=lambda u: u / (1 + abs(u)),
        mp_slope=lambda u: 1 / (1 + abs(u)) ** 2,
        kernel_ulp=2.0,
        torch_ulp=2.0,
        lower=-1.0,
        upper=1.0,
        value_at_zero=0.0,
        slope_at_zero=1.0,
        symmetry="odd",
    )
)
