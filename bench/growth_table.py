"""Growth as a table: what is fixed of each series, what a unit adds, and where launch cost ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from growth_fit import LEAST_SIZES, Fit, Growth, growths

Row = dict[str, str]

TITLE = (
    "growth: the line fixed + each x size (on a GPU, where calls overlap, the larger of the two) through "
    "median times, and where launch cost ends, work taking as long as what is fixed; in brackets the range "
    "with one size left out; residuals are the line's, relative: where they are large, no line holds"
)
COLUMNS = ("sizes", "fixed us", "ns each", "GB/s", "launch cost ends at", "largest residual")


def rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [_row(growth) for growth in growths(records)]


def _row(growth: Growth) -> Row:
    first, last = growth.records[0], growth.records[-1]
    sizes = f"{amount(first)} to {last['size']}" if len(growth.records) > 1 else first["size"]
    row = {"series": growth.series, "provider": growth.provider, **dict.fromkeys(COLUMNS, ""), "sizes": sizes}
    if growth.fit is None:
        return row | {"launch cost ends at": "one size: nothing can be fitted"}
    slope = growth.fit.line.slope
    return row | {
        "fixed us": _spread(growth.fit, "fixed", 1e6),
        "ns each": _spread(growth.fit, "slope", 1e9),
        "GB/s": digits(first["bytes"] / slope / 1e9) if first["bytes"] and slope else "",
        "launch cost ends at": ends(growth),
        "largest residual": _residual(growth),
    }


def ends(growth: Growth) -> str:
    """The size, if it is among those measured; beyond them a line is a guess."""
    assert growth.fit is not None
    first, last, line = growth.records[0], growth.records[-1], growth.fit.line
    if not line.slope:
        return f"never up to {last['size']}"
    if not line.fixed:
        return "nothing is fixed"
    if line.end < first["n"]:
        return f"below {first['size']}"
    if line.end > last["n"]:
        return f"beyond {last['size']}"
    return f"{_spread(growth.fit, 'end', 1.0, 2)} {first['unit']}"


def amount(record: Mapping[str, Any]) -> str:
    """A size without its unit."""
    return str(record["size"]).split(" ", maxsplit=1)[0]


def _spread(fit: Fit, name: str, factor: float, count: int = 3) -> str:
    middle, low, high = (digits(factor * value, count) for value in fit.spread(name))
    return f"{middle} ({low}-{high})" if fit.others else middle


def _residual(growth: Growth) -> str:
    assert growth.fit is not None
    if len(growth.records) == LEAST_SIZES:
        return "two sizes determine the line"
    n, residual = growth.fit.worst
    at = next(amount(record) for record in growth.records if record["n"] == n)
    return f"{100 * residual:+.0f} % at {at}"


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, without an exponent."""
    if not value or math.isinf(value):
        return f"{value:g}"
    value = float(f"{value:.{count - 1}e}")
    return f"{value:,.{max(0, count - 1 - math.floor(math.log10(abs(value))))}f}"
