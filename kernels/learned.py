"""The activation with an alpha that learns: one per layer, or one per channel, read from the device.

    learned_forward_kernel     y = alpha f(x / alpha)    reads x, writes y           2 N elements moved
    learned_backward_kernel    dx = g f'(u)              reads g and x, writes dx    3 N elements moved
                               dalpha = sum g (f(u) - u f'(u)), u = x / alpha, in the same pass

The memory of a tensor is cut into rows, each with the same order of channels, and a row into tiles. A program
keeps to one tile of the row and walks down the rows: it reads its alphas once, and each of its threads sums
the gradient of its own columns. Columns that surely belong to one channel are added up at the end; PyTorch
adds the rest. The order is fixed, and so is the result, to the bit. The masked tile at the end stands outside
the loop: inside, it costs a register pair for the address of each element, and half of the resident programs.

An alpha outside ALPHA_RANGE, or NaN, turns what it scales into NaN: nothing here can wait for the device to
complain.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import counters, device, launcher, reference, reference_sketch, sketch
from ._triton import tl, triton
from .activation import BACKWARD_BLOCK, FORWARD_BLOCK, NUM_WARPS, activation
from .counters import open_counters
from .functions import Function
from .math import ALPHA_MAX, ALPHA_MIN, at_least, at_most, constant, fma, narrow, widen
from .sketch import close_counters, count_values, words

UNIT = 8  # a row has a multiple of this many elements, so that each begins at a multiple of 16 bytes
ELEMENTS = constant(UNIT)
PROGRAMS = 8  # of the forward kernel per multiprocessor, as many as it may hold at a time
# Of the backward kernel, as many as its registers surely let a multiprocessor hold: by whether channels have
# alphas of their own, and whether the gradient is counted.
BACKWARD_PROGRAMS = {(False, False): 6, (True, False): 4, (False, True): 3, (True, True): 2}
COUNTED_BITS = 4  # mantissa bits of a sketch; more leave no shared memory for sums, and take a second pass


@triton.jit
def scales(alpha_ptr, columns, inner, channels, PER_CHANNEL: tl.constexpr):
    """alpha and 1 / alpha in fp64: scalars, or one for each column where channels have their own."""
    if PER_CHANNEL:
        alpha_ptr += (columns // inner) % channels
    alpha = widen(tl.load(alpha_ptr)).to(tl.float64)
    alpha = tl.where((alpha >= ALPHA_MIN) & (alpha <= ALPHA_MAX), alpha, float("nan"))
    return alpha, 1.0 / alpha


@triton.jit
def first_tile(width, BLOCK: tl.constexpr):
    """A program's first element, its column, and the distance to the program's next tile."""
    tiles = tl.cdiv(width, BLOCK)
    column = (tl.program_id(0) % tiles) * BLOCK
    return (tl.program_id(0) // tiles) * width + column, column, (tl.num_programs(0) // tiles) * width


@triton.jit(do_not_specialize=["n", "units", "inner", "channels"])
def learned_forward_kernel(
    x_ptr, alpha_ptr, y_ptr,
    n: tl.int64, units: tl.int64, inner: tl.int64, channels: tl.int64,
    VALUE: tl.constexpr, PER_CHANNEL: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    width = units * ELEMENTS
    start, column, step = first_tile(width, BLOCK)
    offs = tl.arange(0, BLOCK)
    alpha, inv = scales(alpha_ptr, column + offs, inner, channels, PER_CHANNEL)
    while start + BLOCK <= n:
        mask = None if WHOLE else offs < width - column
        activation(x_ptr + start + offs, y_ptr + start + offs, mask, alpha, inv, VALUE)
        start += step
    if start < n:
        mask = offs < tl.minimum(n - start, width - column)
        activation(x_ptr + start + offs, y_ptr + start + offs, mask, alpha, inv, VALUE)


@triton.jit
def alpha_slope(
    x, alpha, inv, DTYPE: tl.constexpr, VALUE: tl.constexpr, SLOPE: tl.constexpr, ALPHA_SLOPE: tl.constexpr
):
    """f(u) - u f'(u): by the function's own formula in fp32, if it has one, else from value and slope."""
    if ALPHA_SLOPE is None or DTYPE == tl.float64:
        limit = (alpha * 2.0**60).to(x.dtype)
        x = at_least(at_most(x, limit), -limit)
        y = VALUE(x, alpha, inv, DTYPE)
        slope = fma(-x, SLOPE(x, alpha, inv, DTYPE), y) * inv.to(x.dtype)
    else:
        slope = ALPHA_SLOPE(x, alpha, inv, DTYPE)
    return slope


@triton.jit
def backward_tile(
    g_ptr, x_ptr, dx_ptr, mask, alpha, inv, total, on, base, counts_ptr,
    VALUE: tl.constexpr, SLOPE: tl.constexpr, ALPHA_SLOPE: tl.constexpr, DX: tl.constexpr, SUM: tl.constexpr,
    M: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Store and count one tile of dx; return total + g (f(u) - u f'(u))."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    x = widen(tl.load(x_ptr, mask=mask))
    g = widen(tl.load(g_ptr, mask=mask))
    if DX:
        dx = narrow(g * SLOPE(x, alpha, inv, DTYPE), DTYPE, SHARED)
        tl.store(dx_ptr, dx, mask=mask)
        if on != 0:
            count_values(base, counts_ptr, dx, mask, M, SHARED, True)
    if SUM:
        added = fma(g, alpha_slope(x, alpha, inv, DTYPE, VALUE, SLOPE, ALPHA_SLOPE), total)
        total = added if mask is None else tl.where(mask, added, total)
    return total


@triton.jit(do_not_specialize=["n", "units", "inner", "channels"])
def learned_backward_kernel(
    g_ptr, x_ptr, alpha_ptr, on_ptr, counts_ptr, sums_ptr, dx_ptr,
    n: tl.int64, units: tl.int64, inner: tl.int64, channels: tl.int64,
    VALUE: tl.constexpr, SLOPE: tl.constexpr, ALPHA_SLOPE: tl.constexpr, PER_CHANNEL: tl.constexpr,
    WHOLE: tl.constexpr, DX: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """dx unless DX is False, counted unless M or the switch is 0; sums (chunks, width / GROUP) if wanted."""
    width = units * ELEMENTS
    start, column, step = first_tile(width, BLOCK)
    offs = tl.arange(0, BLOCK)
    alpha, inv = scales(alpha_ptr, column + offs, inner, channels, PER_CHANNEL)
    on = tl.load(on_ptr) if M else 0
    base = open_counters(words(M), SHARED and M > 0)
    total = tl.zeros([BLOCK], tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32)
    SUM: tl.constexpr = GROUP > 0
    while start + BLOCK <= n:
        total = backward_tile(
            g_ptr + start + offs, x_ptr + start + offs, dx_ptr + start + offs,
            None if WHOLE else offs < width - column, alpha, inv, total, on, base, counts_ptr,
            VALUE, SLOPE, ALPHA_SLOPE, DX, SUM, M, SHARED,
        )  # fmt: skip
        start += step
    if start < n:
        total = backward_tile(
            g_ptr + start + offs, x_ptr + start + offs, dx_ptr + start + offs,
            offs < tl.minimum(n - start, width - column), alpha, inv, total, on, base, counts_ptr,
            VALUE, SLOPE, ALPHA_SLOPE, DX, SUM, M, SHARED,
        )  # fmt: skip
    if SUM:
        column = column if PER_CHANNEL else 0  # so that no register keeps it over the loop
        add_up(sums_ptr, total, tl.program_id(0) // tl.cdiv(width, BLOCK), column, width, GROUP, BLOCK)
    if on != 0:
        close_counters(base, counts_ptr, M, SHARED)


@triton.jit
def add_up(sums_ptr, total, row, column, width, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Store the sums of each GROUP columns of a tile."""
    COUNT: tl.constexpr = BLOCK // GROUP
    group = column // GROUP + tl.arange(0, COUNT)
    sums = tl.sum(tl.reshape(total, [COUNT, GROUP]), axis=1)
    tl.store(sums_ptr + row * (width // GROUP) + group, sums, mask=group < width // GROUP)


class Rows(NamedTuple):
    """How the memory of a tensor is cut."""

    width: int  # of a row, in elements
    inner: int  # consecutive elements of the same channel
    channels: int
    tiles: int  # of a row
    chunks: int  # programs that share a tile's rows
    group: int  # consecutive columns that surely have the same channel

    @property
    def per_channel(self) -> bool:
        return self.channels > 1


@lru_cache(maxsize=1024)
def rows(n: int, inner: int, channels: int, block: int, programs: int) -> Rows:
    """The rows of n elements whose channels repeat every inner * channels elements."""
    if channels == 1:
        inner = width = block
    else:
        width = row_width(inner * channels, block)
    tiles = -(-width // block)
    chunks = min(max(programs // tiles, 1), -(-n // width))
    return Rows(width, inner, channels, tiles, chunks, math.gcd(inner, block))


def row_width(period: int, block: int) -> int:
    """The multiple of `period` and UNIT that fills blocks best: the smallest of those nearly best."""
    step = math.lcm(period, UNIT)
    widths = range(step, max(step, 4 * block) + 1, step)

    def filled(width: int) -> float:
        return width / (-(-width // block) * block)

    best = max(map(filled, widths))
    return next(width for width in widths if filled(width) > 0.97 * best)


def forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha) with one alpha, or one for each x[:, channel]."""
    if not device.takes_kernel(x):
        return reference.learned_forward(function, x, alpha)
    x, alpha = launcher.dense(x), alpha.contiguous()
    y = torch.empty_like(x)
    block = FORWARD_BLOCK[x.element_size()]
    cut = rows_of(x, alpha, block, PROGRAMS)
    whole = cut.width % block == 0
    constants = (function.value, cut.per_channel, whole, block)
    launcher.launch(
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
    on: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """With dx, g f'(u); with dalpha, g (f(u) - u f'(u)) summed for each alpha.

    Also adds dx to `counts`, if given, unless on[0] is 0.
    """
    if not device.takes_kernel(x):
        in_x, in_alpha = reference.learned_backward(function, g, x, alpha, dx=dx, dalpha=dalpha)
        if counts is not None and in_x is not None:
            reference_sketch.count(counts, in_x, m, on)
        return in_x, in_alpha
    if counts is not None and m > COUNTED_BITS:
        in_x, in_alpha = backward(function, g, x, alpha, dx=dx, dalpha=dalpha)
        if in_x is not None:
            sketch.count(counts, in_x, m, on)
        return in_x, in_alpha
    x, alpha = launcher.dense(x), alpha.contiguous()
    if g.stride() != x.stride():
        g = torch.empty_like(x).copy_(g)
    in_x = torch.empty_like(x) if dx else x
    if counts is None:
        block, shared, m = BACKWARD_BLOCK[x.element_size()], False, 0
        warps = NUM_WARPS
    else:
        _, block, shared = counters.geometry(x, m)
        warps = counters.WARPS[m]
    cut = rows_of(x, alpha, block, BACKWARD_PROGRAMS[alpha.numel() > 1, counts is not None])
    group = cut.group if dalpha else 0
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.empty(cut.chunks, cut.width // cut.group if dalpha else 0, dtype=exact, device=x.device)
    switch = counters.always(x.device) if on is None else on
    constants = (cut.per_channel, cut.width % block == 0, dx, group, m, shared, block)
    launcher.launch(
        learned_backward_kernel,
        (function, "learned backward", alpha.dtype, *constants),
        cut.tiles * cut.chunks,
        (g, x, alpha, switch, sums if counts is None else counts, sums, in_x),
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
    return rows(x.numel(), inner, channels, block, programs * device.multiprocessors(x.device))
