"""Reading a sketch: quantiles, intervals that certainly hold them, fractions below a threshold.

Plain tensor operations on the counts' device, for any number of sketches at once; nothing waits for the host.
The rank of a quantile q of n values is h = q (n - 1), in float64, as in `numpy.quantile`; between the order
statistics floor(h) and ceil(h) it interpolates linearly. NaN is left out, infinities are values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bins import edges, zero_bin
from .device import made_once
from .tables import to_device, upload


class Distribution(NamedTuple):
    """Counts of ascending bins, of the values or of their magnitudes, and what the bins hold."""

    counts: Tensor  # (..., bins)
    lower: Tensor  # (bins,)
    upper: Tensor  # (bins,)


def distribution(counts: Tensor, m: int, *, magnitude: bool) -> Distribution:
    """The bins of sketches with counts (..., bin_count(m)), without that of NaN."""
    lower, upper = edges_on(counts.device, m, magnitude=magnitude)
    if not magnitude:
        return Distribution(counts[..., :-1], lower, upper)
    zero = zero_bin(m)
    folded = counts[..., zero:-1].clone()
    folded[..., 1:] += counts[..., :zero].flip(-1)
    return Distribution(folded, lower, upper)


def quantiles(values: Distribution, q: Tensor, *, midpoint: bool = False) -> Tensor:
    """Estimates of the quantiles q (k,): (..., k) in float64, NaN where there are no values.

    An order statistic is taken to lie in its bin as if the bin's values were spread evenly, or (`midpoint`)
    at the harmonic midpoint, the point with the least relative error in the worst case.
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
    """Two numbers with the order statistics floor(h) and ceil(h) between them: each (..., k) in float64."""
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


def mean(values: Distribution) -> Tensor:
    """The mean of the values, each taken to be at the middle of its bin: (...,) in float64.

    From 2^128 on, where fp64 has but one bin, at the bin's edge nearer to zero.
    """
    near = torch.where(values.lower < 0, values.upper, values.lower)
    middle = torch.where(near.abs() < 2.0**128, (values.lower + values.upper) / 2, near)
    terms = torch.where(values.counts > 0, values.counts * middle, 0.0)
    return terms.sum(-1) / values.counts.sum(-1)


def histogram(counts: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """Counts of finite values between ascending edges, one more: zeros belong to what begins at 0."""
    zero = zero_bin(m) - 1
    finite = counts[1:-2].clone()
    finite[zero + 1] += finite[zero]
    lower, upper = (ends[1:-1] for ends in edges(m, magnitude=True))
    return torch.cat([finite[:zero], finite[zero + 1 :]]), torch.cat([-upper.flip(0), lower, upper[-1:]])


STATISTICS = ("count", "zeros", "infs", "nans", "mean")  # ahead of quantiles and fractions in a summary


def summary(
    counts: Tensor, scale: Tensor, q: Tensor, thresholds: Tensor, m: int, *, magnitude: bool
) -> Tensor:
    """What is worth keeping of sketches with counts (rows, bins) of values times scale (rows,).

    A row of the result, (rows, 5 + k + t) in float64, holds STATISTICS, the k quantiles q and the shares of
    values below the t thresholds.
    """
    values = distribution(counts, m, magnitude=magnitude)
    scale = scale.unsqueeze(-1)
    numbers = [counts.sum(-1), counts[:, zero_bin(m)], counts[:, 0] + counts[:, -2], counts[:, -1]]
    parts = [
        torch.stack(numbers, -1).double(),
        mean(values).unsqueeze(-1) / scale,
        quantiles(values, q) / scale,
        fraction_below(values, thresholds * scale),
    ]
    return torch.cat(parts, -1)


@made_once(256)
def on_device(q: tuple[float, ...], device: torch.device) -> Tensor:
    """The numbers q as a float64 tensor; copied to the device the first time only."""
    return upload(q, torch.float64, device)


@made_once(64)
def edges_on(device: torch.device, m: int, *, magnitude: bool) -> tuple[Tensor, Tensor]:
    lower, upper = edges(m, magnitude=magnitude)
    return to_device(lower, device), to_device(upper, device)


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
