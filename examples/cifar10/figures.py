"""A figure in the paper's layout: accuracy above, gradients below, one colour for a pipeline wherever it is.

Lines are means over the runs and bands interquartile ranges over them, as in the paper.  Gradients span
decades and may be exactly 0: their means are geometric, and all below `LOWEST` count as `LOWEST`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.cifar10 import pipelines
from examples.cifar10.beyond import ALSO
from examples.cifar10.results import Outcome, by_pipeline
from sigscale._files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = npt.NDArray[np.float64]

STYLE: Any = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#E69F00", "D"),
    ("#000000", "P"),
    ("#56B4E9", "X"),
    ("#7F7F7F", "*"),
)
"""Colours told apart by all kinds of colour vision (Okabe and Ito's, and a grey), and markers."""
WARNING = {"color": "#B00020", "weight": "bold"}
CAPTION = {"fontsize": 8.5, "color": "0.35"}

LOWEST = 1e-12
"""Gradients below are drawn at it: the axis has to end somewhere, and they have vanished by any measure."""
CHANCE = 10.0
FEW_EPOCHS = 20
"""Up to so many have markers."""
DASHED = (0, (4, 2))
STEPS = (1, 2, 5, 10)
"""Between ticks, times a power of ten."""


def draw(
    figure: pipelines.Figure, outcomes: Sequence[Outcome], stem: Path, *, title: str, warning: str = ""
) -> list[Path]:
    """Write `stem`.png and `stem`.svg; return their paths.  `warning` stands in red above all else.

    Drawn are the outcomes that are of the figure's pipelines; there must be one at least.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    groups = by_pipeline(outcomes)
    lines = [(groups[name], style) for name, style in _styles(figure).items() if name in groups]
    counts = {len(group) for group, _ in lines}
    runs = max(counts)
    last = max(len(group[0].column("test_accuracy")) for group, _ in lines)
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(9, 7.5), layout="constrained")
        canvas.suptitle(wrapped(title, 105), x=0.01, ha="left", fontsize=10.5)
        top, bottom = canvas.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        if warning:
            top.annotate(warning, (0, 1), (0, 20), "axes fraction", "offset points", None, **WARNING)
        labels = (_accuracies(top, lines), _gradients(bottom, lines))
        over = f"mean over {_span(counts)} runs, band: interquartile range" if runs > 1 else "the only run"
        top.set_title(f"line: {over}; dotted: chance", loc="left", **CAPTION)
        bottom.set_title(_caption(runs, last, lines), loc="left", **CAPTION)
        bottom.set_xlabel("epoch")
        margin = 0.02 * (last - 1) or 0.5
        bottom.set_xlim(1 - margin, last + margin)
        bottom.xaxis.set_major_locator(MaxNLocator(10, steps=STEPS, integer=True, min_n_ticks=1))
        top.yaxis.set_major_locator(MaxNLocator(8, steps=STEPS))
        _label_ends(top, labels[0])  # when all else is there, and heights are what they will be
        _label_ends(bottom, labels[1])
        return save(canvas, stem)


def _span(counts: set[int]) -> str:
    return str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def save(figure: Figure, stem: Path) -> list[Path]:
    """As PNG and SVG; the same picture is the same file."""
    import matplotlib as mpl

    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with atomic(path) as part, mpl.rc_context({"svg.hashsalt": stem.name}):
            figure.savefig(part, format=path.suffix[1:], dpi=160, metadata=metadata)
    return paths


def pretty(label: str) -> str:
    return label.replace("alpha", r"$\alpha$")


def wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


Style = tuple[str, str]
Line = tuple[list[Outcome], Style]
Label = tuple[float, str, str]


def _styles(figure: pipelines.Figure) -> dict[str, Style]:
    """By name: the one a pipeline has in the first figure with it, unless another one here has it already."""
    known: dict[str, Style] = {}
    for each in (*pipelines.FIGURES.values(), *ALSO.values(), figure):
        here: dict[str, Style] = {}
        free = [style for style in STYLES if style not in {known.get(p.name) for p in each.pipelines}]
        for pipeline in each.pipelines:
            style = known.get(pipeline.name)
            if style is None or style in here.values():
                style = free.pop(0) if free else STYLES[len(here) % len(STYLES)]
            here[pipeline.name] = style
        known = {**here, **known}
    return here


def _accuracies(axes: Axes, lines: Sequence[Line]) -> list[Label]:
    labels = []
    for rank, (runs, (colour, marker)) in enumerate(lines):
        curves = 100 * _curves(runs, "test_accuracy")
        mean = curves.mean(0)
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, zorder=9 - rank, **_line(colour, marker, len(mean)))
        if len(runs) > 1:
            _band(axes, curves, colour)
        labels.append((mean[-1], f"{pretty(runs[0].label)}: {mean[-1]:.1f} %", colour))
    axes.set_ylabel("test accuracy (%)")
    axes.axhline(CHANCE, color="0.5", lw=0.9, ls=":", zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, CHANCE - 0.5), max(high, CHANCE + 2))
    return labels


def _gradients(axes: Axes, lines: Sequence[Line]) -> list[Label]:
    axes.set_yscale("log")
    labels = []
    for rank, (runs, (colour, marker)) in enumerate(lines):
        curves = _logarithms(runs, "gradient_q50")
        middle = 10 ** _mean(curves)
        epochs = range(1, len(middle) + 1)
        axes.plot(epochs, middle, zorder=9 - rank, **_line(colour, marker, len(middle)))
        if len(runs) > 1:
            _band(axes, 10**curves, colour)
        for name in ("gradient_q05", "gradient_q95"):
            edge = 10 ** _mean(_logarithms(runs, name))
            axes.plot(epochs, edge, color=colour, lw=0.8, alpha=0.7, marker="" if len(edge) > 1 else "_")
        if _penalized(runs):
            loss = 10 ** _mean(_logarithms(runs, "loss_gradient_q50"))
            axes.plot(epochs, loss, color=colour, ls=DASHED, lw=1.2, marker="" if len(loss) > 1 else "x")
        lost = np.count_nonzero(np.isnan(curves[:, -1]))
        note = f": {lost} of {len(runs)} not finite" if lost else ""
        labels.append((middle[-1], pretty(runs[0].label) + note, colour))
    axes.set_ylabel("|gradient| of single parameters")
    low, high = axes.get_ylim()
    if _floored(lines):
        low = LOWEST / 4
        axes.axhline(LOWEST, color="0.5", lw=0.9, ls=":", zorder=0)
    axes.set_ylim(low, max(high, 100 * low))
    return labels


def _caption(runs: int, epochs: int, lines: Sequence[Line]) -> str:
    line, thin, dashed = ("thick", "thin", "dashed") if epochs > 1 else ("symbol", "dash", "cross")
    over = ", geometric mean over the runs, band: interquartile range" if runs > 1 else ""
    parts = [f"{line}: median coordinate{over}", f"{thin}: 5\u00a0% and 95\u00a0% quantiles"]
    if any(_penalized(group) for group, _ in lines):
        parts.append(f"{dashed}: median without the penalty")
    if _floored(lines):
        parts.append(f"dotted: at most {LOWEST:.0e}")
    return textwrap.fill("; ".join(parts), 100)


def _floored(lines: Sequence[Line]) -> bool:
    drawn = ("gradient_q05", "loss_gradient_q50")
    return any((_curves(runs, name) < LOWEST).any() for runs, _ in lines for name in drawn)


def _penalized(runs: Sequence[Outcome]) -> bool:
    """Whether the gradient that is followed is not that of the loss alone."""
    one, other = (_curves(runs, name) for name in ("gradient_q50", "loss_gradient_q50"))
    return not np.array_equal(one, other, equal_nan=True)


def _curves(runs: Sequence[Outcome], metric: str) -> Curve:
    """(runs, epochs)."""
    return np.array([run.column(metric) for run in runs])


def _logarithms(runs: Sequence[Outcome], metric: str) -> Curve:
    """log10, (runs, epochs); nan for what is not finite."""
    curves = _curves(runs, metric)
    return np.log10(np.maximum(np.where(np.isfinite(curves), curves, math.nan), LOWEST))


def _mean(curves: Curve) -> Curve:
    """Over the runs that are finite; nan where none is."""
    count = np.isfinite(curves).sum(0)
    total = np.nansum(curves, axis=0)
    return np.where(count, total / np.maximum(count, 1), math.nan)


def _band(axes: Axes, curves: Curve, colour: str) -> None:
    edges = np.full((2, curves.shape[1]), math.nan)
    some = np.flatnonzero(np.isfinite(curves).any(axis=0))
    edges[:, some] = np.nanquantile(curves[:, some], (0.25, 0.75), axis=0)
    axes.fill_between(range(1, curves.shape[1] + 1), *edges, color=colour, alpha=0.2, lw=0)


def _line(colour: str, marker: str, epochs: int) -> dict[str, Any]:
    return {"color": colour, "marker": marker if epochs <= FEW_EPOCHS else "", "ms": 4, "lw": 1.8}


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Each curve's name at its right end, in its colour, pushed apart where curves end close together."""
    from scipy.optimize import isotonic_regression

    figure: Any = axes.figure
    figure.canvas.draw()
    height = axes.get_window_extent().height / figure.dpi * 72
    ends = [axes.transAxes.inverted().transform(axes.transData.transform((1, y)))[1] for y, _, _ in labels]
    ends = np.clip(np.nan_to_num(ends), 0, 1)
    rows = 14 / height * np.arange(len(labels))  # 14 points: a line of text
    order = np.argsort(ends, kind="stable")
    places = np.empty(len(labels))
    nearest = isotonic_regression(ends[order] - rows).x  # that leave a line between
    places[order] = rows + np.clip(nearest, 0, max(0.0, 1 - rows[-1]))
    for (_, text, colour), end, place in zip(labels, ends, places, strict=True):
        arrow = {
            "arrowstyle": "-",
            "color": colour,
            "lw": 0.8,
            "shrinkA": 1,
            "shrinkB": 2,
            "relpos": (0, 0.5),
        }
        axes.annotate(
            text,
            (1.005, end),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            arrowprops=arrow,
        )
