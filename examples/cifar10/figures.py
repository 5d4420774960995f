"""A figure in the paper's layout: accuracy above, gradients below, one color for a pipeline wherever it is.

Lines are means over the runs and bands interquartile ranges over them, as in the paper.  Gradients span
decades and may be exactly 0: their means are geometric, and all below `LOWEST` count as `LOWEST`.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from examples.cifar10 import pipelines
from examples.cifar10.networks import ACTIVATION
from examples.cifar10.pipelines import ALSO
from examples.cifar10.store import Outcome, by_pipeline, durable
from sigscale import GradientHistory

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
"""Colors told apart by all kinds of color vision (Okabe and Ito's, and a grey), and markers."""
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
PANEL, LABEL_WIDTH = 2.2, 26
"""Inches, or more where panels are few; and the letters above them in a line."""


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


def draw_escapes(
    figure: pipelines.Figure, outcomes: Sequence[Outcome], stem: Path, *, title: str, warning: str = ""
) -> list[Path]:
    """A point for each run: the epoch in which it leaves chance against its median gradient until then."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Canvas

    groups = by_pipeline(outcomes)
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(9, 5), layout="constrained")
        canvas.suptitle(wrapped(title, 105), x=0.01, ha="left", fontsize=10.5)
        axes = canvas.subplots()
        for name, (color, marker) in _styles(figure).items():
            if runs := groups.get(name):
                gradients, epochs = np.transpose([escape(run) for run in runs])
                label = f"{pretty(runs[0].label)}: {correlation(gradients, epochs)}"
                axes.scatter(gradients, epochs, 28, color, marker=marker, alpha=0.7, label=label)
        never = 1 + max(len(run.column("test_accuracy")) for run in outcomes)
        axes.axhline(never, color="0.5", lw=0.9, ls=":", zorder=0)
        caption = f"each point a run; dotted: never; rank correlations are Spearman's. {warning}"
        axes.set_title(caption, loc="left", **(WARNING if warning else CAPTION))
        if any(np.isfinite(escape(run)[0]) for run in outcomes):
            axes.set_xscale("log")
        axes.set_xlabel("median |gradient of the loss| until then (geometric mean over the epochs)")
        axes.set_ylabel(f"first epoch above {ESCAPED:g} % test accuracy")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        return save(canvas, stem)


def escape(run: Outcome) -> tuple[float, int]:
    """The median gradient before a run leaves chance, and in which epoch it does (past the last: never)."""
    above = 100 * run.column("test_accuracy") > ESCAPED
    epoch = int(above.argmax()) + 1 if above.any() else len(above) + 1
    before = _logarithms([run], "loss_gradient_q50")[0, : max(1, epoch - 1)]
    return float(10 ** before[np.isfinite(before)].mean()) if np.isfinite(before).any() else math.nan, epoch


def correlation(gradients: Curve, epochs: Curve) -> str:
    """Spearman's rank correlation in words; runs that never leave chance share the last rank."""
    from scipy import stats

    finite = np.isfinite(gradients)
    if len(set(epochs[finite])) < 2 or len(set(gradients[finite])) < 2:
        return "no rank correlation (no variation)"
    found = stats.spearmanr(gradients[finite], epochs[finite])
    return f"rank correlation {found.statistic:.2f} (p = {found.pvalue:.2g}, n = {finite.sum()})"


def _span(counts: set[int]) -> str:
    return str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def save(figure: Figure, stem: Path) -> list[Path]:
    """As PNG and SVG; the same picture is the same file."""
    import matplotlib as mpl

    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with durable(path) as part, mpl.rc_context({"svg.hashsalt": stem.name}):
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
    for rank, (runs, (color, marker)) in enumerate(lines):
        curves = 100 * _curves(runs, "test_accuracy")
        mean = curves.mean(0)
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, zorder=9 - rank, **_line(color, marker, len(mean)))
        if len(runs) > 1:
            _band(axes, curves, color)
        labels.append((mean[-1], f"{pretty(runs[0].label)}: {mean[-1]:.1f} %", color))
    axes.set_ylabel("test accuracy (%)")
    axes.axhline(CHANCE, color="0.5", lw=0.9, ls=":", zorder=0)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, CHANCE - 0.5), max(high, CHANCE + 2))
    return labels


def _gradients(axes: Axes, lines: Sequence[Line]) -> list[Label]:
    axes.set_yscale("log")
    labels = []
    for rank, (runs, (color, marker)) in enumerate(lines):
        curves = _logarithms(runs, "gradient_q50")
        middle = 10 ** _mean(curves)
        epochs = range(1, len(middle) + 1)
        axes.plot(epochs, middle, zorder=9 - rank, **_line(color, marker, len(middle)))
        if len(runs) > 1:
            _band(axes, 10**curves, color)
        for name in ("gradient_q05", "gradient_q95"):
            edge = 10 ** _mean(_logarithms(runs, name))
            axes.plot(epochs, edge, color=color, lw=0.8, alpha=0.7, marker="" if len(edge) > 1 else "_")
        if _penalized(runs):
            loss = 10 ** _mean(_logarithms(runs, "loss_gradient_q50"))
            axes.plot(epochs, loss, color=color, ls=DASHED, lw=1.2, marker="" if len(loss) > 1 else "x")
        lost = np.count_nonzero(np.isnan(curves[:, -1]))
        note = f": {lost} of {len(runs)} not finite" if lost else ""
        labels.append((middle[-1], pretty(runs[0].label) + note, color))
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


def _band(axes: Axes, curves: Curve, color: str) -> None:
    edges = np.full((2, curves.shape[1]), math.nan)
    some = np.flatnonzero(np.isfinite(curves).any(axis=0))
    edges[:, some] = np.nanquantile(curves[:, some], (0.25, 0.75), axis=0)
    axes.fill_between(range(1, curves.shape[1] + 1), *edges, color=color, alpha=0.2, lw=0)


def _line(color: str, marker: str, epochs: int) -> dict[str, Any]:
    return {"color": color, "marker": marker if epochs <= FEW_EPOCHS else "", "ms": 4, "lw": 1.8}


def _label_ends(axes: Axes, labels: Sequence[Label]) -> None:
    """Each curve's name at its right end, in its color, pushed apart where curves end close together."""
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
    for (_, text, color), end, place in zip(labels, ends, places, strict=True):
        arrow = {
            "arrowstyle": "-",
            "color": color,
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
            color=color,
            va="center",
            arrowprops=arrow,
        )


def draw_layers(
    histories: Mapping[str, Sequence[GradientHistory]],
    epochs: int,
    stem: Path,
    *,
    title: str,
    warning: str = "",
) -> list[Path]:
    """Write `stem`.png and `stem`.svg; return their paths.  `warning` stands in red above all else.

    Colors are a quantile of |g| over a layer's coordinates in a step: of all seeds that were trained
    together, and over the steps drawn as one and the groups of seeds its median.

    Args:
        histories: by the pipelines' labels; one for each group of seeds that were trained together.
        epochs: how many the histories' steps made.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = {kind: _names(histories.values(), kind) for kind in KINDS}
    rows = {kind: names for kind, names in rows.items() if names}
    heights = [0.24 * max(2, len(names)) for names in rows.values()]
    labels = [wrapped(label, LABEL_WIDTH) for label in histories]
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
            axes.set_ylabel(KINDS[kind])
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


def _cells(groups: Sequence[GradientHistory], names: Sequence[str], kind: str) -> Curve:
    """The median in every cell, (columns, names); nan in empty ones."""
    columns = max(1, min(CELLS, max(len(history) for history in groups)))
    records: list[list[Curve]] = [[] for _ in range(columns)]
    for history in groups:
        values = np.full((len(history), len(names)), np.nan)
        there = [name for name in names if name in history.names]
        source = [history.names.index(name) for name in there]
        values[:, [names.index(name) for name in there]] = history.quantile(LAYER_QUANTILES[kind])[:, source]
        for step, row in zip(history.steps.tolist(), values, strict=True):
            records[step * columns // history.step_count].append(row)
    cells = np.full((columns, len(names)), np.nan)
    for column, rows in enumerate(records):
        if rows:
            placed = np.clip(np.array(rows), LOWEST / 10, HIGHEST * 10)  # a logarithm has no place for 0
            some = ~np.isnan(placed).all(0)
            cells[column, some] = np.nanmedian(placed[:, some], axis=0)
    return cells


def _heat_map(axes: Axes, epochs: int, cells: Curve) -> Any:
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
