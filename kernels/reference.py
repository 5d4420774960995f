"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels. Tensors are taken in chunks that stay in the cache,
with in-place arithmetic inside a chunk, so that memory is read and written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .registry import Function

CHUNK = 1 << 17  # elements; the temporaries of a chunk fit the second-level cache of a core
EXACT_REACH = 85.0  # of abs(u), where u is exact: beyond, exp(-u) overflows fp32 before f(u) underflows it


def forward(function: Function, x: Tensor, y: Tensor, alpha: float) -> None:
    """Write alpha f(x / alpha) to y; both dense, of one layout and at least one element."""
    reach = _value_reach(function, x.dtype, alpha)

    def value(x: Tensor, y: Tensor) -> None:
        if function.torch_scaled_value is not None:
            y.copy_(function.torch_scaled_value(_widened(x), alpha))
            return
        torch.mul(function.torch_value(_scaled(x, alpha, reach)), alpha, out=y)

    _by_chunks(value, x, y)


def backward(
    function: Function, g: Tensor, saved: Tensor, dx: Tensor, alpha: float, *, from_output: bool
) -> None:
    """Write g f'(x / alpha) to dx, from x or from y = alpha f(x / alpha); all dense, of one layout."""
    slope = function.torch_slope_of_value if from_output else function.torch_slope
    reach = function.slope_reach if saved.dtype == torch.float32 and not from_output else math.inf

    def gradient(g: Tensor, saved: Tensor, dx: Tensor) -> None:
        torch.mul(slope(_scaled(saved, alpha, reach)), g, out=dx)

    _by_chunks(gradient, g, saved, dx)


def composed(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha) in differentiable PyTorch operations, rounded once at the end."""
    return (function.torch_value(_widened(x) / alpha) * alpha).to(x.dtype)


def composed_backward(
    function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool
) -> Tensor:
    """g f'(x / alpha) in differentiable PyTorch operations."""
    slope = function.torch_slope_of_value if from_output else function.torch_slope
    return (_widened(g) * slope(_widened(saved) / alpha)).to(g.dtype)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def _value_reach(function: Function, dtype: torch.dtype, alpha: float) -> float:
    if math.isinf(function.value_reach) or dtype not in (torch.float32, torch.bfloat16):
        return math.inf
    u_is_exact = math.frexp(alpha)[0] == 0.5
    return EXACT_REACH if u_is_exact or dtype == torch.bfloat16 else function.value_reach


def _scaled(x: Tensor, alpha: float, reach: float) -> Tensor:
    """x / alpha as a new tensor, in fp64 where an element is NaN or outside [-reach, reach]."""
    u = x.float().div_(alpha) if x.dtype.itemsize == 2 else x / alpha
    if reach < math.inf:
        low, high = torch.aminmax(u)
        if not (low >= -reach and high <= reach):
            return x.double().div_(alpha)
    return u


def _by_chunks(operation: Callable[..., None], *tensors: Tensor) -> None:
    n = tensors[0].numel()
    if n <= CHUNK:
        operation(*tensors)
        return
    flat = [t.as_strided((n,), (1,)) for t in tensors]
    for start in range(0, n, CHUNK):
        operation(*(t[start : start + CHUNK] for t in flat))
