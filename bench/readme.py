"""The README's tables, each between two markers.

These are `<!-- bench:begin -->` and `<!-- bench:end -->`, or with a section's name
`<!-- bench:quantiles:begin -->` and `<!-- bench:quantiles:end -->`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import table4_table
from tables import KINDS, Results, Row, cell, elements, grouped, number, rows

TASKS = {
    "sketch": "`QuantileSketch.update`",
    "five": "`quantile`, five",
    "median": "`quantile`, median",
    "many": "`foreach_quantile`, five of 64",
}


def activation_table(records: Results) -> list[Row]:
    """sigscale's time over eager PyTorch's: a row a function, direction and dtype, a column a size."""
    ratios = [
        (tuple(name), size, group["sigscale"]["ratios"].get("eager"))
        for (*name, size), group in grouped(records, "activation").items()
    ]
    return _by_size(KINDS["activation"].keys[:-1], ratios)


def quantile_table(records: Results) -> list[Row]:
    """sigscale's time over that of each alternative, for Gaussian values."""
    measured = [
        (TASKS[record.get("quantiles", "sketch")], record)
        for record in records
        if record["kind"] in ("sketch", "exact")
        and record["provider"] == "sigscale"
        and record["values"] == "Gaussian"
    ]
    ratios = [
        ((task, f"`{other}`" if "." in other else other, record["dtype"]), record["elements"], ratio)
        for task, record in measured
        for other, ratio in record["ratios"].items()
    ]
    return sorted(_by_size(("of", "over", "dtype"), ratios), key=_grouped_by_task)


def _grouped_by_task(row: Row) -> tuple[int, str]:
    return [*TASKS.values()].index(row["of"]), row["over"]


def _by_size(names: tuple[str, ...], ratios: Iterable[tuple[tuple[Any, ...], int, Any]]) -> list[Row]:
    """Rows of ratios with a column a size."""
    ratios = list(ratios)
    sizes = sorted({size for _, size, _ in ratios})
    table: dict[tuple[Any, ...], Row] = {}
    for key, size, ratio in ratios:
        empty = dict(zip(names, map(cell, key), strict=True)) | dict.fromkeys(map(elements, sizes), "")
        table.setdefault(key, empty)[elements(size)] = "" if ratio is None else number(ratio[0])
    return list(table.values())


def monitor_table(records: Results) -> list[Row]:
    return rows(records, "monitor")


def table4(records: Results) -> list[Row]:
    return table4_table.rows(records, whole_run=False)


SECTIONS = {"": activation_table, "quantiles": quantile_table, "monitor": monitor_table, "table4": table4}


def markers(section: str) -> tuple[str, str]:
    name = f"bench:{section}:" if section else "bench:"
    return f"<!-- {name}begin -->", f"<!-- {name}end -->"


def replaced(text: str, section: str, content: str) -> str | None:
    """The text with new content between a section's markers; None where it has no such markers."""
    begin, end = markers(section)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}" if found and closed else None
