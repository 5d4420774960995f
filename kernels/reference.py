"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels, and in chunks that stay in the cache; arithmetic is
in place, so that a direction allocates its result and, in 16 bits, one chunk.
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
    """g f'(x / alpha) in PyTorch operations that are differentiable with respect to g and `saved`."""
    if from_output:
        return function.torch_gradient_of_value(_widened(g), _widened(saved) / alpha).to(g.dtype)
    (dx,) = torch.autograd.grad(composed(function, saved, alpha), saved, g, create_graph=True)
    return dx


def _value(function: Function, x: Tensor, alpha: float, y: Tensor | None = None) -> Tensor:
    """alpha f(x / alpha), in y if that is given; x is float32 or float64 otherwise."""
    if function.torch_scaled_value is not None:
        return _rounded(function.torch_scaled_value(_widened(x), alpha), x, y)
    scale = _scale(function, x.dtype, alpha)
    u = scale.over_alpha(x)
    if scale.value_reach < math.inf and u.numel() and not u.amin().item() >= -scale.value_reach:
        return _rounded(function.torch_value(x.double() / alpha).mul_(alpha), x, y)
    return _rounded(function.torch_value(u).mul_(scale.alpha), x, y)


def _gradient(function: Function, g: Tensor, x: Tensor, alpha: float, dx: Tensor | None = None) -> Tensor:
    scale = _scale(function, x.dtype, alpha)
    u = scale.over_alpha(x)
    if scale.slope_reach < math.inf and u.numel() and not u.abs().amax().item() <= scale.slope_reach:
        return _rounded(function.torch_slope(x.double() / alpha).mul_(g), x, dx)
    return _rounded(function.torch_slope(u).mul_(g), x, dx)


def _gradient_of_value(
    function: Function, g: Tensor, y: Tensor, alpha: float, dx: Tensor | None = None
) -> Tensor:
    t = _scale(function, y.dtype, alpha).over_alpha(y)
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
    over_alpha: Callable[[Tensor], Tensor]  # x / alpha as a new tensor of the computing type
    value_reach: float  # lowest -u, and largest abs(u), up to which that type is accurate enough
    slope_reach: float


@lru_cache(maxsize=1024)
def _scale(function: Function, dtype: torch.dtype, alpha: float) -> Scale:
    narrow = dtype.itemsize == 2
    operand = torch.tensor(alpha, dtype=torch.float32 if narrow else dtype, device="cpu")
    u_is_exact = math.frexp(alpha)[0] == 0.5
    inverse = operand.reciprocal()
    if narrow:
        over_alpha = (
            (lambda x: x.float().mul_(inverse)) if u_is_exact else (lambda x: x.float().div_(operand))
        )
    else:
        over_alpha = (lambda x: x * inverse) if u_is_exact else (lambda x: x / operand)
    value_reach = slope_reach = math.inf
    if not math.isinf(function.value_reach) and dtype in (torch.float32, torch.bfloat16):
        value_reach = EXACT_REACH if u_is_exact or narrow else function.value_reach
    if dtype == torch.float32:
        slope_reach = function.slope_reach
    return Scale(operand, over_alpha, value_reach, slope_reach)


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
