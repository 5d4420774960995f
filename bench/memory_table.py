"""Memory in bytes an element: what each provider keeps for its backward pass, and its peak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

TITLE = (
    "memory, bytes an element: kept for the backward pass (x and y, which other layers may keep as well, and "
    "more), peak of a forward pass without a graph and of forward+backward, results included"
)
Row = dict[str, str]


def rows(records: list[dict[str, Any]]) -> list[Row]:
    """A row a provider."""
    return [_row(record) for record in records if record["kind"] == "memory"]


def _row(record: dict[str, Any]) -> Row:
    n = record["elements"]
    return {
        "function": record["function"],
        "dtype": record["dtype"],
        "provider": record["provider"],
        "kept": " + ".join(_kept(record["kept"], n)) or "nothing",
        "peak forward": f"{record['peak_forward'] / n:.3g}",
        "peak forward+backward": f"{record['peak_training'] / n:.3g}",
    }


def _kept(kept: dict[str, int], n: int) -> Iterator[str]:
    words = {"x": " (x)", "y": " (y)", "more": " more"}
    for name, count in kept.items():
        if round(count / n, 2):
            yield f"{count / n:.3g}{words[name]}"
