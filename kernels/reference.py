"""The activation in plain PyTorch: the kernels' twin on CPUs, and a differentiable form of both directions.

16-bit tensors are computed in fp32, as in the kernels, and in chunks that stay in the cache. Arithmetic is in
place: a direction allocates its result and, in 16 bits, one chunk. Unlike in the kernels, an x below 2^-126
alpha loses precision, since x / alpha is a subnormal number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .functions import Function

CHUNK = 1 << 17  # elements; the fp32 temporaries of a chunk fit the second-level caches of two cores
EXACT_REACH = 85.0  # of -u, where u is exact: beyond, exp(-u) overflows fp32 before f(u) underflows it


def forward(function: Function, x: Tensor, alpha: float | Tensor) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be; a tensor alpha has one value per channel."""
    scale = scale_of(function, x, alpha)
    if x.dtype.itemsize == 2 and not isinstance(alpha, Tensor):
        return _by_chunks(lambda y, x: _value(function, x, scale, y), x)
    return _value(function, x, scale)


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from x or from y = alpha f(x / alpha)."""
    gradient = _gradient_of_value if from_output else _gradient
    scale = scale_of(function, saved, alpha)
    if saved.dtype.itemsize == 2:
        return _by_chunks(lambda dx, saved, g: gradient(function, g, saved, scale, dx), saved, g)
    return gradient(function, g, saved, scale)


def composed(function: Function, x: Tensor, alpha: float | Tensor) -> Tensor:
    """alpha f(x / alpha) in differentiable PyTorch operations, rounded once at the end."""
    if isinstance(alpha, Tensor):
        alpha = by_channel(alpha, x).to(_widened(x).dtype)
    return (function.torch_value(_widened(x) / alpha) * alpha).to(x.dtype)


def by_channel(alpha: Tensor, x: Tensor) -> Tensor:
    """alpha, one value or one per channel, in a shape that broadcasts against x."""
    return alpha.reshape(()) if alpha.numel() == 1 else alpha.reshape(-1, *(1,) * (x.ndim - 2))


def composed_backward(
    function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool
) -> Tensor:
    """g f'(x / alpha) in PyTorch operations, differentiable with respect to g and `saved` in grad mode."""
    if from_output:
        t = (_widened(saved) / alpha).clamp(function.lower, function.upper)
        return function.torch_gradient_of_value(_widened(g), t).to(g.dtype)
    twice = torch.is_grad_enabled()
    # A view or a copy, so that hooks on `saved` do not see this inner backward pass.
    x = saved.view_as(saved) if twice else saved.detach().requires_grad_()
    with torch.enable_grad():
        y = composed(function, x, alpha)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=twice)
    return dx


def composed_learned_backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g f'(u) and the sum of g (f(u) - u f'(u)) in PyTorch operations, differentiable in grad mode."""
    twice = torch.is_grad_enabled()
    # Views, so that hooks on x and alpha do not see this inner backward pass.
    inputs = [t.view_as(t) if twice else t.detach().requires_grad_() for t in (x, alpha)]
    with torch.enable_grad():
        y = composed(function, *inputs)
    wanted = [t for t, is_wanted in zip(inputs, (dx, dalpha), strict=True) if is_wanted]
    found = list(torch.autograd.grad(y, wanted, g, create_graph=twice))
    return found.pop(0) if dx else None, found.pop(0) if dalpha else None


def _value(function: Function, x: Tensor, scale: Scale, y: Tensor | None = None) -> Tensor:
    """alpha f(x / alpha), written to y if given; without y, x is float32 or float64."""
    if function.torch_scaled_value is not None:
        return _rounded(function.torch_scaled_value(_widened(x), scale.exactly), x, y)
    u = scale.over_alpha(x)
    far = None
    if scale.value_reach < math.inf and u.numel() and not u.amin().item() >= -scale.value_reach:
        far = u < -scale.value_reach
    result = function.torch_value(u).mul_(scale.alpha)
    if far is not None:
        u, alpha = scale.at(far, x)
        result[far] = function.torch_value(u).mul_(alpha).to(result.dtype)
    return _rounded(result, x, y)


def _gradient(function: Function, g: Tensor, x: Tensor, scale: Scale, dx: Tensor | None = None) -> Tensor:
    return _rounded(slope(function, x, scale.over_alpha(x), scale).mul_(g), x, dx)


def slope(function: Function, x: Tensor, u: Tensor, scale: Scale) -> Tensor:
    """f'(u) with u = x / alpha; overwrites u."""
    far = u.abs() > scale.slope_reach if scale.slope_reach < math.inf else None
    result = function.torch_slope(u)
    if far is not None and far.any():
        result[far] = function.torch_slope(scale.at(far, x)[0]).to(result.dtype)
    return result


def _gradient_of_value(
    function: Function, g: Tensor, y: Tensor, scale: Scale, dx: Tensor | None = None
) -> Tensor:
    t = scale.over_alpha(y)
    if not scale.is_exact:  # alpha may have been rounded up in y, and a slope must not become negative
        t.clamp_(function.lower, function.upper)
    return _rounded(function.torch_gradient_of_value(_widened(g), t), y, dx)


def _rounded(result: Tensor, like: Tensor, out: Tensor | None) -> Tensor:
    if out is None:
        return result if result.dtype is like.dtype else result.to(like.dtype)
    return out.copy_(result)


class Scale(NamedTuple):
    """alpha, prepared for tensors of one dtype.

    Numbers are 0-d tensors, since wrapping a Python number costs an operation a microsecond.
    """

    alpha: Tensor
    exactly: float | Tensor  # alpha as given: a number, or float64 values per channel
    is_exact: bool  # whether dividing by alpha rounds nothing
    over_alpha: Callable[[Tensor], Tensor]  # x / alpha as a new tensor of the computing type
    value_reach: float  # of -u, beyond which the value is computed in fp64
    slope_reach: float  # of abs(u), beyond which the slope is computed in fp64

    def at(self, far: Tensor, x: Tensor) -> tuple[Tensor, float | Tensor]:
        """x / alpha in fp64 where `far`, and alpha there."""
        alpha = self.exactly
        if isinstance(alpha, Tensor):
            alpha = alpha.expand_as(x)[far]
        return x[far].double() / alpha, alpha


def scale_of(function: Function, x: Tensor, alpha: float | Tensor) -> Scale:
    """The scale of one number, or of one per x[:, channel]."""
    if not isinstance(alpha, Tensor):
        return _scale(function, x.dtype, alpha)
    exactly = by_channel(alpha, x).double()
    operand = exactly.to(_widened(x).dtype)
    return Scale(operand, exactly, False, lambda x: x / operand, *_reaches(function, x.dtype, False))


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
    return Scale(operand, alpha, is_exact, over_alpha, *_reaches(function, dtype, is_exact))


def _reaches(function: Function, dtype: torch.dtype, is_exact: bool) -> tuple[float, float]:
    """Scale's value_reach and slope_reach."""
    value = math.inf
    if not math.isinf(function.value_reach) and dtype in (torch.float32, torch.bfloat16):
        value = EXACT_REACH if is_exact or dtype.itemsize == 2 else function.value_reach
    return value, function.slope_reach if dtype == torch.float32 else math.inf


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def _by_chunks(write: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The result of the elementwise write(result, *inputs), in chunks if the tensors are dense and alike."""
    result = torch.empty_like(inputs[0])
    n = result.numel()
    if n <= CHUNK or any(t.stride() != result.stride() for t in inputs):
        write(result, *inputs)
    else:
        flat = (t.as_strided((n,), (1,)).split(CHUNK) for t in (result, *inputs))
        for parts in zip(*flat, strict=True):
            write(*parts)
    return result
