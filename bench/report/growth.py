"""Growth as a picture: time against the number of elements, tensors, layers and seeds.

The line is t(n) = fixed + each * n with coefficients that are not negative, fitted to the medians by least
squares of relative residuals. Launch cost ends at n = fixed / each, where work takes as long as what is
fixed. Where a cache ends or calls overlap, no line holds, and n says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import nnls

from bench.harness.providers import PROVIDERS
from bench.harness.timing import OURS

Results = list[dict[str, Any]]
Points = list[tuple[int, float]]
# Series of elements are taken from other benchmarks: name, what their results have, providers.
OF_ELEMENTS = (
    ("tanh, training", {"activation", "tanh", "forward+backward", "float32"}, (OURS, "eager", "copy")),
    ("sketch of a tensor", {"sketch", "Gaussian", "float32"}, (OURS, "torch.histc", "read")),
    ("five quantiles", {"exact", "five", "Gaussian", "float32"}, (OURS, "torch.quantile")),
)


def series(records: Results) -> dict[tuple[str, str], dict[str, Points]]:
    """Points by series and unit, then by provider."""
    found: dict[tuple[str, str], dict[str, Points]] = {}
    for name, about, providers in OF_ELEMENTS:
        for record in records:
            words = {value for value in record.values() if isinstance(value, str)}
            if about <= words and record["provider"] in providers and record["seconds"] is not None:
                group = found.setdefault((name, "elements"), {})
                group.setdefault(record["provider"], []).append((record["elements"], record["seconds"]))
    for record in records:
        if record["kind"] == "growth":
            group = found.setdefault((record["series"], record["unit"]), {})
            group.setdefault(record["provider"], []).append((record["n"], record["seconds"]))
    return found


def fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Seconds that are fixed, and that each unit adds."""
    n, t = np.array(sorted(points), dtype=np.float64).T
    (fixed, each), _ = nnls(np.stack([1 / t, n / n.max() / t], 1), np.ones_like(t))
    return float(fixed), float(each / n.max())


def draw(records: Results) -> Figure | None:
    """A panel per series: medians, and the line."""
    found = {
        name: group for name, group in series(records).items() if any(len(p) > 1 for p in group.values())
    }
    if not found:
        return None
    columns = min(4, len(found))
    figure = Figure(figsize=(4.0 * columns, 3.4 * -(-len(found) // columns)), layout="constrained")
    axes = figure.subplots(-(-len(found) // columns), columns, squeeze=False)
    for panel, ((name, unit), group) in zip(axes.flat, found.items(), strict=False):
        _panel(panel, group)
        panel.set_title(f"{name}\n{_end(group, unit)}", fontsize=9)
        panel.set_xlabel(unit, fontsize=9)
    for panel in axes.flat[len(found) :]:
        panel.set_axis_off()
    for row in axes:
        row[0].set_ylabel("time of a call (µs)")
    figure.suptitle("At small sizes time is launch cost, which stays the same", fontsize=11)
    return figure


def _end(group: dict[str, Points], unit: str) -> str:
    """Where sigscale's launch cost ends, if within the sizes measured."""
    points = group.get(OURS, [])
    fixed, each = fit(points) if len(points) > 1 else (0.0, 0.0)
    if not each or not min(points)[0] <= fixed / each <= max(points)[0]:
        return ""
    return f"launch cost ends at {float(f'{fixed / each:.1e}'):,.0f} {unit}"


def _panel(axes: Axes, group: dict[str, Points]) -> None:
    for name in PROVIDERS:
        if name not in group:
            continue
        look, points = PROVIDERS[name], sorted(group[name])
        n, t = np.array(points).T
        axes.plot(n, 1e6 * t, look.marker or ".", color=look.color, markersize=5, label=look.label)
        if len(points) > 1:
            fixed, each = fit(points)
            between = np.geomspace(n[0], n[-1], 200)
            axes.plot(between, 1e6 * (fixed + each * between), look.line, color=look.color, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.tick_params(labelsize=8)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
    axes.legend(loc="upper left", frameon=False, fontsize=8, handlelength=1.6)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
