"""Where in the network gradients vanish: a heat map per pipeline, layer by layer over the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.cifar10.figures import LOWEST, WARNING, pretty, save, wrapped
from examples.cifar10.networks import ACTIVATION
from sigscale import GradientHistory

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
PANEL, LABEL = 2.2, 26
"""Inches, or more where panels are few; and the letters above them in a line."""


def draw(
    histories: Mapping[str, Sequence[GradientHistory]],
    epochs: int,
    stem: Path,
    *,
    title: str,
    warning: str = "",
) -> list[Path]:
    """Write `stem`.png and `stem`.svg; return their paths.  `warning` stands in red above all else.

    Colours are a quantile of |g| over a layer's coordinates in a step: of all seeds that were trained
    together, and over the steps drawn as one and the groups of seeds its median.

    Args:
        histories: by the pipelines' labels; one for each group of seeds that were trained together.
        epochs: how many the histories' steps made.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = {kind: _names(histories.values(), kind) for kind in LABELS}
    rows = {kind: names for kind, names in rows.items() if names}
    heights = [0.24 * max(2, len(names)) for names in rows.values()]
    labels = [wrapped(label, LABEL) for label in histories]
    lines = max(label.count("\n") for label in labels)
    with mpl.rc_context({"font.size": 9.5}):
        width = 2.6 + max(PANEL * len(histories), 6)
        figure = Figure(figsize=(width, sum(heights) + 2.1), layout="constrained")
        figure.suptitle(wrapped(title, int(11.5 * width)), x=0.01, ha="left", fontsize=10.5)
        panels = figure.subplots(
            len(rows), len(histories), sharex=True, sharey="row", height_ratios=heights, squeeze=False
        )
        for column, label, groups in zip(panels.T, labels, histories.values(), strict=True):
            column[0].set_title(("\n" if warning else "") + pretty(label))
            for axes, (kind, names) in zip(column, rows.items(), strict=True):
                mesh = _heat_map(axes, epochs, _cells(groups, names, kind))
            column[-1].set_xlabel("epoch")
        for axes, (kind, names) in zip(panels[:, 0], rows.items(), strict=True):
            axes.set_yticks(range(len(names)), [_short(name) for name in names])
            axes.set_ylabel(LABELS[kind])
        figure.align_ylabels(panels[:, 0])
        if warning:  # in the room that the titles of the panels leave for it
            place = (0, 1), (0, 22 + 13 * lines), "axes fraction", "offset points"
            panels[0, 0].annotate(warning, *place, **WARNING).set_in_layout(False)
        bar = figure.colorbar(mesh, ax=panels, extend="both", aspect=35)
        bar.set_label("|gradient of the loss|; black: less, or exactly 0;\npurple: more; grey: none")
        return save(figure, stem)


def _names(pipelines: Iterable[Sequence[GradientHistory]], kind: str) -> list[str]:
    """Of all rows of a kind that any history has, each behind those it follows there."""
    found: list[str] = []
    for history in (history for groups in pipelines for history in groups):
        place = 0
        for name, its in zip(history.names, history.kinds, strict=True):
            if its != kind:
                continue
            if name not in found:
                found.insert(place, name)
            place = found.index(name) + 1
    return found


def _cells(groups: Sequence[GradientHistory], names: Sequence[str], kind: str) -> Values:
    """The median in every cell, (columns, names); nan in empty ones."""
    columns = max(1, min(COLUMNS, max(len(history) for history in groups)))
    records: list[list[Values]] = [[] for _ in range(columns)]
    for history in groups:
        values = np.full((len(history), len(names)), np.nan)
        there = [name for name in names if name in history.names]
        source = [history.names.index(name) for name in there]
        values[:, [names.index(name) for name in there]] = history.quantile(QUANTILES[kind])[:, source]
        for step, row in zip(history.steps.tolist(), values, strict=True):
            records[step * columns // history.step_count].append(row)
    cells = np.full((columns, len(names)), np.nan)
    for column, rows in enumerate(records):
        if rows:
            placed = np.clip(np.array(rows), LOWEST / 10, HIGHEST * 10)  # a logarithm has no place for 0
            some = ~np.isnan(placed).all(0)
            cells[column, some] = np.nanmedian(placed[:, some], axis=0)
    return cells


def _heat_map(axes: Axes, epochs: int, cells: Values) -> Any:
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    columns, rows = cells.shape
    mesh = axes.pcolormesh(
        np.linspace(0, epochs, columns + 1),
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(cells.T),
        norm=LogNorm(LOWEST, HIGHEST),
        cmap=mpl.colormaps["viridis"].with_extremes(under="black", over="#CC79A7", bad="0.8"),
        rasterized=True,
    )
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(length=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    return mesh


def _short(name: str) -> str:
    return name.removesuffix(ACTIVATION).removesuffix("weight").rstrip("._").replace(".", " ")
