"""The picture of a result: effective bandwidth over size, a panel a direction, a line a provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from tables import Results, grouped

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colours, which the colour-blind tell apart; markers do so in grey. The same everywhere.
STYLES = {
    "copy": ("#000000", "", "copy (x.clone())"),
    "plain": ("#999999", "v", "plain f, alpha = 1"),
    "eager": ("#E69F00", "s", "eager alpha * f(x / alpha)"),
    "compile": ("#56B4E9", "D", "torch.compile of that"),
    "sigscale": ("#D55E00", "o", "sigscale"),
}


def draw(results: Results, provenance: dict[str, str], function: str, dtype: str, path: Path) -> None:
    """Draw one function in one dtype."""
    series = _series(results, function, dtype)
    directions = list(dict.fromkeys(direction for direction, _ in series))
    figure, axes = plt.subplots(
        1,
        len(directions),
        figsize=(5.2 * len(directions), 4.0),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel, direction in zip(axes[0], directions, strict=True):
        _panel(panel, direction, {name: points for (d, name), points in series.items() if d == direction})
    axes[0][0].set_ylabel("effective bandwidth (GB/s)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    what = f"{function}, {dtype}, alpha = 2"
    versions = f"torch {provenance['torch']}, triton {provenance['triton']}, {provenance['date']}"
    figure.suptitle(f"{what}\n{provenance['device']}; {versions}", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _series(results: Results, function: str, dtype: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(elements, GB/s) by direction and provider."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for (name, direction, kind, elements), group in grouped(results, "activation").items():
        if (name, kind) == (function, dtype):
            for provider in STYLES.keys() & group.keys():
                points = series.setdefault((direction, provider), [])
                points.append((elements, group[provider]["gbps"]))
    return series


def _panel(axes: Axes, direction: str, lines: dict[str, Any]) -> None:
    for provider, (colour, marker, label) in STYLES.items():
        if provider in lines:
            elements, gbps = zip(*sorted(lines[provider]), strict=True)
            style = {"linestyle": "--"} if provider == "copy" else {"marker": marker, "markersize": 5.0}
            axes.plot(elements, gbps, color=colour, label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("elements")
    axes.set_title(direction, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
