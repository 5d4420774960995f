"""The pictures of a run: bandwidth of the activations, time of quantiles, cost of a monitored step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from growth_figure import draw_growth
from sketch_figure import draw_sketch
from styles import STYLES, finish, side_by_side
from table4_figure import draw_table4
from tables import Results, grouped, monitoring, number

Lines = Mapping[str, Sequence[tuple[int, float]]]


def draw_bandwidth(results: Results, provenance: dict[str, str], path: Path) -> None:
    """Effective bandwidth over size, a panel a direction, for the function and dtype measured first.

    As in a roofline: what rises is bound by the cost of a call, and the roof is the fastest copy.
    """
    groups = grouped(results, "activation")
    if not groups:
        return
    function, _, dtype, _ = next(iter(groups))
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (name, direction, kind, elements), group in groups.items():
        if (name, kind) == (function, dtype):
            _append(panels.setdefault(direction, {}), group, elements, "gbps")
    roof = max(gbps for lines in panels.values() for _, gbps in lines["copy"])
    label = "effective bandwidth (GB/s)"
    _draw_lines(panels, label, f"{function}, {dtype}, alpha = 2", provenance, path, roof)


def draw_quantiles(results: Results, provenance: dict[str, str], path: Path) -> None:
    """Time over size for Gaussian values: of sketches, and of five exact quantiles."""
    sketches, exact = grouped(results, "sketch"), grouped(results, "exact")
    dtype = next((key[1] for key in sketches), None) or next((key[2] for key in exact), None)
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for (values, kind, elements), group in sketches.items():
        if (values, kind) == ("Gaussian", dtype):
            _append(panels.setdefault("distribution of a tensor", {}), group, elements, "seconds", 1e6)
    for (task, values, kind, elements), group in exact.items():
        if (task, values, kind) == ("five", "Gaussian", dtype):
            _append(panels.setdefault("five exact quantiles", {}), group, elements, "seconds", 1e6)
    if panels:
        _draw_lines(panels, "time (µs)", f"quantiles of Gaussian values, {dtype}", provenance, path)


def _append(
    lines: dict[str, list[tuple[int, float]]],
    group: Mapping[str, dict[str, Any]],
    elements: int,
    what: str,
    factor: float = 1.0,
) -> None:
    for provider, record in group.items():
        if provider in STYLES and record.get(what) is not None:
            lines.setdefault(provider, []).append((elements, factor * record[what]))


def _draw_lines(
    panels: Mapping[str, Lines],
    label: str,
    what: str,
    provenance: dict[str, str],
    path: Path,
    roof: float | None = None,
) -> None:
    figure, axes = side_by_side(len(panels), 5.2 * len(panels), 4.0)
    for panel, (title, lines) in zip(axes, panels.items(), strict=True):
        _panel(panel, title, lines)
        if roof is not None:
            panel.axhline(roof, color="#000000", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel(label)
    found: dict[str, Artist] = {}
    for panel in axes:
        found |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    labels = [style.label for style in STYLES.values() if style.label in found]
    figure.legend(
        [found[label] for label in labels],
        labels,
        loc="outside lower center",
        ncols=len(labels),
        columnspacing=1.2,
        frameon=False,
        fontsize=8,
    )
    finish(figure, what, provenance, path)


def _panel(axes: Axes, title: str, lines: Lines) -> None:
    for provider, style in STYLES.items():
        if provider in lines:
            elements, values = zip(*sorted(lines[provider]), strict=True)
            axes.plot(
                elements,
                values,
                color=style.colour,
                label=style.label,
                linestyle=style.line,
                marker=style.marker,
                markersize=5.0,
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("elements")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_monitor(results: Results, provenance: dict[str, str], path: Path) -> None:
    """What a step costs over one without a monitor, a panel a network, a bar a way of monitoring."""
    groups = grouped(results, "monitor")
    if not groups:
        return
    figure, axes = side_by_side(len(groups), 5.2 * len(groups), 3.2, sharex=True)
    for panel, ((network,), group) in zip(axes, groups.items(), strict=True):
        costs = {
            name: next(iter(record["cost"].values())) for name, record in group.items() if "cost" in record
        }
        _bars(panel, costs)
        panel.set_title(network, fontsize=10)
    what = "time of a training step over that of the same step without a monitor"
    finish(figure, what, provenance, path)


def _bars(axes: Axes, costs: Mapping[str, Sequence[float]]) -> None:
    """A bar a way of monitoring, from 1 on, and the middle half of the rounds."""
    for row, (name, (middle, low, high)) in enumerate(costs.items()):
        colour = STYLES[name.split(",")[0]].colour
        axes.barh(row, middle - 1, left=1, color=colour, height=0.7)
        axes.plot([low, high], [row, row], color="#000000", linewidth=1)
        axes.annotate(
            number(middle),
            (max(middle, high, 1.0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="#999999", linewidth=1)
    axes.set_yticks(range(len(costs)), [monitoring(name) for name in costs], fontsize=8)
    axes.set_ylim(len(costs) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.set_xlabel("ratio (bars: median, lines: middle half of the rounds)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


PICTURES: dict[str, Callable[[Results, dict[str, str], Path], None]] = {
    "bandwidth.png": draw_bandwidth,
    "quantiles.png": draw_quantiles,
    "sketch.png": draw_sketch,
    "monitor.png": draw_monitor,
    "table4.png": draw_table4,
    "growth.png": draw_growth,
}
