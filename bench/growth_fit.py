"""Time over size as a line: what a call costs at any size, what a unit adds, and where this takes over.

    in turn       t(n) = fixed + slope * n        the host waits for the work, or does it itself
    overlapped    t(n) = max(fixed, slope * n)    calls in a row on a GPU: issued while others are at work

Fitted are the medians t_i of sizes n_i, by least squares of relative residuals, (t(n_i) - t_i) / t_i, since
times span orders of magnitude; neither coefficient is negative. Launch cost ends at n* = fixed / slope, where
work takes as long as what is fixed, in either model. Two things say how far to believe it: the range over
all fits that leave one size out, and the largest residual, which is large where no such model holds, as where
data leave a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
LEAST_SIZES = 2


@dataclass(frozen=True)
class Line:
    """Seconds, and seconds a unit."""

    fixed: float
    slope: float
    overlapped: bool = False

    def __call__(self, n: float | Array) -> Array:
        work = self.slope * np.asarray(n, dtype=np.float64)
        return np.maximum(self.fixed, work) if self.overlapped else self.fixed + work

    @property
    def end(self) -> float:
        """Where launch cost ends: 0 where nothing is fixed, infinity where size costs nothing."""
        return self.fixed / self.slope if self.slope else float("inf")


@dataclass(frozen=True)
class Fit:
    """`others` are the lines that leave one size out, none where too few sizes remain."""

    line: Line
    others: tuple[Line, ...]
    residuals: Mapping[float, float]  # by size: relative, above 0 where the line is above the measurement

    @property
    def worst(self) -> tuple[float, float]:
        """The size with the largest residual, and this."""
        return max(self.residuals.items(), key=lambda item: abs(item[1]))

    def spread(self, name: str) -> tuple[float, float, float]:
        """One of fixed, slope and end: fitted to all sizes, and its range with one size left out."""
        fitted, others = getattr(self.line, name), [getattr(line, name) for line in self.others]
        return fitted, min([fitted, *others]), max([fitted, *others])


def fit(times: Mapping[int, float], *, overlapped: bool = False) -> Fit:
    """The line through seconds by size; raises ValueError where one size, or none, determines no line."""
    if len(times) < LEAST_SIZES:
        raise ValueError(f"{len(times)} size(s): nothing can be fitted, a line takes {LEAST_SIZES} at least")
    n, t = np.array(sorted(times.items()), dtype=np.float64).T
    line = _line(n, t, overlapped)
    others = [_line(np.delete(n, i), np.delete(t, i), overlapped) for i in range(len(n))]
    residuals = dict(zip(n.tolist(), (line(n) / t - 1).tolist(), strict=True))
    return Fit(line, tuple(others) if len(n) > LEAST_SIZES else (), residuals)


def _line(n: Array, t: Array, overlapped: bool) -> Line:
    candidates = _overlapped(n, t) if overlapped else _in_turn(n, t)
    return min(candidates, key=lambda line: float(np.square(line(n) / t - 1).sum()))


def _in_turn(n: Array, t: Array) -> Iterator[Line]:
    """The best line where its coefficients are not negative; else one of them is 0."""
    unit = n.max()
    (fixed, slope), *_ = np.linalg.lstsq(np.stack([1 / t, n / unit / t], 1), np.ones_like(t), rcond=None)
    if fixed >= 0 and slope >= 0:
        yield Line(float(fixed), float(slope / unit))
    yield Line(_factor(1 / t), 0.0)
    yield Line(0.0, _factor(n / t))


def _overlapped(n: Array, t: Array) -> Iterator[Line]:
    """For each number of sizes at which work is hidden: both coefficients by themselves.

    Each shows at two sizes at least, or not at all: noise of the last one alone is not taken for work.
    """
    for flat in (len(n), 0, *range(2, len(n) - 1)):
        fixed = _factor(1 / t[:flat]) if flat else 0.0
        slope = _factor(n[flat:] / t[flat:]) if flat < len(n) else 0.0
        yield Line(fixed, slope, overlapped=True)


def _factor(x: Array) -> float:
    """The c for which c x is nearest to 1."""
    return float(x.sum() / np.square(x).sum())


@dataclass(frozen=True)
class Growth:
    """A series of one provider; no fit where there are too few sizes."""

    series: str
    provider: str
    records: Sequence[Mapping[str, Any]]  # by size
    fit: Fit | None


def growths(records: Sequence[Mapping[str, Any]]) -> list[Growth]:
    """All that was measured of the kind "growth"."""
    groups: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record["kind"] == "growth":
            groups.setdefault((record["series"], record["provider"]), {})[record["n"]] = record
    return [_growth(*key, [group[n] for n in sorted(group)]) for key, group in groups.items()]


def _growth(series: str, provider: str, records: Sequence[Mapping[str, Any]]) -> Growth:
    times = {record["n"]: record["seconds"] for record in records}
    enough = len(times) >= LEAST_SIZES
    return Growth(
        series, provider, records, fit(times, overlapped=records[0]["overlapped"]) if enough else None
    )
