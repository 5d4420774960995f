"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels; where that is slow, a table holds the result for
each of the 65,536 values. Large tensors are computed part by part, so that temporaries stay in the cache.
Unlike in the kernels, an x below 2^-126 alpha loses precision, since x / alpha is a subnormal number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .device import made_once
from .functions import Function

PART = 1 << 17  # elements; the fp32 temporaries fit the second-level caches of two cores
TABLE = 1 << 14  # 16-bit values from which on they are looked up
LEARNED_TABLE = 1 << 18  # the same of a table that serves one step
GRAIN = 1 << 15  # elements that PyTorch computes on one thread
LIMIT = 2.0**60  # of abs(u), beyond which u f'(u) is 0 or its limit, and an infinite u would make NaN of it
# Of -u: beyond, exp(-u) overflows before f(u) underflows.
FAR = {torch.bfloat16: 85.0, torch.float32: 85.0, torch.float64: 700.0}


def forward(function: Function, x: Tensor, alpha: float | Tensor, *, table: int = TABLE) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be; a tensor alpha has one for each channel.

    `table` says from how many 16-bit values on a table for this alpha pays.
    """
    y = torch.empty_like(x)
    shared = not isinstance(alpha, Tensor)
    by_table = function.torch_by_table and x.dtype.itemsize == 2 and x.numel() >= table
    if by_table and not isinstance(alpha, Tensor):
        values = _table(function, x.dtype, alpha)
        for out, part in parts(shared, y, x):
            _look_up(values, part, out)
        return y
    scale, room = scale_of(function, x, alpha), Room()
    for out, part in parts(shared, y, x):
        y = _put(_value(function, part, scale, room.for_(out)), out, y)
    return y


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from x or from y = alpha f(x / alpha)."""
    dx = torch.empty_like(saved)
    scale, room = scale_of(function, saved, alpha), Room()
    for out, incoming, part in parts(True, dx, g, saved):
        u = scale.over_alpha(part, room.for_(out))
        if not from_output:
            result = slope(function, part, u, scale).mul_(widened(incoming))
        else:
            if not scale.is_exact:  # alpha may have been rounded up in y, and no slope is negative
                u.clamp_(function.lower, function.upper)
            result = function.torch_gradient_of_value(widened(incoming), u)
        dx = _put(result, out, dx)
    return dx


def _put(result: Tensor, out: Tensor, whole: Tensor) -> Tensor:
    """The whole, with the result in its part `out`: the result itself where nothing else is needed."""
    if result.dtype is whole.dtype and result.shape == whole.shape:
        return result
    if result is not out:
        out.copy_(result)
    return whole


class Room:
    """Memory for a part in the computing type, used again for the next part."""

    def __init__(self) -> None:
        self._room: Tensor | None = None

    def for_(self, out: Tensor) -> Tensor:
        """`out` itself if it is of the computing type, else memory of its shape."""
        return self.like(out) if out.dtype.itemsize == 2 else out

    def like(self, part: Tensor) -> Tensor:
        if self._room is None or self._room.shape != part.shape:
            self._room = torch.empty_like(part, dtype=_computing(part.dtype))
        return self._room


def parts(shared: bool, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, part by part: of memory if all elements share an alpha, else of dimension 0."""
    first = tensors[0]
    n, size = first.numel(), PART * -(-torch.get_num_threads() // 2)
    if n == 0:
        return
    if n > size:
        if shared and all(t.stride() == first.stride() for t in (*tensors, torch.empty_like(first))):
            tensors = tuple(t.as_strided((n,), (1,)) for t in tensors)
        else:
            tensors = tuple(torch.atleast_1d(t) for t in tensors)
            size = max(size * len(tensors[0]) // n, 1)
    yield from zip(*(t.split(size) for t in tensors), strict=True) if n > size else (tensors,)


def composed(function: Function, x: Tensor, alpha: float | Tensor) -> Tensor:
    """alpha f(x / alpha) in differentiable PyTorch operations, rounded once at the end."""
    if isinstance(alpha, Tensor):
        alpha = rounded(by_channel(alpha, x), widened(x).dtype)
    return rounded(function.torch_value(widened(x) / alpha) * alpha, x.dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x.to(dtype); of two names for one tensor in a graph, torch 2.11 loses the gradient of one."""
    return x if x.dtype is dtype else x.to(dtype)


def by_channel(alpha: Tensor, x: Tensor) -> Tensor:
    """alpha, of one number or one for each channel, in a shape that broadcasts against x."""
    return alpha.reshape(()) if alpha.numel() == 1 else alpha.reshape(-1, *(1,) * (x.ndim - 2))


def composed_backward(
    function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool
) -> Tensor:
    """g f'(x / alpha) in PyTorch operations, differentiable with respect to g and `saved` in grad mode."""
    if from_output:
        t = (widened(saved) / alpha).clamp(function.lower, function.upper)
        return function.torch_gradient_of_value(widened(g), t).to(g.dtype)
    return (widened(g) * function.torch_slope(widened(saved) / alpha)).to(g.dtype)


def _value(function: Function, x: Tensor, scale: Scale, room: Tensor) -> Tensor:
    """alpha f(x / alpha) in the computing type; `room` may be overwritten."""
    if function.torch_scaled_value is not None:
        return function.torch_scaled_value(x, scale.exactly)
    u = scale.over_alpha(x, room)
    least = u.amin().item() if scale.value_reach < math.inf and u.numel() else 0.0
    far = None if least >= -scale.value_reach else u < -scale.value_reach
    if scale.lost is not None and not least >= -function.value_reach:
        # What rounding u has lost, (x - alpha u) f'(u) to first order.
        rest = torch.add(x, u, alpha=-scale.alpha.item()).add_(u, alpha=-scale.lost).nan_to_num_(nan=0.0)
        t = (function.torch_value_ or function.torch_value)(u)
        result = torch.add(function.torch_gradient_of_value(rest, t), t, alpha=scale.alpha.item(), out=t)
    else:
        result = (function.torch_value_ or function.torch_value)(u).mul_(scale.alpha)
    if far is not None:
        u, alpha = scale.at(far, x)
        result[far] = ((function.torch_tail or function.torch_value)(u) * alpha).to(result.dtype)
    return result


@made_once(64)
def _table(function: Function, dtype: torch.dtype, alpha: float) -> Tensor:
    """alpha f(x / alpha) for each x of a 16-bit type, by its bits."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return _value(function, x, scale_of(function, x, alpha), Room().for_(x)).to(dtype)


def _look_up(values: Tensor, x: Tensor, out: Tensor) -> None:
    """The values for the bits of x: `index_select` is twice as fast as `take`, but has one thread only."""
    if torch.get_num_threads() > 1 and x.numel() > GRAIN:
        torch.take(values, x.view(torch.int16).long(), out=out)
        return
    bits = x.view(torch.uint16).to(torch.int32)
    found = torch.index_select(values, 0, bits.as_strided((bits.numel(),), (1,)))
    out.copy_(found.as_strided(bits.shape, bits.stride()))


def slope(function: Function, x: Tensor, u: Tensor, scale: Scale) -> Tensor:
    """f'(u) with u = x / alpha, which is overwritten."""
    far = None
    if scale.slope_reach < math.inf:
        least, greatest = (bound.item() for bound in u.aminmax())
        if not (least >= -scale.slope_reach and greatest <= scale.slope_reach):
            far = u.abs() > scale.slope_reach
    result = (function.torch_slope_ or function.torch_slope)(u)
    if far is not None:
        result[far] = function.torch_slope(scale.at(far, x)[0]).to(result.dtype)
    return result


class Scale(NamedTuple):
    """What alpha means for tensors of a dtype.

    Numbers are 0-d tensors here, since a Python number costs an operation a microsecond to wrap.
    """

    alpha: Tensor
    exactly: float | Tensor  # alpha as it was given: a number, or for each channel in float64
    lost: float | None  # exactly - alpha where rounding x / alpha is to be corrected
    is_exact: bool  # whether dividing by alpha rounds nothing
    over_alpha: Callable[[Tensor, Tensor], Tensor]  # x / alpha, written to memory of the computing type
    value_reach: float  # of -u, beyond which the value is computed in fp64
    slope_reach: float  # of abs(u), beyond which the slope is computed in fp64

    def at(self, far: Tensor, x: Tensor) -> tuple[Tensor, float | Tensor]:
        """x / alpha in fp64 where `far`, and alpha there."""
        alpha = self.exactly
        if isinstance(alpha, Tensor):
            alpha = alpha.expand_as(x)[far]
        return x[far].double() / alpha, alpha


def scale_of(function: Function, x: Tensor, alpha: float | Tensor) -> Scale:
    """The scale of a number, or of one for each x[:, channel]."""
    if not isinstance(alpha, Tensor):
        return _scale(function, x.dtype, alpha)
    exactly = by_channel(alpha, x).double()
    operand = exactly.to(_computing(x.dtype))
    reach = function.value_reach if x.dtype == torch.float32 else _value_reach(function, x.dtype)

    def over_alpha(x: Tensor, out: Tensor) -> Tensor:
        return torch.div(x, operand, out=out) if x.dtype is out.dtype else out.copy_(x).div_(operand)

    return Scale(operand, exactly, None, False, over_alpha, reach, _slope_reach(function, x.dtype))


@lru_cache(maxsize=1024)
def _scale(function: Function, dtype: torch.dtype, alpha: float) -> Scale:
    operand = torch.tensor(alpha, dtype=_computing(dtype), device="cpu")
    is_exact = math.frexp(alpha)[0] == 0.5
    inverse = operand.reciprocal()

    def over_alpha(x: Tensor, out: Tensor) -> Tensor:
        if dtype.itemsize == 2:
            return out.copy_(x).mul_(inverse)
        return torch.mul(x, inverse, out=out) if is_exact else torch.div(x, operand, out=out)

    is_corrected = dtype == torch.float32 and not is_exact and not math.isinf(function.value_reach)
    lost = alpha - operand.item() if is_corrected else None
    value_reach, slope_reach = _value_reach(function, dtype), _slope_reach(function, dtype)
    return Scale(operand, alpha, lost, is_exact, over_alpha, value_reach, slope_reach)


def _value_reach(function: Function, dtype: torch.dtype) -> float:
    return math.inf if math.isinf(function.value_reach) else FAR.get(dtype, math.inf)


def _slope_reach(function: Function, dtype: torch.dtype) -> float:
    return function.slope_reach if dtype == torch.float32 else math.inf


def _computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def learned_forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    scale = float(alpha) if alpha.numel() == 1 else alpha
    return forward(function, x, scale, table=LEARNED_TABLE)


def learned_backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g f'(u) and, summed over what shares an alpha, g (f(u) - u f'(u)), with u = x / alpha."""
    shared = alpha.numel() == 1
    scale = scale_of(function, x, float(alpha) if shared else alpha)
    in_x = torch.empty_like(x) if dx else x  # x where nothing is written
    total = torch.zeros(alpha.numel(), dtype=torch.float64)
    rooms = Room(), Room()
    for part, incoming, result in parts(shared, x, g, in_x):
        u = scale.over_alpha(part, rooms[0].like(part))
        s = slope(function, part, rooms[1].like(part).copy_(u), scale)
        if dalpha:
            terms = _alpha_slope(function, u.clamp_(-LIMIT, LIMIT), s).mul_(incoming)
            total += terms.sum([d for d in range(terms.ndim) if d != 1 or shared]).double()
        if dx:
            torch.mul(s, incoming, out=result) if result.dtype is s.dtype else result.copy_(s.mul_(incoming))
    return in_x if dx else None, total.to(alpha.dtype).view_as(alpha) if dalpha else None


def _alpha_slope(function: Function, u: Tensor, s: Tensor) -> Tensor:
    """f(u) - u f'(u) with s = f'(u)."""
    if function.torch_alpha_slope is None or u.dtype == torch.float64:
        return torch.addcmul(function.torch_value(u), u, s, value=-1)
    return function.torch_alpha_slope(u, s)


def composed_learned_backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As `learned_backward`, in PyTorch operations that are differentiable in grad mode."""
    wide, g_wide = widened(x), widened(g)
    u = wide / by_channel(alpha, x).to(wide.dtype)
    slope = function.torch_slope(u)
    in_x = (g_wide * slope).to(g.dtype) if dx else None
    if not dalpha:
        return in_x, None
    u = u.clamp(-LIMIT, LIMIT)
    terms = g_wide * (function.torch_value(u) - u * slope)
    total = terms.sum([d for d in range(terms.ndim) if d != 1 or alpha.numel() == 1])
    return in_x, total.to(alpha.dtype).view_as(alpha)
