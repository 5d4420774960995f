"""Table 4 as a picture: what each model takes longer than its baseline, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from styles import STYLES, finish, side_by_side
from table4_table import ALONE, WORDS, measured, percent
from tables import Results

Bar = tuple[
    str, str, list[float], float | None
]  # label, provider, ratio with quartiles, the paper's overhead


def draw_table4(results: Results, provenance: dict[str, str], path: Path) -> None:
    """A panel a mode, a bar a model."""
    models = measured(results)
    modes = [*dict.fromkeys(mode for by_mode in models.values() for mode in by_mode)]
    if not modes:
        return
    figure, axes = side_by_side(len(modes), 3.4 + 4.2 * len(modes), 4.2, sharex=True)
    for panel, mode in zip(axes, modes, strict=True):
        panel.set_title(WORDS[mode], fontsize=10)
        _panel(panel, bars({name: by_mode[mode] for name, by_mode in models.items() if mode in by_mode}))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
    data = next(iter(next(iter(models.values())).values()))["data"]
    finish(
        figure, f"Table 4: time that each adds to a training step without remedies; {data}", provenance, path
    )


def bars(group: Mapping[str, dict[str, Any]]) -> list[Bar]:
    """What one mode measured; a second comparison has a bar of its own."""
    return [
        (
            record["label"] if other == record["baseline"] else ALONE,
            name,
            ratio,
            record["paper_overhead"] if other == record["baseline"] else None,
        )
        for name, record in group.items()
        for other, ratio in record["cost"].items()
    ]


def _panel(axes: Axes, drawn: list[Bar]) -> None:
    labelled: set[str] = set()
    for row, (_, name, ratio, paper) in enumerate(drawn):
        middle, low, high = (100 * (value - 1) for value in ratio)
        style = STYLES[name.split(",")[0]]
        label = "" if style.label in labelled else style.label
        labelled.add(style.label)
        axes.barh(
            row, middle, color=style.colour, edgecolor="#000000", linewidth=0.4, height=0.7, label=label
        )
        axes.plot([low, high], [row, row], color="#000000", linewidth=1.2)
        if paper is not None:
            mark = "" if "paper" in labelled else "the paper's overhead"
            labelled.add("paper")
            axes.plot(
                100 * paper, row, "D", color="#FFFFFF", markeredgecolor="#000000", markersize=7, label=mark
            )
        at, text = max(middle, high, 0.0), f"{middle:+.1f} %"
        if paper is not None:
            at, text = max(at, 100 * paper), f"{text} (paper {percent(paper)})"
        axes.annotate(text, (at, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(0, color="#999999", linewidth=1)
    axes.set_yticks(range(len(drawn)), [label for label, *_ in drawn], fontsize=8)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.margins(x=0.2)
    axes.set_xlabel("overhead in % (bars: median, lines: middle half of the rounds)", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
