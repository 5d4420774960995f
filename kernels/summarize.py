"""The kernel that reads sketches: a program turns one row of counts into one row of statistics.

The same arithmetic as in `summary.py`, its plain-PyTorch twin, in one launch for all rows: the counts of a
row are read once, cumulated, and every quantile is a search in registers.
"""

from __future__ import annotations

from ._triton import tl, triton
from .sketch import bin_count, zero_bin


@triton.jit
def order_statistic(rank, counts, through, position, lower_ptr, upper_ptr, BINS: tl.constexpr):
    """The value of rank `rank` (an integer in fp64), as if its bin's values were spread evenly."""
    found = tl.minimum(tl.sum((through <= rank.to(tl.int64)).to(tl.int32)), BINS - 1)
    inside = tl.sum(tl.where(position == found, counts, 0))
    before = tl.sum(tl.where(position < found, counts, 0))
    lower, upper = tl.load(lower_ptr + found), tl.load(upper_ptr + found)
    estimate = lower + (upper - lower) * ((rank - before.to(tl.float64) + 0.5) / inside.to(tl.float64))
    return tl.where(lower == upper, lower, estimate)


@triton.jit
def summarize_kernel(
    out_ptr,
    scale_ptr,
    q_ptr,
    thresholds_ptr,
    lower_ptr,
    upper_ptr,
    counts_ptr,
    M: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
):
    ZERO: tl.constexpr = zero_bin(M)
    BINS: tl.constexpr = ZERO + 1 if MAGNITUDE else 2 * ZERO + 1
    row = tl.program_id(0).to(tl.int64)
    out_ptr += row * (5 + K + T)
    counts_ptr += row * bin_count(M)
    scale = tl.load(scale_ptr + row)
    position = tl.arange(0, WIDTH)
    there = position < BINS
    if MAGNITUDE:
        counts = tl.load(counts_ptr + ZERO + position, mask=there, other=0)
        counts += tl.load(counts_ptr + ZERO - position, mask=there & (position > 0), other=0)
    else:
        counts = tl.load(counts_ptr + position, mask=there, other=0)
    n = tl.sum(counts)
    through = tl.cumsum(counts)
    nans = tl.load(counts_ptr + 2 * ZERO + 1)
    tl.store(out_ptr, (n + nans).to(tl.float64))
    tl.store(out_ptr + 1, tl.load(counts_ptr + ZERO).to(tl.float64))
    tl.store(out_ptr + 2, (tl.load(counts_ptr) + tl.load(counts_ptr + 2 * ZERO)).to(tl.float64))
    tl.store(out_ptr + 3, nans.to(tl.float64))

    lower = tl.load(lower_ptr + position, mask=there, other=0.0)
    upper = tl.load(upper_ptr + position, mask=there, other=0.0)
    number = n.to(tl.float64)
    near = tl.where(lower < 0, upper, lower)
    middle = tl.where(tl.abs(near) < 2.0**128, (lower + upper) / 2, near)
    total = tl.sum(tl.where(counts > 0, counts.to(tl.float64) * middle, 0.0))
    tl.store(out_ptr + 4, total / number / scale)

    for k in range(K):
        rank = tl.load(q_ptr + k) * tl.maximum(n - 1, 0).to(tl.float64)
        first = tl.floor(rank)
        below = order_statistic(first, counts, through, position, lower_ptr, upper_ptr, BINS)
        above = order_statistic(tl.ceil(rank), counts, through, position, lower_ptr, upper_ptr, BINS)
        part = rank - first
        infinite = (tl.abs(below) == float("inf")) | (tl.abs(above) == float("inf"))
        estimate = tl.where(infinite, below * (1 - part) + above * part, below + (above - below) * part)
        estimate = tl.where((below == above) | (part == 0), below, estimate)
        tl.store(out_ptr + 5 + k, tl.where(n == 0, float("nan"), estimate / scale))

    for t in range(T):
        threshold = tl.load(thresholds_ptr + t) * scale
        share = tl.minimum(tl.maximum((threshold - lower) / (upper - lower), 0.0), 1.0)
        share = tl.where(upper > lower, share, (lower < threshold).to(tl.float64))
        tl.store(out_ptr + 5 + K + t, tl.sum(counts.to(tl.float64) * share) / number)
