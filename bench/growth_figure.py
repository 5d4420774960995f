"""Growth as a picture: time over size, a panel a series, with the lines that were fitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from growth_fit import Growth, growths
from growth_table import amount
from styles import STYLES, finish
from tables import Results

ROWS, COLUMNS = 2, 4
POINTS = 200  # of a line
HEADROOM = 0.3  # above the points, for the legend; of the axis
FEW_DECADES = 200  # so far an axis has more labels than one a decade
TICK: Mapping[str, Any] = {"marker": "|", "markersize": 16, "markeredgewidth": 2.5}


class Look(NamedTuple):
    """The style of a provider; that of others where it is none of those in all pictures."""

    style: str
    label: str
    hollow: bool = False


# What one writes by hand is orange, as everywhere; light blue and green are free in this picture.
LOOKS: Mapping[str, Look] = {
    "copy": Look("copy", "copy"),
    "read": Look("read", "read"),
    "eager": Look("eager", "2 * tanh(x / 2)"),
    "plain": Look("plain", "nn.Tanh"),
    "sigscale": Look("sigscale", "sigscale"),
    "sigscale, monitored": Look("sigscale", "sigscale, monitored", hollow=True),
    "torch.histc": Look("torch.histc", "torch.histc"),
    "torch.quantile": Look("torch.quantile", "torch.quantile"),
    "loop": Look("eager", "loop of add_"),
    "in the loss": Look("compile", "penalty in the loss"),
    "one by one": Look("torch.sort", "one by one"),
}


def draw_growth(results: Results, provenance: dict[str, str], path: Path) -> None:
    found = growths(results)
    if not found:
        return
    figure, axes = plt.subplots(ROWS, COLUMNS, figsize=(15.5, 7.4), layout="constrained", squeeze=False)
    panels: dict[str, list[Growth]] = {}
    for growth in found:
        panels.setdefault(growth.series, []).append(growth)
    for panel, (name, group) in zip(axes.flat, panels.items(), strict=False):
        panel.set_title(name, fontsize=10)
        _panel(panel, group)
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    axes.flat[-1].legend(handles=_explained(), loc="center left", frameon=False, fontsize=8)
    for row in axes:
        row[0].set_ylabel("time of a call (µs)")
    finish(figure, "Growth: time against the number of elements, tensors, layers and seeds", provenance, path)


def _panel(axes: Axes, group: Sequence[Growth]) -> None:
    for growth in sorted(group, key=lambda growth: [*LOOKS].index(growth.provider)):
        _draw(axes, growth)
    sizes = {record["n"]: amount(record) for growth in group for record in growth.records}
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([*sizes], [text.replace("2^", "$2^{") + "}$" * ("^" in text) for text in sizes.values()])
    axes.set_xlabel(group[0].records[0]["unit"])
    axes.minorticks_off()
    axes.tick_params(labelsize=8)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** HEADROOM)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < FEW_DECADES else (1,)))
    axes.yaxis.set_major_formatter("{x:,.12g}")
    axes.legend(loc="upper left", frameon=False, fontsize=8, handlelength=1.6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw(axes: Axes, growth: Growth) -> None:
    """Medians and middle halves, the line, and a tick on it where launch cost ends."""
    look = LOOKS[growth.provider]
    colour, marker = STYLES[look.style].colour, STYLES[look.style].marker or "."
    n = np.array([record["n"] for record in growth.records])
    middle, low, high = 1e6 * np.array([record["quartiles"] for record in growth.records]).T
    axes.vlines(n, low, high, color=colour, linewidth=1)
    face = "#FFFFFF" if look.hollow else colour
    dashes = "--" if look.hollow else STYLES[look.style].line
    axes.plot(n, middle, marker, color=colour, markerfacecolor=face, markersize=5)
    axes.plot(
        [], [], dashes, color=colour, marker=marker, markerfacecolor=face, markersize=5, label=look.label
    )
    if growth.fit is None:
        return
    line = growth.fit.line
    between = np.geomspace(n[0], n[-1], POINTS)
    axes.plot(between, 1e6 * line(between), dashes, color=colour, linewidth=1)
    if n[0] <= line.end <= n[-1]:
        axes.plot(line.end, 1e6 * line(line.end), **TICK, color=colour)


def _explained() -> list[Line2D]:
    """What marks and lines of all panels mean."""
    mark: dict[str, Any] = {"color": "#000000", "linestyle": "none"}
    return [
        Line2D(
            [], [], **mark, marker="o", markersize=5, label="median of the rounds, with their middle half"
        ),
        Line2D(
            [],
            [],
            color="#000000",
            linewidth=1,
            label="fitted: fixed cost + cost of a unit x size,\nor the larger of the two where calls overlap",
        ),
        Line2D([], [], **mark, **TICK, label="where launch cost ends: work takes\nas long as what is fixed"),
    ]
