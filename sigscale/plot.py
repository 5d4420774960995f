"""Pictures of a monitor's records; they need matplotlib: `pip install "sigscale[plot]"`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ._files import atomic
from ._plot_panels import Scale, Steps, draw_curves, draw_key, draw_layers
from .monitor._rows import TOTALS
from .monitor.history import COUNTS, GradientHistory, quantile_name, threshold_name
from .monitor.monitor import GradientMonitor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"activation": "#D55E00", "parameter": "#0072B2"}  # Okabe and Ito's vermilion and blue
TITLES = {"activation": "activations", "parameter": "parameters"}
CURVES, ROW, HIGHEST = 2.5, 0.19, 6.0  # heights in inches: the curves, one layer, at most for all layers
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}


def gradients(
    source: GradientMonitor | GradientHistory,
    path: str | os.PathLike[str] | None = None,
    *,
    statistic: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the gradients of a training: curves for the whole network, a heat map with a row per layer.

    Top: the median of |g| over all activations and over all parameters, with bands between outer quantiles.
    Bottom: one row per activation and per parameter, in the model's order, colored by the median of |g|.
    Exact zeros have their own strip and color; values more than 20 decades below the largest share the end
    of the scale; hatching means no gradient. In a long training, columns show medians over several steps.

    Args:
        source: a monitor, or its history.
        path: file to save the picture to; the suffix sets the format (.png, .svg, .pdf).
        statistic: what the colors show, "mean" or a quantile such as "q95"; by default the median.
        title: the picture's title; by default the range of steps.

    Returns:
        A matplotlib Figure that is not registered with pyplot; notebooks display it.

    Raises:
        ImportError: matplotlib is missing.
        TypeError, ValueError: the source is not a monitor or history, has no steps, or has signed quantiles;
            or the statistic was not recorded.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), ss.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> with ss.GradientMonitor(model) as monitor:
        ...     for _ in range(3):
        ...         model(torch.randn(2, 4)).sum().backward()
        ...         monitor.step()
        >>> figure = ss.plot.gradients(monitor, title="one hidden layer")
    """
    history = _checked(source)
    middle = min(history.quantiles, key=lambda q: abs(q - 0.5))
    statistic = _checked_statistic(history, quantile_name(middle) if statistic is None else statistic)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib, not found: pip install "sigscale[plot]"') from error
    kinds = [kind for kind in TITLES if kind in history.kinds]
    heights = [CURVES, *(min(0.25 + ROW * history.kinds.count(kind), HIGHEST) for kind in kinds)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, sum(heights) + 0.7 + 0.35 * len(kinds)), dpi=150, layout="constrained")
        figure.suptitle(title or _span(history), x=0.01, ha="left", fontsize=11)
        _draw(figure, history, kinds, heights, statistic)
        if path is not None:
            path = Path(path)
            with atomic(path) as part:
                figure.savefig(part, format=path.suffix[1:] or "png")
    return figure


def _draw(
    figure: Figure, history: GradientHistory, kinds: list[str], heights: list[float], statistic: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = Steps(history.steps)
    grid = figure.add_gridspec(
        len(heights), 2, height_ratios=heights, width_ratios=(1, 0.018), wspace=0.02, hspace=0.01
    )
    panels = [figure.add_subplot(grid[0, 0])]
    _draw_totals(panels[0], steps, history)
    layers = [row for row, kind in enumerate(history.kinds) if kind in kinds]
    values = history[statistic]
    scale = Scale.of(values[:, layers])
    for kind in kinds:
        rows = [row for row, its_kind in enumerate(history.kinds) if its_kind == kind]
        axes = figure.add_subplot(grid[len(panels), 0], sharex=panels[0])
        names = [history.names[row] for row in rows]
        mesh = draw_layers(axes, steps, values[:, rows], scale, names, heights[len(panels)] - 0.1)
        axes.set_title(TITLES[kind], loc="left")
        panels[-1].tick_params(labelbottom=False)
        panels.append(axes)
    if kinds:
        draw_key(panels[1], scale, steps.has_gaps)
        ends = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
        extend = ends[scale.has_zeros, scale.has_infinities]
        bar = figure.colorbar(mesh, cax=figure.add_subplot(grid[1:, 1]), extend=extend)
        exponents = scale.exponents(round(3 * sum(heights[1:])))
        bar.set_ticks([10.0**e for e in exponents], labels=[scale.label(e) for e in exponents])
        bar.ax.minorticks_off()
        space = "\n" if sum(heights[1:]) < 1.4 else " "
        bar.set_label(f"{_called(statistic)} of{space}|gradient|")
    panels[-1].set_xlabel("step")
    panels[-1].set_xlim(steps.edges[0], steps.edges[-1])
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))


def _draw_totals(axes: Axes, steps: Steps, history: GradientHistory) -> None:
    """Curves of all activations and all parameters together."""
    totals = [row for row, kind in enumerate(history.kinds) if kind == "total"]
    names = [history.names[row] for row in totals]
    colors = [COLORS[kind] for name in names for kind, total in TOTALS.items() if total == name]
    ordered = sorted(history.quantiles)
    middle = min(ordered, key=lambda q: abs(q - 0.5))
    pairs = [*zip([q for q in ordered if q < middle], [q for q in ordered[::-1] if q > middle], strict=False)]
    drawn = [*(low for low, _ in pairs), middle, *(high for _, high in pairs[::-1])]
    values = np.stack([history.quantile(q)[:, totals] for q in drawn])
    draw_curves(axes, steps, values, Scale.of(values), names, colors)
    axes.set_ylabel("|gradient|")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.1)
    bands = " and ".join(f"{100 * low:.10g} to {100 * high:.10g} %" for low, high in pairs)
    text = f"line: {_called(quantile_name(middle))}" + (f"; bands: {bands}" if bands else "")
    if steps.per_column > 1:
        text += f"; {steps.per_column} steps as one"
    axes.set_title(text, loc="right", color="0.35", fontsize=8)


def _checked(source: Any) -> GradientHistory:
    history = source.history() if isinstance(source, GradientMonitor) else source
    if not isinstance(history, GradientHistory):
        raise TypeError(
            f"gradients() draws a GradientMonitor or a GradientHistory; got {type(source).__name__}: "
            "pass the monitor, or GradientHistory.load(path)"
        )
    if not len(history):
        raise ValueError("the history has no steps to draw: call monitor.step() after loss.backward()")
    if not history.magnitude:
        raise ValueError(
            "a logarithmic scale shows magnitudes, but the history has quantiles of signed gradients: "
            "record it with GradientMonitor(model, magnitude=True)"
        )
    return history


def _checked_statistic(history: GradientHistory, statistic: Any) -> str:
    shares = {threshold_name(threshold) for threshold in history.thresholds}
    known = [column for column in history.columns if column not in COUNTS and column not in shares]
    if statistic not in known:
        raise ValueError(
            f"statistic must be one of {', '.join(known)}; got {statistic!r}: name others in "
            "GradientMonitor(model, quantiles=...)"
        )
    return str(statistic)


def _called(statistic: str) -> str:
    if statistic == "mean":
        return "mean"
    return "median" if statistic == "q50" else f"{statistic[1:].lstrip('0') or '0'} % quantile"


def _span(history: GradientHistory) -> str:
    first, last = history.steps[0], history.steps[-1]
    return f"Gradients at step {first}" if first == last else f"Gradients, steps {first} to {last}"
