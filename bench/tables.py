"""Results as tables: records (a benchmark's `extra_info`) in, rows out; for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, str]
Results = list[dict[str, Any]]

KEYS = {
    "activation": ("function", "direction", "dtype", "elements"),
    "launch": ("function", "call"),
}
PROVIDERS = ("sigscale", "JIT launch", "eager", "compile", "plain", "copy")
TITLES = {
    "activation": "microseconds a call; ratios of times in the same rounds, below 1 where sigscale is faster",
    "launch": "microseconds of the host for a call; ratios as above",
}


def grouped(records: Results, kind: str) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Results of one kind: by what was computed, then by provider."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == kind:
            key = tuple(record[name] for name in KEYS[kind])
            groups.setdefault(key, {})[record["provider"]] = record
    return groups


def rows(records: Results, kind: str) -> list[Row]:
    """One row for each thing that was computed: its name, times, ratios and effective bandwidth."""
    groups = grouped(records, kind)
    measured = {name for group in groups.values() for name in group}
    providers = [name for name in PROVIDERS if name in measured]
    compared = dict.fromkeys(name for group in groups.values() for name in group["sigscale"]["ratios"])
    return [_row(kind, key, group, providers, list(compared)) for key, group in groups.items()]


def _row(
    kind: str, key: tuple[Any, ...], group: dict[str, Any], providers: list[str], compared: list[str]
) -> Row:
    ours = group["sigscale"]
    row = {name: _cell(value) for name, value in zip(KEYS[kind], key, strict=True)}
    row |= {name: f"{group[name]['seconds'] * 1e6:.1f}" if name in group else "" for name in providers}
    row |= {f"sigscale/{name}": _ratio(ours["ratios"].get(name)) for name in compared}
    if "gbps" in ours:
        row |= {"GB/s": f"{ours['gbps']:.3g}", "of copy": f"{ours['share_of_copy']:.0%}"}
    return row


def _cell(value: Any) -> str:
    return elements(value) if isinstance(value, int) else str(value)


def elements(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 else f"{n:,}"


def _ratio(ratio: list[float] | None) -> str:
    """Median and middle half of the rounds."""
    return "" if ratio is None else f"{ratio[0]:.2f} ({ratio[1]:.2f}-{ratio[2]:.2f})"


def ratios_by_size(records: Results, other: str) -> list[Row]:
    """sigscale's time over `other`'s: a row a function, direction and dtype, a column a size."""
    table: dict[tuple[Any, ...], Row] = {}
    for (*name, size), group in grouped(records, "activation").items():
        row = table.setdefault(tuple(name), dict(zip(KEYS["activation"], name, strict=False)))
        ratio = group["sigscale"]["ratios"].get(other)
        row[_cell(size)] = "" if ratio is None else f"{ratio[0]:.2f}"
    return list(table.values())


def losses(records: Results) -> str:
    """How often sigscale was slower than what it replaces, and where; by the median of paired rounds."""
    ours = [r for r in records if r["provider"] == "sigscale"]
    lines = []
    for other in dict.fromkeys(name for record in ours for name in record["ratios"]):
        pairs = [r for r in ours if other in r["ratios"]]
        slower = [r for r in pairs if r["ratios"][other][0] > 1]
        lines.append(f"slower than {other} in {len(slower)} of {len(pairs)}" + ":" * bool(slower))
        lines += [f"  {_name(r)}: {r['ratios'][other][0]:.2f}" for r in slower]
    return "\n".join(lines)


def _name(record: dict[str, Any]) -> str:
    return " ".join(_cell(record[name]) for name in KEYS[record["kind"]])


def text_tables(records: Results) -> Iterator[tuple[str, list[str]]]:
    """Title and aligned lines of each table that has rows."""
    for kind, title in TITLES.items():
        table = rows(records, kind)
        if table:
            yield title, list(_aligned([list(table[0]), *(list(row.values()) for row in table)]))


def _aligned(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))


def markdown(table: Iterable[Row]) -> str:
    table = list(table)
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
