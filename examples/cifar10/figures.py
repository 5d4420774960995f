"""Figure 3 of the paper: accuracy above, gradients below, one colour per pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.cifar10.results import Outcome, by_pipeline
from sigscale.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = npt.NDArray[np.float64]

STYLE: Any = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"))
"""Okabe and Ito's blue, vermilion, green and purple (told apart by all kinds of colour vision); markers."""

GRADIENTS = (*(f"gradient_q{q}" for q in ("05", "25", "50", "75", "95")), "loss_gradient_q50")
LOWEST = 1e-12
"""Gradients below are drawn at it: the axis has to end somewhere, and they have vanished by any measure."""

GRADIENT_CAPTION = (
    "thick: median; band: quartiles; thin: 5 % and 95 %; dashed: median of the loss's gradient, no penalty"
)


def draw(outcomes: Sequence[Outcome], stem: Path, *, title: str, warning: str = "") -> list[Path]:
    """Write `stem`.png and `stem`.svg; return their paths.  `warning` stands in red above all else."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    with plt.rc_context(STYLE):
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(9, 7.5), sharex=True, height_ratios=(1, 1.25), layout="constrained"
        )
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        if warning:
            top.set_title(warning, loc="left", color="#B00020", weight="bold")
        _accuracies(top, outcomes)
        _gradients(bottom, outcomes)
        bottom.set_xlabel("epoch")
        bottom.set_title(GRADIENT_CAPTION, loc="left", fontsize=8.5, color="0.3")
        last = max(len(outcome.history) for outcome in outcomes)
        margin = 0.02 * (last - 1) or 0.5
        bottom.set_xlim(1 - margin, last + margin)
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        paths = save(figure, stem)
        plt.close(figure)
    return paths


def save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        with atomic(path) as part:
            figure.savefig(part, format=path.suffix[1:], dpi=160)
    return paths


def pretty(label: str) -> str:
    return label.replace("alpha", r"$\alpha$")


def _accuracies(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    labels = []
    for pipeline, runs, colour, line in _styled(outcomes):
        curves = 100 * _curves(runs, "test_accuracy")
        mean = curves.mean(0)
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, **line)
        if len(runs) > 1:
            lower, upper = np.quantile(curves, (0.25, 0.75), axis=0)
            axes.fill_between(epochs, lower, upper, color=colour, alpha=0.2, lw=0)
        labels.append((mean[-1], f"{pipeline}: {mean[-1]:.1f} %", colour))
    axes.set_ylabel("test accuracy (%)")
    axes.axhline(10, color="0.6", lw=0.8, ls=":", zorder=0)
    axes.set_ylim(bottom=min(axes.get_ylim()[0], 9.3))  # room for the note
    _note(axes, 10, "chance")
    _label_ends(axes, labels)


def _gradients(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    values = np.array([outcome.column(metric) for outcome in outcomes for metric in GRADIENTS])
    floor = _floor(values)
    axes.set_yscale("log")
    labels = []
    for pipeline, runs, colour, line in _styled(outcomes):
        low, lower, middle, upper, high, loss = (
            np.maximum(np.median(_curves(runs, metric), axis=0), floor) for metric in GRADIENTS
        )
        epochs = range(1, len(middle) + 1)
        axes.fill_between(epochs, lower, upper, color=colour, alpha=0.2, lw=0)
        for edge in (low, high):
            axes.plot(epochs, edge, color=colour, lw=0.7, alpha=0.8)
        axes.plot(epochs, loss, color=colour, ls=(0, (4, 2)), lw=1.2)
        axes.plot(epochs, middle, **line)
        finite = np.isfinite(middle[-1])
        labels.append((middle[-1], pipeline if finite else f"{pipeline}: not finite", colour))
    axes.set_ylabel("|gradient| of single parameters")
    if (values < floor).any():
        top = axes.get_ylim()[1]
        axes.set_yticks([tick for tick in axes.get_yticks() if tick >= floor])
        axes.set_ylim(floor / 30, top)
        axes.axhline(floor, color="0.6", lw=0.8, ls=":", zorder=0)
        _note(axes, floor, f"values from 0 to {floor:.0e} are drawn on this line")
    _label_ends(axes, labels)


def _styled(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[Outcome], str, dict[str, Any]]]:
    """Each pipeline's label, runs, colour, and how its main line is drawn; the first ones on top."""
    groups = by_pipeline(outcomes).items()
    for rank, ((pipeline, runs), (colour, marker)) in enumerate(zip(groups, STYLES, strict=False)):
        line = {
            "color": colour,
            "marker": marker if len(runs[0].history) <= 20 else "",
            "ms": 4,
            "zorder": 9 - rank,
        }
        yield pretty(pipeline.label), runs, colour, line


def _curves(runs: Sequence[Outcome], metric: str) -> Curve:
    """(runs, epochs)."""
    return np.array([run.column(metric) for run in runs])


def _floor(values: Curve) -> float:
    """A power of ten below which the log axis does not go, so that zeros have a place on it."""
    smallest = values[values > 0].min(initial=1.0)
    return max(10.0 ** math.floor(math.log10(smallest)), LOWEST)


def _note(axes: Axes, y: float, text: str) -> None:
    """A small grey remark below the horizontal line at `y`."""
    axes.annotate(
        text,
        (0.005, y),
        (0, -2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color="0.4",
        fontsize=8,
        va="top",
    )


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Each curve's name at its right end, in its colour, pushed apart where curves end close together."""
    axes.figure.canvas.draw()
    ends = [axes.transAxes.inverted().transform(axes.transData.transform((1, y)))[1] for y, _, _ in labels]
    ends = np.nan_to_num(ends)
    gap = 0.085
    places = np.zeros(len(labels))
    lowest = -gap
    for index in np.argsort(ends):
        lowest = places[index] = max(ends[index], lowest + gap)
    places -= max(0.0, lowest - 1)
    for (_, text, colour), end, place in zip(labels, ends, places, strict=True):
        axes.annotate(
            text,
            (1.005, end),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.8,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )
