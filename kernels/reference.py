"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels, and in chunks that stay in the cache; arithmetic is in
place, so that a direction allocates its result and, in 16 bits, one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .registry import Function

CHUNK = 1 << 17  # elements; the fp32 temporaries of a chunk fit the second-level caches of two cores
EXACT_REACH = 85.0  # of abs(u), where u is exact: beyond, exp(-u) overflows fp32 before f(u) underflows it


def forward(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    reach = _value_reach(function, x.dtype, alpha)

    def value(x: Tensor) -> Tensor:
        if function.torch_scaled_value is not None:
            return function.torch_scaled_value(x, alpha)
        u = _scaled(x, alpha, reach)
        return function.torch_value(u).mul_(_division(alpha, u.dtype)[2])

    return _by_chunks(value, x)


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from x or from y = alpha f(x / alpha)."""
    gradient = function.torch_gradient_of_value if from_output else function.torch_gradient
    reach = function.slope_reach if saved.dtype == torch.float32 and not from_output else math.inf
    return _by_chunks(lambda saved, g: gradient(g, _scaled(saved, alpha, reach)), saved, g)


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


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def _value_reach(function: Function, dtype: torch.dtype, alpha: float) -> float:
    if math.isinf(function.value_reach) or dtype not in (torch.float32, torch.bfloat16):
        return math.inf
    u_is_exact = math.frexp(alpha)[0] == 0.5
    return EXACT_REACH if u_is_exact or dtype == torch.bfloat16 else function.value_reach


@lru_cache(maxsize=1024)
def _division(alpha: float, dtype: torch.dtype) -> tuple[Callable[..., Tensor], Tensor, Tensor]:
    """What divides by alpha without a needless rounding, its operand, and alpha.

    As 0-d tensors, since a Python number costs an operation a microsecond to wrap.
    """
    tensor = torch.tensor(alpha, dtype=dtype, device="cpu")
    if math.frexp(alpha)[0] == 0.5:
        return torch.mul, tensor.reciprocal(), tensor
    return torch.div, tensor, tensor


def _scaled(x: Tensor, alpha: float, reach: float) -> Tensor:
    """x / alpha as a new tensor, in fp64 where an element is NaN or outside [-reach, reach]."""
    if x.dtype.itemsize == 2:
        u = x.float()
        divide, operand, _ = _division(alpha, torch.float32)
        divide(u, operand, out=u)
    else:
        divide, operand, _ = _division(alpha, x.dtype)
        u = divide(x, operand)
    if reach < math.inf and x.numel() > 0:
        low, high = torch.aminmax(u)
        if not (low.item() >= -reach and high.item() <= reach):
            return x.double().div_(alpha)
    return u


def _by_chunks(operation: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """operation(*tensors), elementwise, in the dtype of the tensors; large 16-bit tensors by chunks."""
    first = tensors[0]
    n = first.numel()
    if first.dtype.itemsize > 2 or n <= CHUNK:
        return operation(*tensors).to(first.dtype)
    result = torch.empty_like(first)
    if any(t.stride() != result.stride() for t in tensors):
        return operation(*tensors).to(first.dtype)
    flat = [t.as_strided((n,), (1,)).split(CHUNK) for t in (result, *tensors)]
    for part, *inputs in zip(*flat, strict=True):
        part.copy_(operation(*inputs))
    return result
