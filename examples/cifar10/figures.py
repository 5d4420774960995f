"""The pictures of a figure: in the paper's layout, gradients by layer and step, and escapes from chance.

Lines are means over the runs and bands interquartile ranges, as in the paper.  Gradients span decades and may
be exactly 0: their means are geometric, and all below `LOWEST` count as `LOWEST`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from examples.cifar10 import pipelines
from examples.cifar10.gradients import VANISHED
from examples.cifar10.networks import ACTIVATION
from examples.cifar10.store import Outcome, by_pipeline
from examples.common import CAPTION, STYLES, picture
from sigscale import GradientHistory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = Sequence[Outcome]

LOWEST = 1e-12
"""Gradients below are drawn at it: the axis has to end somewhere, and they have vanished by any measure."""
CHANCE = 10.0
FEW_EPOCHS = 20
"""Up to so many have markers."""
LAYER_QUANTILES = {"activation": 0.95, "parameter": 0.5}
"""Those drawn.  The median of an activation before max pooling would be 0: a gradient goes to one of four
coordinates."""
KINDS = {"activation": "activation after\n(95 % quantile)", "parameter": "parameters of\n(median)"}
HIGHEST = 1e4
"""Gradients above share a color, as do those below LOWEST."""
CELLS = 120
"""At most so many fit a panel; of more steps, several are drawn as one."""
ESCAPED = 12.0
"""Per cent of test accuracy at which a run has left chance, of which 10,000 images stray by 0.3."""
WIDTH = 105
"""Letters in a line of a title."""


def draw(
    figure: pipelines.Figure, outcomes: Runs, stem: Path, *, setting: str = "", warning: str = ""
) -> None:
    """Accuracy above, gradients below, a line for each pipeline that was run; `warning` stands on top."""
    from matplotlib.ticker import MaxNLocator

    groups = by_pipeline(outcomes)
    title = f"{_finding(figure, groups)}\n{setting}"
    with picture(stem, _wrapped(title), (9, 7.5), warning=warning) as canvas:
        top, bottom = canvas.subplots(2, 1, sharex=True, height_ratios=(1, 1.25))
        bottom.set_yscale("log")
        notes = ["thick: median coordinate (geometric mean, interquartile range)", "thin: 5 % and 95 %"]
        notes += [f"dashed: without the penalty; {LOWEST:.0e} stands for all below"]
        for rank, (pipeline, style) in enumerate(zip(figure.pipelines, STYLES, strict=False)):
            if runs := groups.get(pipeline.name):
                _draw_pipeline(top, bottom, pipeline, runs, style, zorder=9 - rank)
                if lost := int(logarithms(runs, "gradient_q50").iloc[:, -1].isna().sum()):
                    notes.append(f"{pipeline.label}: {lost} of {len(runs)} not finite")
        top.axhline(CHANCE, color="0.5", lw=0.9, ls=":", zorder=0)
        top.set_ylabel("test accuracy (%)")
        top.set_title("line: mean over the runs, band: interquartile range; dotted: chance", **CAPTION)
        bottom.set(xlabel="epoch", ylabel="|gradient| of single parameters")
        bottom.set_title(pretty(textwrap.fill("; ".join(notes), WIDTH)), **CAPTION)
        bottom.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        canvas.legend(loc="outside lower left", ncols=4, frameon=False)


def _draw_pipeline(
    top: Axes, bottom: Axes, pipeline: pipelines.Pipeline, runs: Runs, style: tuple[str, str], zorder: float
) -> None:
    color, marker = style
    accuracies, gradients = accuracy(runs), logarithms(runs, "gradient_q50")
    line: Any = {"color": color, "ms": 4, "lw": 1.8, "zorder": zorder}
    line["marker"] = marker if accuracies.shape[1] <= FEW_EPOCHS else ""
    for axes, curves in ((top, accuracies), (bottom, 10**gradients)):
        low, high = curves.quantile(0.25), curves.quantile(0.75)
        axes.fill_between(curves.columns, low, high, color=color, alpha=0.2, lw=0)
    top.plot(accuracies.mean(), label=f"{pretty(pipeline.label)}: {accuracies.mean().iloc[-1]:.1f} %", **line)
    bottom.plot(10 ** gradients.mean(), **line)
    alone = accuracies.shape[1] == 1
    for edge in ("gradient_q05", "gradient_q95"):
        bottom.plot(10 ** logarithms(runs, edge).mean(), color=color, lw=0.8, marker="_" if alone else "")
    if pipeline.l2 or pipeline.l1:
        loss = 10 ** logarithms(runs, "loss_gradient_q50").mean()
        bottom.plot(loss, color=color, ls=(0, (4, 2)), lw=1.2, marker="x" if alone else "")


def _finding(figure: pipelines.Figure, groups: Mapping[str, Runs]) -> str:
    """The second pipeline against the first one."""
    plain, remedied = figure.pipelines[:2]
    if not {plain.name, remedied.name} <= set(groups):
        return figure.title
    pair = [groups[p.name] for p in (remedied, plain)]
    one, other = (accuracy(runs).mean().iloc[-1] for runs in pair)
    starts = [logarithms(runs, "gradient_q50").mean().iloc[0] for runs in pair]
    found = f"{remedied.label} reaches {one:.1f} % accuracy, {plain.label} {other:.1f} %"
    if np.isfinite(starts).all():
        ratio = 10 ** (starts[0] - starts[1])
        found += f"; its gradients start {ratio:{',.0f' if ratio >= 10 else '.2g'}} times as large"
    return f"{found}\n{figure.title}"


def accuracy(runs: Runs) -> pd.DataFrame:
    """Test accuracies in per cent, (runs, epochs)."""
    return 100 * _table(runs, "test_accuracy")


def logarithms(runs: Runs, name: str) -> pd.DataFrame:
    """log10 of gradients, (runs, epochs); NaN for what is not finite."""
    table = _table(runs, name)
    return np.log10(table.where(np.isfinite(table)).clip(lower=LOWEST))


def _table(runs: Runs, name: str) -> pd.DataFrame:
    table = pd.DataFrame([run.curves[name] for run in runs])
    table.columns += 1
    return table


def draw_escapes(
    figure: pipelines.Figure, outcomes: Runs, stem: Path, *, setting: str = "", warning: str = ""
) -> None:
    """A point for each run: the epoch in which it leaves chance against its median gradient until then."""
    groups, epochs = by_pipeline(outcomes), max(len(run.curves["test_accuracy"]) for run in outcomes)
    points = {name: pd.DataFrame(map(escape, runs), columns=["x", "y"]) for name, runs in groups.items()}
    everything = pd.concat(points.values())
    title = f"All runs: {correlation(everything)}\n{figure.title}\n{setting}"
    with picture(stem, _wrapped(title), (9, 5), warning=warning) as canvas:
        axes = canvas.subplots()
        for pipeline, (color, marker) in zip(figure.pipelines, STYLES, strict=False):
            if pipeline.name in points:
                its = points[pipeline.name]
                label = f"{pretty(pipeline.label)}: {correlation(its)}"
                axes.scatter(its.x, its.y, 28, color, marker=marker, alpha=0.7, label=label)
        axes.axhline(1 + epochs, color="0.5", lw=0.9, ls=":", zorder=0)
        axes.set_title("each point a run; dotted: never; rank correlations are Spearman's", **CAPTION)
        if np.isfinite(everything.x).any():
            axes.set_xscale("log")
        axes.set_xlabel("median |gradient of the loss| until then (geometric mean over the epochs)")
        axes.set_ylabel(f"first epoch above {ESCAPED:g} % test accuracy")
        canvas.legend(loc="outside lower left", frameon=False)


def escape(run: Outcome) -> tuple[float, int]:
    """The median gradient before a run leaves chance, and in which epoch it does (past the last: never)."""
    above = 100 * run.curves["test_accuracy"] > ESCAPED
    epoch = int(above.argmax()) + 1 if above.any() else len(above) + 1
    before = logarithms([run], "loss_gradient_q50").iloc[0, : max(1, epoch - 1)]
    return float(10 ** before.mean()), epoch


def correlation(points: pd.DataFrame) -> str:
    """Spearman's rank correlation in words; runs that never leave chance share the last rank."""
    from scipy import stats

    finite = points[np.isfinite(points.x)]
    if finite.x.nunique() < 2 or finite.y.nunique() < 2:
        return "no rank correlation of gradient and escape (no variation)"
    found = stats.spearmanr(finite.x, finite.y)
    words = "no significant rank correlation"
    if found.pvalue < 0.05:
        words = "larger gradients, " + ("earlier" if found.statistic < 0 else "later") + " escape"
    return f"{words} ({found.statistic:.2f}, p = {found.pvalue:.2g}, n = {len(finite)})"


def draw_layers(
    histories: Mapping[str, Sequence[GradientHistory]],
    epochs: int,
    stem: Path,
    *,
    setting: str = "",
    warning: str = "",
) -> None:
    """A heat map for each pipeline: a quantile of |g| over a layer's coordinates, of all seeds together.

    Args:
        histories: by the pipelines' labels; one for each group of seeds that were trained together.
        epochs: how many the histories' steps made.
    """
    names = {kind: _names([h for groups in histories.values() for h in groups], kind) for kind in KINDS}
    rows = {kind: found for kind, found in names.items() if found}
    heights = [0.24 * max(2, len(found)) for found in rows.values()]
    width = 2.6 + max(2.2 * len(histories), 6)
    title = _wrapped(f"{_vanished(histories)}\n{setting}", int(11.5 * width))
    with picture(stem, title, (width, sum(heights) + 2.1), warning=warning) as canvas:
        panels = canvas.subplots(
            len(rows), len(histories), sharex=True, sharey="row", height_ratios=heights, squeeze=False
        )
        for column, (label, groups) in zip(panels.T, histories.items(), strict=True):
            column[0].set_title(pretty(textwrap.fill(label, 26)))
            for axes, (kind, found) in zip(column, rows.items(), strict=True):
                mesh = _heat_map(axes, epochs, cells(groups, found, kind))
            column[-1].set_xlabel("epoch")
        for axes, (kind, found) in zip(panels[:, 0], rows.items(), strict=True):
            axes.set_yticks(range(len(found)), [_short(name) for name in found])
            axes.set_ylabel(KINDS[kind])
        canvas.align_ylabels(panels[:, 0])
        bar = canvas.colorbar(mesh, ax=panels, extend="both", aspect=35)
        bar.set_label("|gradient of the loss|; black: less, or exactly 0;\npurple: more; grey: none")


def _names(histories: Sequence[GradientHistory], kind: str) -> list[str]:
    """The rows of a kind that any history has, in the order of the one with the most."""
    longest_first = sorted(histories, key=lambda history: -len(history.names))
    rows = (row for history in longest_first for row in zip(history.names, history.kinds, strict=True))
    return list(dict.fromkeys(name for name, its in rows if its == kind))


def _vanished(histories: Mapping[str, Sequence[GradientHistory]]) -> str:
    """The share of parameters whose gradients have vanished in the last record."""
    shares = []
    for label, groups in histories.items():
        found = [history.below(VANISHED)[-1, history.names.index("all parameters")] for history in groups]
        shares.append(f"{np.mean(found):.1%} ({label})")
    return f"In the end, {', '.join(shares)} of the parameters' gradients are below {VANISHED:.0e}"


def cells(groups: Sequence[GradientHistory], names: Sequence[str], kind: str) -> pd.DataFrame:
    """The median over the steps of every cell and the groups, (columns, names); NaN in empty ones."""
    columns = max(1, min(CELLS, max(map(len, groups))))
    q = LAYER_QUANTILES[kind]
    tables = [pd.DataFrame(h.quantile(q), h.steps * columns // h.step_count, h.names) for h in groups]
    medians: pd.DataFrame = pd.concat(tables).groupby(level=0).median().clip(LOWEST / 10, HIGHEST * 10)
    return medians.reindex(index=range(columns), columns=list(names))


def _heat_map(axes: Axes, epochs: int, table: pd.DataFrame) -> Any:
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    columns, rows = table.shape
    mesh = axes.pcolormesh(
        np.linspace(0, epochs, columns + 1),
        np.arange(rows + 1) - 0.5,
        np.ma.masked_invalid(table.to_numpy().T),
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


def pretty(label: str) -> str:
    return label.replace("alpha", r"$\alpha$")


def _wrapped(text: str, width: int = WIDTH) -> str:
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
