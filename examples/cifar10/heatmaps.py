"""Where in the network gradients vanish: a heat map per pipeline, layer by layer over the training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.cifar10.figures import LOWEST, pretty, save
from examples.cifar10.networks import ACTIVATION
from examples.cifar10.results import Outcome, by_pipeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = npt.NDArray[np.float64]

QUANTILES = {"activation": 0.95, "parameter": 0.5}
"""Those drawn.  The median of an activation before max pooling would be 0: a gradient goes to one of four
coordinates."""
LABELS = {"activation": "activation after\n(95 % quantile)", "parameter": "parameters of\n(median)"}
HIGHEST = 1e4
"""Gradients above share a colour, as do those below LOWEST."""
COLUMNS = 120
"""At most so many fit a panel; of more steps, several are drawn as one."""


def draw(outcomes: Sequence[Outcome], stem: Path, *, title: str, warning: str = "") -> list[Path]:
    """Write `stem`.png and `stem`.svg; return their paths.  `warning` stands in red above all else.

    Colours are a quantile of |g| over a layer's coordinates in a step; over the steps drawn as one and over
    several seeds, its median.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    first = outcomes[0]
    groups = by_pipeline(outcomes)
    rows = {kind: [row for row, its in enumerate(first.gradients.kinds) if its == kind] for kind in LABELS}
    heights = [0.24 * len(layers) for layers in rows.values()]
    with mpl.rc_context({"font.size": 9.5}):
        figure = Figure(figsize=(11, sum(heights) + 1.9), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        panels = figure.subplots(
            len(rows), len(groups), sharex=True, sharey="row", height_ratios=heights, squeeze=False
        )
        if warning:
            panels[0, 0].set_title(f"{warning}\n", loc="left", color="#B00020", weight="bold")
        for column, (pipeline, runs) in zip(panels.T, groups.items(), strict=True):
            column[0].set_title(pretty(pipeline.label))
            for axes, (kind, layers) in zip(column, rows.items(), strict=True):
                curves = np.array([run.gradients.quantile(QUANTILES[kind])[:, layers] for run in runs])
                mesh = _heat_map(axes, *_cells(first, curves))
            column[-1].set_xlabel("epoch")
        for axes, (kind, layers) in zip(panels[:, 0], rows.items(), strict=True):
            names = [first.gradients.names[row] for row in layers]
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            axes.set_ylabel(LABELS[kind])
        bar = figure.colorbar(mesh, ax=panels, extend="both", aspect=35)
        bar.set_label("|gradient of the loss|; black: less, or exactly 0; purple: more")
        return save(figure, stem)


def _cells(outcome: Outcome, curves: Values) -> tuple[Values, Values]:
    """Edges of cells, in epochs, and the medians in them; `curves` is (runs, steps, layers)."""
    steps, made = outcome.gradients.steps, outcome.gradients.step_count
    together = -(-len(steps) // COLUMNS)
    starts = range(0, len(steps), together)
    values = np.array([np.median(curves[:, start : start + together], axis=(0, 1)) for start in starts])
    return np.append(steps[::together], made) / (made / len(outcome.history)), values


def _heat_map(axes: Axes, edges: Values, values: Values) -> Any:
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    placed = np.clip(values, LOWEST / 10, HIGHEST * 10)  # a logarithm has no place for 0
    mesh = axes.pcolormesh(
        edges,
        np.arange(values.shape[1] + 1) - 0.5,
        np.ma.masked_invalid(placed.T),
        norm=LogNorm(LOWEST, HIGHEST),
        cmap=mpl.colormaps["viridis"].with_extremes(under="black", over="#CC79A7", bad="0.8"),
        rasterized=True,
    )
    axes.set_ylim(values.shape[1] - 0.5, -0.5)
    axes.tick_params(length=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    return mesh


def _short(name: str) -> str:
    return name.removesuffix(ACTIVATION).removesuffix(".weight")
