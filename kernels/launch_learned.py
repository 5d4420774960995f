"""Where a tensor is computed whose alpha is a tensor: the geometry of rows and tiles, see `learned.py`."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference_learned, reference_sketch
from .launch import (
    BACKWARD_BLOCK,
    FORWARD_BLOCK,
    NUM_WARPS,
    SKETCH_PROGRAMS,
    SKETCH_WARPS,
    count,
    counting,
    dense,
    multiprocessors,
    takes_kernel,
)
from .launcher import launch
from .learned import UNIT, learned_backward_kernel, learned_forward_kernel
from .registry import Function

PROGRAMS = 8  # for each multiprocessor, as many of 4 warps as it may hold at a time
COUNTED_BITS = 4  # of a sketch; more leave no shared memory for sums, and are counted in a second pass


class Rows(NamedTuple):
    """How the memory of a tensor is cut: see `learned.py`."""

    width: int  # elements of a row
    inner: int  # elements that follow each other and have the same channel
    channels: int
    tiles: int  # of a row
    chunks: int  # programs that share the rows with the same tile
    group: int  # columns that surely have the same channel

    @property
    def per_channel(self) -> bool:
        return self.channels > 1


@lru_cache(maxsize=1024)
def rows(n: int, inner: int, channels: int, block: int, programs: int) -> Rows:
    """The rows of n elements whose channels come again after inner * channels of them."""
    if channels == 1:
        inner = width = block
    else:
        width = row_width(inner * channels, block)
    tiles = -(-width // block)
    chunks = min(max(programs // tiles, 1), -(-n // width))
    return Rows(width, inner, channels, tiles, chunks, math.gcd(inner, block))


def row_width(period: int, block: int) -> int:
    """The multiple of `period` and of UNIT that fills blocks best, the smallest of the nearly best."""
    step = math.lcm(period, UNIT)
    widths = range(step, max(step, 4 * block) + 1, step)

    def filled(width: int) -> float:
        return width / (-(-width // block) * block)

    best = max(map(filled, widths))
    return next(width for width in widths if filled(width) > 0.97 * best)


def forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha) with one alpha, or one for each x[:, channel]."""
    if not takes_kernel(x):
        return reference_learned.forward(function, x, alpha)
    x, alpha = dense(x), alpha.contiguous()
    y = torch.empty_like(x)
    block = FORWARD_BLOCK[x.element_size()]
    cut = rows_of(x, alpha, block, PROGRAMS)
    whole = cut.width % block == 0
    constants = (function.value, cut.per_channel, whole, block)
    launch(
        learned_forward_kernel,
        (function, "learned forward", alpha.dtype, cut.per_channel, whole),
        cut.tiles * cut.chunks,
        (x, alpha, y),
        *(x.numel(), cut.width // UNIT, cut.inner, cut.channels, *constants),
        num_warps=NUM_WARPS,
    )
    return y


def backward(
    function: Function,
    g: Tensor,
    x: Tensor,
    alpha: Tensor,
    *,
    dx: bool,
    dalpha: bool,
    counts: Tensor | None = None,
    m: int = 3,
) -> tuple[Tensor | None, Tensor | None]:
    """If dx, g f'(u), counted if there are `counts`; if dalpha, g (f(u) - u f'(u)) summed for each alpha."""
    if not takes_kernel(x):
        in_x, in_alpha = reference_learned.backward(function, g, x, alpha, dx=dx, dalpha=dalpha)
        if counts is not None and in_x is not None:
            reference_sketch.count(counts, dense(in_x), m)
        return in_x, in_alpha
    if counts is not None and m > COUNTED_BITS:
        in_x, in_alpha = backward(function, g, x, alpha, dx=dx, dalpha=dalpha)
        if in_x is not None:
            count(counts, in_x, m)
        return in_x, in_alpha
    x, alpha = dense(x), alpha.contiguous()
    if g.stride() != x.stride():
        g = torch.empty_like(x).copy_(g)
    in_x = torch.empty_like(x) if dx else x
    if counts is None:
        block, shared, m = BACKWARD_BLOCK[x.element_size()], False, 0
        warps, programs = NUM_WARPS, PROGRAMS
    else:
        _, block, shared = counting(x, m)
        warps, programs = SKETCH_WARPS[m], SKETCH_PROGRAMS[m]
    cut = rows_of(x, alpha, block, programs)
    group = cut.group if dalpha else 0
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.empty(cut.chunks, cut.width // cut.group if dalpha else 0, dtype=exact, device=x.device)
    constants = (cut.per_channel, cut.width % block == 0, dx, group, m, shared, block)
    launch(
        learned_backward_kernel,
        (function, "learned backward", alpha.dtype, *constants),
        cut.tiles * cut.chunks,
        (g, x, alpha, sums if counts is None else counts, sums, in_x),
        *(x.numel(), cut.width // UNIT, cut.inner, cut.channels),
        *(function.value, function.slope, function.alpha_slope, *constants),
        num_warps=warps,
    )
    if not dalpha:
        return in_x, None
    sums = sums.view(-1, cut.channels, cut.inner // cut.group).sum((0, 2))
    return in_x if dx else None, sums.view_as(alpha).to(alpha.dtype)


def rows_of(x: Tensor, alpha: Tensor, block: int, programs: int) -> Rows:
    channels = alpha.numel()
    inner = x.stride(1) if channels > 1 else 1
    return rows(x.numel(), inner, channels, block, programs * multiprocessors(x.device))
