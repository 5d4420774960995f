"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels, and in chunks that stay in the cache; arithmetic is
in place, so that a direction allocates its result and, in 16 bits, one chunk. Unlike in the kernels, an x
below 2^-126 alpha loses precision, since x / alpha is a subnormal number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .registry import Function

CHUNK = 1 << 17  # elements; the fp32 temporaries of a chunk fit the second-level caches of two cores
EXACT_REACH = 85.0  # of -u, where u is exact: beyond, exp(-u) overflows fp32 before f(u) underflows it


def forward(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    if x.dtype.itemsize == 2:
        return _by_chunks(lambda y, x: _value(function, x, alpha, y), x)
    return _value(function, x, alpha)


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from x or from y = alpha f(x / alpha)."""
    gradient = _gradient_of_value if from_output else _gradient
    if saved.dtype.itemsize == 2:
        return _by_chunks(lambda dx, saved, g: gradient(function, g, saved, alpha, dx), saved, g)
    return gradient(function, g, saved, alpha)


def composed(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha) in differentiable PyTorch operations, rounded once at the end."""
    return (function.torch_value(_widened(x) / alpha) * alpha).to(x.dtype)


def composed_backward(
    function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool
) -> Tensor:
    """g f'(x / alpha) in PyTorch operations, differentiable with respect to g and `saved` in grad mode."""
    if from_output:
        t = (_widened(saved) / alpha).clamp(function.lower, function.upper)
        return function.torch_gradient_of_value(_widened(g), t).to(g.dtype)
    twice = torch.is_grad_enabled()
    # A view or a copy, so that the hooks of `saved` itself do not see this inner backward pass.
    x = saved.view_as(saved) if twice else saved.detach().requires_grad_()
    with torch.enable_grad():
        y = composed(function, x, alpha)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=twice)
    return dx


def _value(function: Function, x: Tensor, alpha: float, y: Tensor | None = None) -> Tensor:
    """alpha f(x / alpha), in y if that is given; x is float32 or float64 otherwise."""
    if function.torch_scaled_value is not None:
        return _rounded(function.torch_scaled_value(_widened(x), alpha), x, y)
    scale = _scale(function, x.dtype, alpha)
    u = scale.over_alpha(x)
    far = None
    if scale.value_reach < math.inf and u.numel() and not u.amin().item() >= -scale.value_reach:
        far = u < -scale.value_reach
    result = function.torch_value(u).mul_(scale.alpha)
    if far is not None:
        result[far] = function.torch_value(x[far].double() / alpha).mul_(alpha).to(result.dtype)
    return _rounded(result, x, y)


def _gradient(function: Function, g: Tensor, x: Tensor, alpha: float, dx: Tensor | None = None) -> Tensor:
    scale = _scale(function, x.dtype, alpha)
    u = scale.over_alpha(x)
    far = u.abs() > scale.slope_reach if scale.slope_reach < math.inf else None
    slope = function.torch_slope(u)
    if far is not None and far.any():
        slope[far] = function.torch_slope(x[far].double() / alpha).to(slope.dtype)
    return _rounded(slope.mul_(g), x, dx)


def _gradient_of_value(
    function: Function, g: Tensor, y: Tensor, alpha: float, dx: Tensor | None = None
) -> Tensor:
    scale = _scale(function, y.dtype, alpha)
    t = scale.over_alpha(y)
    if not scale.is_exact:  # alpha may have been rounded up in y, and a slope must not become negative
        t.clamp_(function.lower, function.upper)
    return _rounded(function.torch_gradient_of_value(_widened(g), t), y, dx)


def _rounded(result: Tensor, like: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result if result.dtype is like.dtype else result.to(like.dtype)
    return out.copy_(result)


class Scale(NamedTuple):
    """What alpha means for tensors of a dtype.

    Numbers are 0-d tensors here, since a Python number costs an operation a microsecond to wrap.
    """

    alpha: Tensor
    is_exact: bool  # whether dividing by alpha rounds nothing
    over_alpha: Callable[[Tensor], Tensor]  # x / alpha as a new tensor of the computing type
    value_reach: float  # of -u, beyond which the value is computed in fp64
    slope_reach: float  # of abs(u), beyond which the slope is computed in fp64


@lru_cache(maxsize=1024)
def _scale(function: Function, dtype: torch.dtype, alpha: float) -> Scale:
    narrow = dtype.itemsize == 2
    operand = torch.tensor(alpha, dtype=torch.float32 if narrow else dtype, device="cpu")
    is_exact = math.frexp(alpha)[0] == 0.5
    inverse = operand.reciprocal()
    if narrow:
        over_alpha = (lambda x: x.float().mul_(inverse)) if is_exact else (lambda x: x.float().div_(operand))
    else:
        over_alpha = (lambda x: x * inverse) if is_exact else (lambda x: x / operand)
    value_reach = slope_reach = math.inf
    if not math.isinf(function.value_reach) and dtype in (torch.float32, torch.bfloat16):
        value_reach = EXACT_REACH if is_exact or narrow else function.value_reach
    if dtype == torch.float32:
        slope_reach = function.slope_reach
    return Scale(operand, is_exact, over_alpha, value_reach, slope_reach)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def _by_chunks(write: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The result of write(result, *inputs), elementwise: by chunks where the tensors are dense and alike."""
    result = torch.empty_like(inputs[0])
    n = result.numel()
    if n <= CHUNK or any(t.stride() != result.stride() for t in inputs):
        write(result, *inputs)
    else:
        flat = (t.as_strided((n,), (1,)).split(CHUNK) for t in (result, *inputs))
        for parts in zip(*flat, strict=True):
            write(*parts)
    return result
