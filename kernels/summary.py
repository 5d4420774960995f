"""Reading sketches: counts -> quantiles, intervals that surely hold them, shares, histograms.

    summarize_row    one row of counts -> one row of statistics, in a program of `record`; all quantiles are
                     looked up at once, first among the sums of segments of the row, then among one's bins

and the same in plain tensor operations on the counts' device, for any number of sketches; nothing waits for
the host. The rank of a quantile q of n values is h = q (n - 1), in float64, as in `numpy.quantile`; between
the order statistics floor(h) and ceil(h) it interpolates linearly. NaN is left out, infinities are values.

A statistic is added here: its name in STATISTICS, and its value at that place in the kernel and in its twin.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import tl, triton
from .counters import append_digit
from .device import made_once, to_device, upload
from .math import constant
from .reference_sketch import edges, zero_bin
from .sketch import constexpr_zero_bin

STATISTICS = ("count", "zeros", "infs", "nans", "mean")  # lead a summary's row; quantiles and shares follow
LEADING = constant(len(STATISTICS))
SEGMENT_BITS = constant(7)  # a rank is looked up among the sums of segments, then among the bins of one
PAGE = constant(1024)  # bins held at a time elsewhere


@triton.constexpr_function
def lanes(k):
    """Two for each of k quantiles; a power of two."""
    return 2 << max(k - 1, 0).bit_length()


@triton.constexpr_function
def held(width):
    """Bins of a segment held at a time: two for each thread."""
    return min(32, (1 << 16) // width)


@triton.jit
def counts_at(counts_ptr, position, M: tl.constexpr, MAGNITUDE: tl.constexpr):
    """The counts of the bins with these numbers, 0 beyond the last; with MAGNITUDE, of both signs."""
    ZERO: tl.constexpr = constexpr_zero_bin(M)
    if MAGNITUDE:
        counts = tl.load(counts_ptr + ZERO + position, mask=position <= ZERO, other=0)
        negative = (position > 0) & (position <= ZERO)
        counts += tl.load(counts_ptr + ZERO - position, mask=negative, other=0)
    else:
        counts = tl.load(counts_ptr + position, mask=position <= 2 * ZERO, other=0)
    return counts


@triton.jit
def edges_at(lower_ptr, upper_ptr, position, BINS: tl.constexpr):
    """The least and the greatest value of bins, and the one nearer to zero."""
    lower = tl.load(lower_ptr + position, mask=position < BINS, other=0.0)
    upper = tl.load(upper_ptr + position, mask=position < BINS, other=0.0)
    return lower, upper, tl.where(lower < 0, upper, lower)


@triton.jit
def order_statistics(
    rank, of_segments, counts_ptr, lower_ptr, upper_ptr, M: tl.constexpr, MAGNITUDE: tl.constexpr
):
    """The values of these ranks (integers in fp64), a bin's values taken to be spread evenly."""
    LAST: tl.constexpr = constexpr_zero_bin(M) if MAGNITUDE else 2 * constexpr_zero_bin(M)
    RANKS: tl.constexpr = rank.shape[0]
    found, inside = tl.zeros([RANKS], tl.int64), rank.to(tl.int64)
    of_segments = tl.broadcast_to(of_segments[None, :], [RANKS, of_segments.shape[0]])
    found, inside = append_digit(found, inside, of_segments, 0)
    position = (found[:, None] << SEGMENT_BITS) + tl.arange(0, 1 << SEGMENT_BITS)[None, :]
    found, inside = append_digit(found, inside, counts_at(counts_ptr, position, M, MAGNITUDE), SEGMENT_BITS)
    found = tl.minimum(found, LAST)
    count = counts_at(counts_ptr, found, M, MAGNITUDE).to(tl.float64)
    lower, upper = tl.load(lower_ptr + found), tl.load(upper_ptr + found)
    estimate = lower + (upper - lower) * ((inside.to(tl.float64) + 0.5) / count)
    return tl.where(lower == upper, lower, estimate)


@triton.jit
def summarize_row(
    out_ptr, counts_ptr, scale, q_ptr, thresholds_ptr, lower_ptr, upper_ptr,
    M: tl.constexpr, MAGNITUDE: tl.constexpr, K: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Turn one row of counts into one row of the summary."""
    ZERO: tl.constexpr = constexpr_zero_bin(M)
    BINS: tl.constexpr = ZERO + 1 if MAGNITUDE else 2 * ZERO + 1
    PART: tl.constexpr = held(WIDTH)
    segment = tl.arange(0, WIDTH >> SEGMENT_BITS)[:, None] << SEGMENT_BITS
    of_parts = tl.zeros([WIDTH >> SEGMENT_BITS, PART], tl.int64)
    terms = tl.zeros([WIDTH >> SEGMENT_BITS, PART], tl.float64)
    for first in range(0, 1 << SEGMENT_BITS, PART):
        position = segment + first + tl.arange(0, PART)[None, :]
        counts = counts_at(counts_ptr, position, M, MAGNITUDE)
        lower, upper, near = edges_at(lower_ptr, upper_ptr, position, BINS)
        middle = tl.where(tl.abs(near) < 2.0**128, (lower + upper) / 2, near)
        of_parts += counts
        terms += tl.where(counts > 0, counts.to(tl.float64) * middle, 0.0)
    of_segments = tl.sum(of_parts, axis=1)
    n = tl.sum(of_segments)
    number = n.to(tl.float64)
    nans = tl.load(counts_ptr + 2 * ZERO + 1)
    tl.store(out_ptr, (n + nans).to(tl.float64))
    tl.store(out_ptr + 1, tl.load(counts_ptr + ZERO).to(tl.float64))
    tl.store(out_ptr + 2, (tl.load(counts_ptr) + tl.load(counts_ptr + 2 * ZERO)).to(tl.float64))
    tl.store(out_ptr + 3, nans.to(tl.float64))
    tl.store(out_ptr + 4, tl.sum(terms) / number / scale)

    lane = tl.arange(0, lanes(K))
    wanted = tl.load(q_ptr + lane // 2, mask=lane < 2 * K, other=0.0) * tl.maximum(n - 1, 0).to(tl.float64)
    rank = tl.where(lane % 2 == 0, tl.floor(wanted), tl.ceil(wanted))
    values = order_statistics(rank, of_segments, counts_ptr, lower_ptr, upper_ptr, M, MAGNITUDE)
    below, above = tl.split(tl.reshape(values, [lane.shape[0] // 2, 2]))
    part, _ = tl.split(tl.reshape(wanted - tl.floor(wanted), [lane.shape[0] // 2, 2]))
    infinite = (tl.abs(below) == float("inf")) | (tl.abs(above) == float("inf"))
    estimate = tl.where(infinite, below * (1 - part) + above * part, below + (above - below) * part)
    estimate = tl.where((below == above) | (part == 0), below, estimate)
    k = tl.arange(0, lane.shape[0] // 2)
    tl.store(out_ptr + LEADING + k, tl.where(n == 0, float("nan"), estimate / scale), mask=k < K)

    for t in range(T):
        threshold = tl.load(thresholds_ptr + t) * scale
        fewer = tl.zeros([PAGE], tl.int64)
        for first in range(0, tl.where(n > 0, BINS, 0), PAGE):  # not a constant, which would unroll and spill
            position = first + tl.arange(0, PAGE)
            near = edges_at(lower_ptr, upper_ptr, position, BINS)[2]
            fewer += tl.where(tl.abs(near) < threshold, counts_at(counts_ptr, position, M, MAGNITUDE), 0)
        tl.store(out_ptr + LEADING + K + t, tl.sum(fewer).to(tl.float64) / number)


def extent(lower: Tensor) -> tuple[int, int]:
    """The number of bins, rounded up to a power of two, and how many warps take them."""
    width = 1 << (lower.numel() - 1).bit_length()
    return width, min(width // 256, 8)


def summarize(
    counts: Tensor, scale: Tensor, q: Tensor, thresholds: Tensor, m: int, *, magnitude: bool
) -> Tensor:
    """Summaries of sketches with counts (rows, bins) of values times scale (rows,).

    A row of the result, (rows, len(STATISTICS) + k + t) in float64, holds STATISTICS, the k quantiles q and
    the shares of values in bins whose magnitudes begin below the t thresholds, as by `summarize_row`.
    """
    values = distribution(counts, m, magnitude=magnitude)
    magnitudes = values if magnitude else distribution(counts, m, magnitude=True)
    scale = scale.unsqueeze(-1)
    numbers = [counts.sum(-1), counts[:, zero_bin(m)], counts[:, 0] + counts[:, -2], counts[:, -1]]
    parts = [
        torch.stack(numbers, -1).double(),
        mean(values).unsqueeze(-1) / scale,
        quantiles(values, q) / scale,
        fraction_of_bins_below(magnitudes, thresholds * scale),
    ]
    return torch.cat(parts, -1)


class Distribution(NamedTuple):
    """Counts of ascending bins, of values or of magnitudes, and each bin's least and greatest value."""

    counts: Tensor  # (..., bins)
    lower: Tensor  # (bins,)
    upper: Tensor  # (bins,)


def distribution(counts: Tensor, m: int, *, magnitude: bool) -> Distribution:
    """The bins, except NaN's, of sketches with counts (..., bin_count(m))."""
    lower, upper = edges_on(counts.device, m, magnitude=magnitude)
    if not magnitude:
        return Distribution(counts[..., :-1], lower, upper)
    zero = zero_bin(m)
    folded = counts[..., : zero + 1].flip(-1)
    folded += counts[..., zero:-1]
    folded[..., 0] = counts[..., zero]
    return Distribution(folded, lower, upper)


def quantiles(values: Distribution, q: Tensor, *, midpoint: bool = False) -> Tensor:
    """Estimates of the quantiles q (k,): (..., k) in float64, NaN where there are no values.

    A bin's values are taken to be spread evenly or, with `midpoint`, to lie at the harmonic midpoint, which
    has the least relative error in the worst case.
    """
    ranks, cumulative, n = _ranks(values, q)
    below = _order_statistic(values, cumulative, ranks.floor(), midpoint)
    above = _order_statistic(values, cumulative, ranks.ceil(), midpoint)
    part = ranks.frac()
    estimate = below + (above - below) * part
    estimate = torch.where(below.isinf() | above.isinf(), below * (1 - part) + above * part, estimate)
    estimate = torch.where((below == above) | (part == 0), below, estimate)
    return estimate.masked_fill_(n == 0, torch.nan)


def bounds(values: Distribution, q: Tensor) -> tuple[Tensor, Tensor]:
    """Two numbers that enclose the order statistics floor(h) and ceil(h): each (..., k) in float64."""
    ranks, cumulative, n = _ranks(values, q)
    lower = values.lower[_position(cumulative, ranks.floor())].masked_fill_(n == 0, torch.nan)
    upper = values.upper[_position(cumulative, ranks.ceil())].masked_fill_(n == 0, torch.nan)
    return lower, upper


def fraction_below(values: Distribution, thresholds: Tensor) -> Tensor:
    """The share of values below each threshold (..., k), exact where one is an edge of bins: (..., k)."""
    thresholds = thresholds.unsqueeze(-1)
    lower, upper = values.lower, values.upper
    share = ((thresholds - lower) / (upper - lower)).clamp_(0, 1)
    share = torch.where(upper > lower, share, (lower < thresholds).double())
    counts = values.counts.double().unsqueeze(-2)
    return (counts * share).sum(-1) / counts.sum(-1)


def fraction_of_bins_below(values: Distribution, thresholds: Tensor) -> Tensor:
    """The share of values in bins that begin below each threshold (..., k), which misses none: (..., k)."""
    cumulative = values.counts.cumsum(-1)
    bins = torch.searchsorted(values.lower, thresholds.nan_to_num(nan=0.0)).expand(*cumulative.shape[:-1], -1)
    below = cumulative.gather(-1, (bins - 1).clamp_(min=0)).masked_fill_(bins == 0, 0)
    return below.double() / cumulative[..., -1:]


def mean(values: Distribution) -> Tensor:
    """The mean of the values, each taken to lie at the middle of its bin: (...,) in float64.

    Off by at most 2^-(m + 1) of the mean of the magnitudes, and by 2^(-127 - m) below 2^-126.
    From 2^128 on, where fp64 has a single bin, at the bin's edge nearer to zero.
    """
    near = torch.where(values.lower < 0, values.upper, values.lower)
    middle = torch.where(near.abs() < 2.0**128, (values.lower + values.upper) / 2, near)
    terms = values.counts * middle
    for end in (0, -1):  # where infinities are counted, of which there may be none
        terms[..., end].masked_fill_(values.counts[..., end] == 0, 0.0)
    return terms.sum(-1) / values.counts.sum(-1)


def histogram(counts: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Counts (n,) of the finite values between ascending edges (n + 1,); zeros count in the bin from 0 on.

    As in `numpy.histogram`, a bin holds its lower edge and not its upper one, but for the last. A bin of
    negative values holds the one nearest to zero, and so ends with the next number after that.
    """
    zero = zero_bin(m) - 1
    finite = counts[1:-2].clone()
    finite[zero + 1] += finite[zero]
    lower, upper = (ends[1:-1] for ends in edges(m, magnitude=True))
    negative = -upper.flip(0)
    negative[1:] = torch.nextafter(negative[1:], torch.zeros_like(negative[1:]))
    return torch.cat([finite[:zero], finite[zero + 1 :]]), torch.cat([negative, lower, upper[-1:]])


@made_once(256)
def on_device(q: tuple[float, ...], target: torch.device) -> Tensor:
    """The numbers q as a float64 tensor, copied to the device only once."""
    return upload(q, torch.float64, target)


@made_once(64)
def edges_on(target: torch.device, m: int, *, magnitude: bool) -> tuple[Tensor, Tensor]:
    lower, upper = edges(m, magnitude=magnitude)
    return to_device(lower, target), to_device(upper, target)


def _ranks(values: Distribution, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cumulative = values.counts.cumsum(-1)
    n = cumulative[..., -1:]
    return q * (n - 1).clamp_(min=0), cumulative, n


def _position(cumulative: Tensor, ranks: Tensor) -> Tensor:
    """The first bin whose values reach beyond each rank."""
    position = torch.searchsorted(cumulative, ranks.long(), right=True)
    return position.clamp_(max=cumulative.shape[-1] - 1)


def _order_statistic(values: Distribution, cumulative: Tensor, ranks: Tensor, midpoint: bool) -> Tensor:
    position = _position(cumulative, ranks)
    lower, upper = values.lower[position], values.upper[position]
    if midpoint:
        estimate = 2 * (lower * (upper / (lower + upper)))
    else:
        counts = values.counts.gather(-1, position)
        before = cumulative.gather(-1, position) - counts
        estimate = lower + (upper - lower) * ((ranks - before + 0.5) / counts)
    return torch.where(lower == upper, lower, estimate)
