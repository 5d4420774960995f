"""What counting the gradient costs, as a picture: time of a pass over that of the same pass without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from styles import STYLES, finish, side_by_side
from tables import Results, grouped

WITHOUT = "no sketch"
BESIDE = 1.08  # of one dtype after the other
FILLED = {"fillstyle": "full", "linestyle": "-"}, {"fillstyle": "none", "linestyle": "--"}
Costs = Mapping[tuple[str, str], Mapping[str, Mapping[int, float]]]  # (provider, dtype): values: elements


def draw_sketch(results: Results, provenance: dict[str, str], path: Path) -> None:
    """A panel a direction, a line a provider and dtype, and the range over all kinds of values."""
    by_direction = costs(results)
    if not by_direction:
        return
    figure, axes = side_by_side(len(by_direction), 5.2 * len(by_direction), 4.0)
    for panel, (direction, lines) in zip(axes, by_direction.items(), strict=True):
        _panel(panel, direction, lines)
    axes[0].set_ylabel("time over that without counting")
    most = max(axes, key=lambda panel: len(panel.lines))
    handles, labels = most.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    what = "what counting the gradient costs, Gaussian values; bars: the range over other values"
    finish(figure, what, provenance, path)


def costs(results: Results) -> dict[str, dict[tuple[str, str], dict[str, dict[int, float]]]]:
    """By direction, by provider and dtype, by values and elements."""
    found: dict[str, dict[tuple[str, str], dict[str, dict[int, float]]]] = {}
    for (_, direction, values, dtype, elements), group in grouped(results, "backward").items():
        for provider, record in group.items():
            if cost := record.get("cost", {}).get(WITHOUT):
                lines = found.setdefault(direction, {}).setdefault((provider, dtype), {})
                lines.setdefault(values, {})[elements] = cost[0]
    return found


def _panel(axes: Axes, title: str, lines: Costs) -> None:
    dtypes = [*dict.fromkeys(dtype for _, dtype in lines)]
    for (provider, dtype), by_values in lines.items():
        style, place = STYLES[provider], dtypes.index(dtype)
        look = FILLED[place % len(FILLED)]
        drawn: dict[str, Any] = {"color": style.colour, "marker": style.marker, "markersize": 5.0, **look}
        gaussian = sorted(by_values.get("Gaussian", {}).items())
        if gaussian:
            axes.plot(*zip(*gaussian, strict=True), label=f"{style.label}, {dtype}", **drawn)
        if provider == "sigscale":
            _ranges(axes, by_values, BESIDE ** (1 + place), color=style.colour, linestyle=look["linestyle"])
    axes.axhline(1, color="#999999", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("elements")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _ranges(axes: Axes, by_values: Mapping[str, Mapping[int, float]], beside: float, **look: Any) -> None:
    """Where other values were counted too, from the cheapest to the dearest, beside the Gaussian ones."""
    sizes = {elements for values, line in by_values.items() if values != "Gaussian" for elements in line}
    for elements in sorted(sizes):
        found: Sequence[float] = [line[elements] for line in by_values.values() if elements in line]
        axes.plot([elements * beside] * 2, [min(found), max(found)], marker="_", linewidth=1, **look)
