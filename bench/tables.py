"""Results as tables: records (a benchmark's `extra_info`) in, rows out; for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import growth_table
import memory_table
import table4_table

Row = dict[str, str]
Results = list[dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of result: what names a case, and how its table is headed."""

    keys: tuple[str, ...]
    title: str
    word: str = ""  # that tells its cases from those of other kinds
    by_provider: str = ""  # what providers are: then each has a row with its cost over the baseline
    table: Callable[[Results], list[Row]] | None = None  # where it is one of its own


KINDS = {
    "activation": Kind(
        ("function", "direction", "dtype", "elements"),
        "microseconds a call; ratios of times in the same rounds, below 1 where sigscale is faster",
    ),
    "warm": Kind(
        ("function", "direction", "dtype", "elements"),
        "the same with warm caches: microseconds a call of twenty in a row; ratios as above",
        "warm",
    ),
    "memory": Kind(("function", "dtype"), memory_table.TITLE, table=memory_table.rows),
    "launch": Kind(("function", "call"), "microseconds of the host for a call; ratios as above"),
    "sketch": Kind(
        ("values", "dtype", "elements"),
        "distribution of a tensor: microseconds for QuantileSketch.update and others; ratios as above",
        "sketch",
    ),
    "exact": Kind(
        ("quantiles", "values", "dtype", "elements"),
        "exact quantiles: microseconds for quantile, foreach_quantile (many) and others; ratios as above",
    ),
    "backward": Kind(
        ("function", "direction", "values", "dtype", "elements"),
        "activations with grad_sketch: microseconds, by values of the incoming gradient; ratios as above",
        "grad_sketch",
    ),
    "learned": Kind(
        ("function", "direction", "alphas", "dtype", "elements"),
        "activations with an alpha that learns: microseconds, for a layer and by channel; ratios as above",
        "learns",
    ),
    "penalty": Kind(
        ("parameters", "way", "dtype"),
        "the L2 penalty of a step: microseconds with WeightPenalty.attach and otherwise; ratios as above",
        "penalty",
    ),
    "monitor": Kind(
        ("network",),
        "a training step, monitored: milliseconds, ratio to the step without and microseconds added",
        "monitor",
        by_provider="monitoring",
    ),
    "seeds": Kind(
        ("network",),
        "a training step of several seeds at once: milliseconds, ratio to one seed and microseconds added",
        "seeds",
        by_provider="seeds",
    ),
    "convolution": Kind(
        ("networks", "images"),
        "3x3 convolutions of 3 channels, forward and backward: microseconds by their form; ratios as above",
        "convolution",
    ),
    "growth": Kind(("series", "size"), growth_table.TITLE, "growth", table=growth_table.rows),
    "table4": Kind(("mode",), table4_table.TITLE, "Table 4,", table=table4_table.rows),
}
OF_PARAMETERS = {
    "sigscale, exact": "foreach_quantile",
    "wandb": "recipe of wandb.watch",
    "torch.quantile": "torch.quantile",
}
PROVIDERS = (
    "no sketch",
    "fixed alpha",
    "sigscale",
    "sigscale, sketch",
    "sigscale, learned",
    "JIT launch",
    "eager",
    "compile",
    "plain",
    "liger",
    "flag_gems",
    "copy",
    "torch._foreach_add_",
    "in the loss",
    "weight_decay",
    "second pass",
    "torch.quantile",
    "torch.sort",
    "torch.kthvalue",
    "torch.histc",
    "wandb",
    "numpy",
    "read",
    "grouped",
    "grouped, last",
    "patches",
    "one by one",
)


def grouped(records: Results, kind: str) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Results of one kind: by what was computed, then by provider."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == kind:
            key = tuple(record[name] for name in KINDS[kind].keys)
            groups.setdefault(key, {})[record["provider"]] = record
    return groups


def rows(records: Results, kind: str) -> list[Row]:
    """One row for each thing that was computed: its name, times, ratios and effective bandwidth."""
    if own := KINDS[kind].table:
        return own(records)
    groups = grouped(records, kind)
    if KINDS[kind].by_provider:
        named = ((_named(kind, key), group) for key, group in groups.items())
        kinds = KINDS[kind].by_provider
        return [name | _cost_row(kinds, record) for name, group in named for record in group.values()]
    measured = {name for group in groups.values() for name in group if group[name]["seconds"] is not None}
    providers = [name for name in PROVIDERS if name in measured]
    ours = [group["sigscale"] for group in groups.values()]
    compared = [*dict.fromkeys(name for record in ours for name in record["ratios"])]
    costs = [*dict.fromkeys(name for record in ours for name in record.get("cost", ()))]
    return [
        _named(kind, key)
        | _times(group, providers)
        | _ratios(group["sigscale"], compared, costs)
        | _variants(group, [name for name in providers if name.startswith("sigscale, ")])
        for key, group in groups.items()
    ]


def _named(kind: str, key: tuple[Any, ...]) -> Row:
    return {name: cell(value) for name, value in zip(KINDS[kind].keys, key, strict=True)}


def _times(group: Mapping[str, dict[str, Any]], providers: Iterable[str]) -> Row:
    """Microseconds of each provider; one that refused says so."""

    def time(name: str) -> str:
        if name not in group:
            return ""
        return "refuses" if group[name]["seconds"] is None else f"{group[name]['seconds'] * 1e6:.1f}"

    return {name: time(name) for name in providers}


def _ratios(ours: Mapping[str, Any], compared: Iterable[str], costs: Iterable[str]) -> Row:
    row = {f"sigscale/{name}": spread(ours["ratios"].get(name)) for name in compared}
    for name in costs:
        row |= {f"sigscale/{name}": spread(ours["cost"][name]), "added us": added(ours["added"][name])}
    if "gbps" in ours:
        row |= {"GB/s": f"{ours['gbps']:.3g}", "of copy": f"{ours['share_of_copy']:.0%}"}
    return row


def _variants(group: Mapping[str, dict[str, Any]], variants: Iterable[str]) -> Row:
    """What sigscale takes with more to do, over what it takes with less."""
    costs = {name: group[name]["cost"]["sigscale"] if name in group else None for name in variants}
    return {f"{name.removeprefix('sigscale, ')}/sigscale": spread(cost) for name, cost in costs.items()}


def _cost_row(kinds: str, record: Mapping[str, Any]) -> Row:
    (ratio,), (more,) = record.get("cost", {"": None}).values(), record.get("added", {"": None}).values()
    return {
        kinds: monitoring(record["provider"]),
        "ms a step": f"{record['seconds'] * 1e3:.3f}",
        "ratio": spread(ratio),
        "added us": added(more),
    }


def monitoring(provider: str) -> str:
    """A way of monitoring, in words."""
    if provider in OF_PARAMETERS:
        return f"{OF_PARAMETERS[provider]}, parameters"
    return provider.replace("sigscale", "GradientMonitor")


def cell(value: Any) -> str:
    return elements(value) if isinstance(value, int) else str(value)


def elements(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 else f"{n:,}"


def number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def spread(ratio: list[float] | None) -> str:
    """Median and middle half of the rounds."""
    return "" if ratio is None else f"{number(ratio[0])} ({number(ratio[1])}-{number(ratio[2])})"


def added(seconds: list[float] | None) -> str:
    return "" if seconds is None else "{:.1f} ({:.1f} to {:.1f})".format(*(1e6 * s for s in seconds))


def losses(records: Results) -> str:
    """How often sigscale was slower than what it replaces, and where; by the median of paired rounds."""
    ours = [r for r in records if r["provider"] == "sigscale" and "ratios" in r]
    lines = []
    for other in dict.fromkeys(name for record in ours for name in record["ratios"]):
        pairs = [r for r in ours if other in r["ratios"]]
        slower = [r for r in pairs if r["ratios"][other][0] > 1]
        lines.append(f"slower than {other} in {len(slower)} of {len(pairs)}" + ":" * bool(slower))
        lines += [f"  {_name(r)}: {r['ratios'][other][0]:.2f}" for r in slower]
    return "\n".join(lines + refusals(records))


def refusals(records: Results) -> list[str]:
    """Who refused how many cases, in the provider's own words, and what was skipped."""
    cases: dict[tuple[str, str], int] = {}
    for record in records:
        if "refused" in record:
            key = record["provider"], record["refused"]
            cases[key] = cases.get(key, 0) + 1
    skipped = [f"{r['provider']} is not timed: {r['skipped']}" for r in records if "skipped" in r]
    return [f"{name} refuses {count} cases: {words}" for (name, words), count in cases.items()] + skipped


def _name(record: dict[str, Any]) -> str:
    kind = KINDS[record["kind"]]
    return " ".join(filter(None, [kind.word, *(cell(record[name]) for name in kind.keys)]))


def text_tables(records: Results) -> Iterator[tuple[str, list[str]]]:
    """Title and aligned lines of each table that has rows."""
    for kind in KINDS:
        table = rows(records, kind)
        if table:
            yield KINDS[kind].title, list(_aligned([list(table[0]), *(list(row.values()) for row in table)]))


def _aligned(lines: list[list[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))


def markdown(table: Iterable[Row]) -> str:
    table = list(table)
    lines = [list(table[0]), ["---"] * len(table[0]), *(list(row.values()) for row in table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
