"""Both directions with an alpha that learns: one for a layer, or one for each channel, read from the device.

    forward    y = alpha f(x / alpha)        reads x,          writes y     2 elements moved per element
    backward   dx = g f'(u)                  reads g and x,    writes dx    3 elements moved per element
               dalpha = sum g (f(u) - u f'(u)), in the same pass, with u = x / alpha

The memory of a tensor is cut into rows, in each of which the channels come in the same order, and a row into
tiles. A program keeps to one tile of the row and walks down the rows: it reads its alphas once, and each of
its threads sums the gradient of its own columns. Columns that surely belong to one channel are added up at
the end, and what is left is for PyTorch to add. The order is fixed, so that the result is, to the bit.

An alpha that has left the range of `coefficients.py`, or is NaN, makes NaN of what it scales: nothing here
can wait for the device to complain.
"""

from __future__ import annotations

from ._triton import tl, triton
from .activation import activation
from .coefficients import ALPHA_MAX, ALPHA_MIN, constant
from .counters import open_counters
from .math import at_least, at_most, fma, narrow, widen
from .sketch import close_counters, count, words

UNIT = 8  # elements of which a row has a multiple, so that each begins at a multiple of 16 bytes
ELEMENTS = constant(UNIT)


@triton.jit
def scales(alpha_ptr, columns, inner, channels, PER_CHANNEL: tl.constexpr):
    """alpha and 1 / alpha in fp64, of each column where channels have their own."""
    if PER_CHANNEL:
        alpha_ptr += (columns // inner) % channels
    alpha = widen(tl.load(alpha_ptr)).to(tl.float64)
    alpha = tl.where((alpha >= ALPHA_MIN) & (alpha <= ALPHA_MAX), alpha, float("nan"))
    return alpha, 1.0 / alpha


@triton.jit
def first_tile(width, BLOCK: tl.constexpr):
    """Where a program begins, the column of that, and how far it goes with each step."""
    tiles = tl.cdiv(width, BLOCK)
    column = (tl.program_id(0) % tiles) * BLOCK
    return (tl.program_id(0) // tiles) * width + column, column, (tl.num_programs(0) // tiles) * width


@triton.jit(do_not_specialize=["n", "units", "inner", "channels"])
def learned_forward_kernel(
    x_ptr,
    alpha_ptr,
    y_ptr,
    n: tl.int64,
    units: tl.int64,
    inner: tl.int64,
    channels: tl.int64,
    VALUE: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    width = units * ELEMENTS
    start, column, step = first_tile(width, BLOCK)
    offs = tl.arange(0, BLOCK)
    alpha, inv = scales(alpha_ptr, column + offs, inner, channels, PER_CHANNEL)
    while start < n:
        x, y = x_ptr + start + offs, y_ptr + start + offs
        if start + BLOCK > n:
            mask = offs < tl.minimum(n - start, width - column)
            activation(x, y, mask, alpha, inv, VALUE)
        elif WHOLE:
            activation(x, y, None, alpha, inv, VALUE)
        else:
            activation(x, y, offs < width - column, alpha, inv, VALUE)
        start += step


@triton.jit
def alpha_slope(
    x, alpha, inv, DTYPE: tl.constexpr, VALUE: tl.constexpr, SLOPE: tl.constexpr, ALPHA_SLOPE: tl.constexpr
):
    """f(u) - u f'(u): by the function's own way in fp32, if it has one, else from value and slope."""
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
    g_ptr,
    x_ptr,
    dx_ptr,
    mask,
    alpha,
    inv,
    total,
    base,
    counts_ptr,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    ALPHA_SLOPE: tl.constexpr,
    DX: tl.constexpr,
    SUM: tl.constexpr,
    M: tl.constexpr,
    SHARED: tl.constexpr,
):
    """One tile of dx, stored and counted; returns total + g (f(u) - u f'(u))."""
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    x = widen(tl.load(x_ptr, mask=mask))
    g = widen(tl.load(g_ptr, mask=mask))
    if DX:
        dx = narrow(g * SLOPE(x, alpha, inv, DTYPE), DTYPE)
        tl.store(dx_ptr, dx, mask=mask)
        if M:
            count(base, counts_ptr, dx, mask, M, SHARED, True)
    if SUM:
        added = fma(g, alpha_slope(x, alpha, inv, DTYPE, VALUE, SLOPE, ALPHA_SLOPE), total)
        total = added if mask is None else tl.where(mask, added, total)
    return total


@triton.jit(do_not_specialize=["n", "units", "inner", "channels"])
def learned_backward_kernel(
    g_ptr,
    x_ptr,
    alpha_ptr,
    counts_ptr,
    sums_ptr,
    dx_ptr,
    n: tl.int64,
    units: tl.int64,
    inner: tl.int64,
    channels: tl.int64,
    VALUE: tl.constexpr,
    SLOPE: tl.constexpr,
    ALPHA_SLOPE: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    WHOLE: tl.constexpr,
    DX: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx unless DX is False, counted unless M is 0; sums (chunks, width / GROUP) unless GROUP is 0."""
    width = units * ELEMENTS
    start, column, step = first_tile(width, BLOCK)
    offs = tl.arange(0, BLOCK)
    alpha, inv = scales(alpha_ptr, column + offs, inner, channels, PER_CHANNEL)
    base = open_counters(words(M), SHARED and M > 0)
    total = tl.zeros([BLOCK], tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32)
    SUM: tl.constexpr = GROUP > 0
    while start < n:
        g, x, dx = g_ptr + start + offs, x_ptr + start + offs, dx_ptr + start + offs
        if start + BLOCK > n:
            mask = offs < tl.minimum(n - start, width - column)
            total = backward_tile(
                g, x, dx, mask, alpha, inv, total, base, counts_ptr,
                VALUE, SLOPE, ALPHA_SLOPE, DX, SUM, M, SHARED,
            )  # fmt: skip
        elif WHOLE:
            total = backward_tile(
                g, x, dx, None, alpha, inv, total, base, counts_ptr,
                VALUE, SLOPE, ALPHA_SLOPE, DX, SUM, M, SHARED,
            )  # fmt: skip
        else:
            mask = offs < width - column
            total = backward_tile(
                g, x, dx, mask, alpha, inv, total, base, counts_ptr,
                VALUE, SLOPE, ALPHA_SLOPE, DX, SUM, M, SHARED,
            )  # fmt: skip
        start += step
    if SUM:
        add_up(sums_ptr, total, tl.program_id(0) // tl.cdiv(width, BLOCK), column, width, GROUP, BLOCK)
    if M:
        close_counters(base, counts_ptr, M, SHARED)


@triton.jit
def add_up(sums_ptr, total, row, column, width, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Store the sums of each GROUP columns of a tile."""
    COUNT: tl.constexpr = BLOCK // GROUP
    group = column // GROUP + tl.arange(0, COUNT)
    sums = tl.sum(tl.reshape(total, [COUNT, GROUP]), axis=1)
    tl.store(sums_ptr + row * (width // GROUP) + group, sums, mask=group < width // GROUP)
