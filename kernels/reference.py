"""The plain-PyTorch twin of every kernel: the CPU path, and the differentiable form of both directions.

16-bit tensors are computed in fp32, like in the kernels; where that is slow, a table holds the result for
each of the 65,536 values. Large tensors are computed part by part, so that temporaries stay in the cache.
Unlike in the kernels, an x below 2^-126 alpha loses precision, since x / alpha is a subnormal number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from .device import made_once
from .functions import ONE, Function, Scale
from .launcher import dense

PART = 1 << 18  # elements for two threads; temporaries stay in the cache, and threads seldom meet
TABLE = 1 << 14  # 16-bit values from which on they are looked up
LEARNED_TABLE = 1 << 18  # the same of a table that serves one step
GRAIN = 1 << 15  # elements that PyTorch computes on one thread
ROWS = 16  # of a larger look-up, which threads share
LIMIT = 2.0**60  # of abs(u), beyond which u f'(u) is 0 or its limit, and an infinite u would make NaN of it


def forward(function: Function, x: Tensor, alpha: float | Tensor, *, is_learned: bool = False) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be; a tensor alpha has one for each channel."""
    y = torch.empty_like(x)
    shared, least = not isinstance(alpha, Tensor), LEARNED_TABLE if is_learned else TABLE
    by_table = function.torch_by_table and x.dtype.itemsize == 2 and x.numel() >= least
    if by_table and not isinstance(alpha, Tensor):
        x = dense(x)  # so that parts are blocks of memory
        values, bits = _table(function, x.dtype, alpha), Room(torch.int64)
        for out, part in parts(shared, y, x):
            _look_up(values, bits.like(part).copy_(part.view(torch.uint16)), out)
        return y
    scale, room = scale_of(function, x, alpha), Room()
    for out, part in parts(shared, y, x):
        y = _put(_value(function, part, scale, out, room), out, y)
    return y


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from x or from y = alpha f(x / alpha)."""
    dx = torch.empty_like(saved)
    scale, room, wide = scale_of(function, saved, alpha), Room(), Room()
    for out, incoming, part in parts(True, dx, g, saved):
        u = scale.over_alpha(part, room.for_(out))
        incoming = wide.holding(incoming)
        if not from_output:
            result = gradient(function, incoming, part, u, scale)
        else:
            if not scale.is_exact:  # alpha may have been rounded up in y, and no slope is negative
                u.clamp_(function.lower, function.upper)
            of_value = function.torch_gradient_of_value_ or function.torch_gradient_of_value
            result = of_value(incoming, u)
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
    """Memory for a part in a dtype, by default the computing type, used again for the next part."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._room: Tensor | None = None

    def for_(self, out: Tensor) -> Tensor:
        """`out` itself if it is of the computing type, else memory of its shape."""
        return self.like(out) if out.dtype.itemsize == 2 else out

    def holding(self, part: Tensor) -> Tensor:
        """`part` itself if it is of the computing type, else a copy that is."""
        return self.like(part).copy_(part) if part.dtype.itemsize == 2 else part

    def like(self, part: Tensor) -> Tensor:
        if self._room is None or self._room.shape != part.shape:
            self._room = torch.empty_like(part, dtype=self._dtype or _computing(part.dtype))
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


def _value(function: Function, x: Tensor, scale: Scale, out: Tensor, room: Room) -> Tensor:
    """alpha f(x / alpha), in `out` or elsewhere, of a dtype that may be wider."""
    if function.torch_scaled_value is not None:
        return function.torch_scaled_value(x, scale, out)
    u = scale.over_alpha(x, room.for_(out))
    return (function.torch_value_ or function.torch_value)(u).mul_(scale.alpha)


@made_once(64)
def _table(function: Function, dtype: torch.dtype, alpha: float) -> Tensor:
    """alpha f(x / alpha) for each x of a 16-bit type, by its bits."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)
    return _value(function, x, scale_of(function, x, alpha), torch.empty_like(x), Room()).to(dtype)


def _look_up(values: Tensor, bits: Tensor, out: Tensor) -> None:
    """The values for bits, in blocks of memory; many by rows, since `index_select` has one thread only."""
    n, found, bits = bits.numel(), *(t.as_strided((t.numel(),), (1,)) for t in (out, bits))
    rest = n - n % ROWS if n > GRAIN else 0
    if rest:
        rows = bits[:rest].view(ROWS, -1)
        torch.gather(values.expand(ROWS, -1), 1, rows, out=found[:rest].view(ROWS, -1))
    if rest < n:
        torch.index_select(values, 0, bits[rest:], out=found[rest:])


def gradient(function: Function, g: Tensor, x: Tensor, u: Tensor, scale: Scale) -> Tensor:
    """g f'(u) with u = x / alpha, which is overwritten; g may be one number."""
    far = None
    if scale.slope_reach < math.inf:
        least, greatest = (bound.item() for bound in u.aminmax())
        if not (least >= -scale.slope_reach and greatest <= scale.slope_reach):
            far = u.abs() > scale.slope_reach
    if function.torch_gradient_ is None:
        result = function.torch_slope(u).mul_(g)
    else:
        result = function.torch_gradient_(g, u)
    if far is not None:
        result[far] = (function.torch_slope(scale.at(far, x)) * g.expand_as(x)[far]).to(result.dtype)
    return result


def scale_of(function: Function, x: Tensor, alpha: float | Tensor) -> Scale:
    """The scale of a number, or of one for each x[:, channel]."""
    if not isinstance(alpha, Tensor):
        return _scale(function, x.dtype, alpha)
    exactly = by_channel(alpha, x).double()
    operand = exactly.to(_computing(x.dtype))

    def over_alpha(x: Tensor, out: Tensor) -> Tensor:
        return torch.div(x, operand, out=out) if x.dtype is out.dtype else out.copy_(x).div_(operand)

    reach = function.slope_reach if x.dtype == torch.float32 else math.inf
    return Scale(operand, exactly, False, over_alpha, reach)


@lru_cache(maxsize=1024)
def _scale(function: Function, dtype: torch.dtype, alpha: float) -> Scale:
    operand = torch.tensor(alpha, dtype=_computing(dtype), device="cpu")
    is_exact = math.frexp(alpha)[0] == 0.5
    inverse = operand.reciprocal()

    def over_alpha(x: Tensor, out: Tensor) -> Tensor:
        if dtype.itemsize == 2:
            return out.copy_(x).mul_(inverse)
        return torch.mul(x, inverse, out=out) if is_exact else torch.div(x, operand, out=out)

    reach = function.slope_reach if dtype == torch.float32 and not is_exact else math.inf
    return Scale(operand, alpha, is_exact, over_alpha, reach)


def _computing(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype.itemsize == 2 else dtype


def widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize == 2 else x


def learned_forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    scale = float(alpha) if alpha.numel() == 1 else alpha
    return forward(function, x, scale, is_learned=True)


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
        s = gradient(function, ONE, part, rooms[1].like(part).copy_(u), scale)
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
