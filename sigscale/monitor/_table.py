"""The last step of a history as text."""

from __future__ import annotations

import math

from .history import GradientHistory, quantile_name


def last_step(history: GradientHistory) -> str:
    """A table of the last step measured, a line for each row."""
    if not len(history):
        return "no step has been measured yet"
    low, high = min(history.quantiles), max(history.quantiles)
    middle = min(history.quantiles, key=lambda q: abs(q - 0.5))
    quantiles = [*dict.fromkeys((low, middle, high))]
    shares = [("zeros", history["zeros"][-1] / history["count"][-1])]
    shares += [(f"<{threshold:g}", history.below(threshold)[-1]) for threshold in history.thresholds]
    of = "|g|" if history.magnitude else "g"
    titles = ["name", "kind", "count", *(name for name, _ in shares)]
    titles += [f"{of} {'median' if q == 0.5 else quantile_name(q)}" for q in quantiles]
    lines = [titles]
    for row, (name, kind) in enumerate(zip(history.names, history.kinds, strict=True)):
        numbers = [f"{history.count[-1, row]:,}", *(_percent(share[row]) for _, share in shares)]
        numbers += [_number(history.quantile(q)[-1, row]) for q in quantiles]
        lines.append([name, kind, *numbers])
    text = _aligned(lines)
    broken = (history["infs"][-1] + history["nans"][-1] > 0).nonzero()[0]
    if len(broken):
        text.append(f"infinite or NaN coordinates in: {', '.join(history.names[row] for row in broken)}")
    return "\n".join([f"gradients at step {history.steps[-1]}", *text])


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f} %" if share in (0, 1) or 0.0005 <= share < 0.9995 else f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2e}"
