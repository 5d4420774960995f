"""The panels of `sigscale.plot`: steps as cells, and logarithmic scales with a place for zero."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .monitor.history import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ZERO, INFINITE = "black", "#CC79A7"
DECADES = 20  # a scale shows at most, counted from the largest value
COLUMNS = 1200  # at most; longer trainings share columns


class Steps:
    """One cell per step; missing steps leave gaps."""

    def __init__(self, steps: npt.NDArray[np.int64]) -> None:
        self.per_column = math.ceil(len(steps) / COLUMNS)
        parts = [steps[first : first + self.per_column] for first in range(0, len(steps), self.per_column)]
        middles = np.array([part.mean() for part in parts])
        width = float(np.median(np.diff(middles))) if len(middles) > 1 else 1.0
        between = (middles[:-1] + middles[1:]) / 2
        gap = np.diff(middles) > 1.5 * width
        left = np.append(middles[0] - width / 2, np.where(gap, middles[1:] - width / 2, between))
        right = np.append(np.where(gap, middles[:-1] + width / 2, between), middles[-1] + width / 2)
        self.edges = np.unique([left, right])
        self.cells = np.searchsorted(self.edges, left)
        self.centers = (self.edges[:-1] + self.edges[1:]) / 2
        self.centers[self.cells] = middles

    @property
    def has_gaps(self) -> bool:
        return len(self.cells) < len(self.centers)

    def spread(self, values: Array) -> Array:
        """Values (steps, n) per cell: the median of steps that share one, NaN in gaps."""
        if self.per_column > 1:
            parts = range(0, len(values), self.per_column)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
                values = np.stack([np.nanmedian(values[i : i + self.per_column], axis=0) for i in parts])
        result = np.full((len(self.centers), values.shape[1]), np.nan)
        result[self.cells] = values
        return result


class Scale(NamedTuple):
    """Powers of ten from `low` to `high` around the values, and which values fall outside."""

    low: float
    high: float
    has_lower: bool
    has_zeros: bool
    has_infinities: bool
    has_none: bool

    @classmethod
    def of(cls, values: Array) -> Scale:
        positive = values[(values > 0) & np.isfinite(values)]
        least, greatest = (positive.min(), positive.max()) if len(positive) else (1e-8, 1.0)
        high = min(math.ceil(math.log10(greatest)), 307)
        low = max(min(math.floor(math.log10(least)), high - 1), high - DECADES, -307)
        zeros, infinities = bool((values == 0).any()), bool(np.isinf(values).any())
        has_none = bool(np.isnan(values).any())
        return cls(10.0**low, 10.0**high, least < 10.0**low, zeros, infinities, has_none)

    def place(self, values: Array, zero: float, infinity: float) -> Array:
        """Values as drawn: zeros at `zero`, infinities at `infinity`, values below the scale at its end."""
        placed = np.where(values == 0, zero, np.maximum(values, self.low))
        return np.where(np.isinf(values), infinity, placed)

    def label(self, exponent: int) -> str:
        low = self.has_lower and exponent == round(math.log10(self.low))
        return rf"$\leq 10^{{{exponent}}}$" if low else f"$10^{{{exponent}}}$"

    def exponents(self, count: int) -> range:
        """About `count` powers of ten to label, including the lowest."""
        low, high = round(math.log10(self.low)), round(math.log10(self.high))
        return range(low, high + 1, max(1, math.ceil((high - low) / count)))


def draw_curves(
    axes: Axes, steps: Steps, values: Array, scale: Scale, names: Sequence[str], colors: Sequence[str]
) -> None:
    """For each name a line, the middle quantile, and bands, from values (quantiles, steps, names)."""
    decades = math.log10(scale.high / scale.low)
    zero, strip, bottom = (scale.low * 10 ** (-share * decades) for share in (0.08, 0.035, 0.125))
    placed = scale.place(values, zero, math.nan)
    middle = len(placed) // 2
    alone = len(steps.centers) == 1  # drawn as wide as its cell
    x = steps.edges if alone else steps.centers
    marker = "o" if len(steps.cells) <= 40 and not alone else ""
    for row, (name, color) in enumerate(zip(names, colors, strict=True)):
        curves = steps.spread(placed[:, :, row].T).T
        curves = curves.repeat(2, 1) if alone else curves
        for outer in range(middle):
            edges = curves[outer], curves[-1 - outer]
            axes.fill_between(x, *edges, color=color, alpha=0.07 + 0.15 * outer, lw=0)
            for edge in edges[: 2 * (outer == 0)]:
                axes.plot(x, edge, color=color, lw=0.7, alpha=0.5)
        axes.plot(x, curves[middle], color=color, lw=1.7, marker=marker, ms=2.5, label=name)
    axes.set_yscale("log")
    exponents = scale.exponents(6)
    ticks, labels = [10.0**exponent for exponent in exponents], [scale.label(e) for e in exponents]
    axes.grid(axis="y", color="0.9", lw=0.6)
    axes.set_axisbelow(True)
    if scale.has_zeros:
        axes.axhspan(bottom, strip, color="0.9", lw=0, zorder=0)
        ticks, labels = [zero, *ticks], ["0", *labels]
    axes.set_yticks(ticks, labels)
    axes.set_yticks([], minor=True)
    axes.set_ylim(bottom if scale.has_zeros else scale.low, scale.high)


def draw_layers(
    axes: Axes, steps: Steps, values: Array, scale: Scale, names: Sequence[str], height: float
) -> Any:
    """A heat map of values (steps, names), first name on top, on an axis of this height in inches."""
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap, LogNorm

    viridis = mpl.colormaps["viridis"](np.linspace(0.1, 1, 256))  # without the almost black part
    colors = ListedColormap(viridis).with_extremes(under=ZERO, over=INFINITE, bad=(0, 0, 0, 0))
    cells = steps.spread(scale.place(values, scale.low / 10, scale.high * 10))
    axes.patch.set(hatch="/////", facecolor="white", edgecolor="0.88")
    mesh = axes.pcolormesh(
        steps.edges,
        np.arange(len(names) + 1) - 0.5,
        np.ma.masked_invalid(cells.T),
        norm=LogNorm(scale.low, scale.high),
        cmap=colors,
        rasterized=True,
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    every = math.ceil(len(names) * 9 / (72 * height))  # a label takes 9 points
    axes.set_yticks(range(0, len(names), every), [_short(name) for name in names[::every]], fontsize=7.5)
    axes.tick_params(axis="y", length=2)
    axes.spines[["top", "right"]].set_visible(True)
    return mesh


def draw_key(axes: Axes, scale: Scale, has_gaps: bool) -> None:
    """A legend, top right, for those colors outside the scale that occur."""
    from matplotlib.patches import Patch

    hatched = {"facecolor": "white", "edgecolor": "0.6", "hatch": "/////", "lw": 0}
    looks: list[tuple[str, bool, dict[str, Any]]] = [
        ("exactly 0", scale.has_zeros, {"facecolor": ZERO}),
        ("infinite", scale.has_infinities, {"facecolor": INFINITE}),
        ("no gradient measured", scale.has_none or has_gaps, hatched),
    ]
    patches = [Patch(label=label, **look) for label, occurs, look in looks if occurs]
    if patches:
        style: dict[str, Any] = {"frameon": False, "fontsize": 8, "handlelength": 1.2, "borderaxespad": 0.1}
        axes.legend(handles=patches, ncols=3, loc="lower right", bbox_to_anchor=(1, 1), **style)


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"
