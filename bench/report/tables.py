"""Results as tables (pandas): records in, a DataFrame out; for the terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.harness.activations import gbps
from bench.harness.providers import PROVIDERS, provider
from bench.harness.timing import OURS
from bench.report import Results

BANDWIDTH = ("activation", "warm")  # kinds that move the bytes of `gbps`
ALONE = "... the monitoring alone, over both without"


@dataclass(frozen=True)
class Kind:
    """A kind of result: what names a case, and its table."""

    keys: tuple[str, ...]
    title: str
    explained: str = "Microseconds per call."
    rows: Callable[[Results], list[dict[str, str]]] | None = None  # where a row is not a case


def spread(ratio: Sequence[float] | None) -> str:
    """Median and quartiles."""
    return "" if ratio is None else f"{number(ratio[0])} ({number(ratio[1])}-{number(ratio[2])})"


def number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def cell(value: Any) -> str:
    return size(value) if isinstance(value, int) else str(value)


def size(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 and n > 1 else f"{n:,}"


def overhead(ratio: Sequence[float] | None) -> str:
    """A ratio of times and its quartiles as what is added."""
    if ratio is None:
        return ""
    middle, low, high = (f"{100 * (r - 1):+.1f}" for r in ratio)
    return f"{middle} % ({low} to {high})"


def cases(records: Results, kind: str) -> list[dict[str, str]]:
    """A row per case: times of all providers, then sigscale's ratios, costs and bandwidth."""
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    keys = KINDS[kind].keys
    for record in records:
        key = tuple(record[name] for name in keys)
        row = rows.setdefault(key, {name: cell(value) for name, value in zip(keys, key, strict=True)})
        name, seconds = record["provider"], record["seconds"]
        row[provider(name).label] = "refuses" if seconds is None else f"{1e6 * seconds:.1f}"
        for other, ratio in record["ratios"].items():
            row[f"sigscale / {other}"] = spread(ratio)
        for other, ratio in record.get("cost", {}).items():
            if name == OURS or other == OURS:
                row[f"{name} / {other}"] = spread(ratio)
        if name == OURS and "added" in record:
            row["added us"] = f"{1e6 * next(iter(record['added'].values()))[0]:.1f}"
        if name == OURS and kind in BANDWIDTH:
            row["GB/s"] = f"{gbps(record):.3g}"
    return [*rows.values()]


def steps(records: Results) -> list[dict[str, str]]:
    """A row per way to monitor a step."""
    return [
        {
            "network": record["network"],
            "monitoring": {OURS: "GradientMonitor"}.get(
                record["provider"], provider(record["provider"]).label
            ),
            "ms a step": f"{1e3 * record['seconds']:.3f}",
            "ratio": spread(record.get("cost", {}).get("no monitor")),
            "added us": f"{1e6 * record['added']['no monitor'][0]:.0f}" if "added" in record else "",
        }
        for record in records
    ]


def memory(records: Results) -> list[dict[str, str]]:
    """A row per provider, in bytes per element."""

    def kept(record: dict[str, Any]) -> str:
        parts = {name: count / record["elements"] for name, count in record["kept"].items()}
        words = {"x": "{:.3g} (x)", "y": "{:.3g} (y)", "more": "{:.3g} more"}
        return " + ".join(words[name].format(n) for name, n in parts.items() if round(n, 2)) or "nothing"

    return [
        {
            "function": record["function"],
            "dtype": record["dtype"],
            "provider": provider(record["provider"]).label,
            "kept": kept(record),
            "peak forward": f"{record['peak_forward'] / record['elements']:.3g}",
            "peak forward+backward": f"{record['peak_training'] / record['elements']:.3g}",
        }
        for record in records
    ]


def table4(records: Results) -> list[dict[str, str]]:
    """A row per model, columns for each mode and for the paper."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        if record["seconds"] is None:
            continue
        row = rows.setdefault(record["label"], {"model": record["label"]})
        middle, low, high = (f"{1e3 * seconds:.3g}" for seconds in record["quartiles"])
        row[f"{record['mode']}, s / 1,000 steps"] = f"{middle} ({low}-{high})"
        row[f"{record['mode']}, overhead"] = overhead(record["cost"].get(record["baseline"]))
        row["paper, s"] = "" if record["paper"] is None else f"{record['paper']:,.1f}"
        paper = record["paper_overhead"]
        row["paper, overhead"] = "" if paper is None else f"{100 * paper:+.1f} %"
        if OURS in record["cost"]:
            alone = rows.setdefault(ALONE, {"model": ALONE})
            alone[f"{record['mode']}, overhead"] = overhead(record["cost"][OURS])
    return [*rows.values()]


_CASE = ("function", "direction", "dtype", "elements")
KINDS = {
    "activation": Kind(_CASE, "Activations"),
    "warm": Kind(_CASE, "Activations, warm caches", "Microseconds per call, of twenty in a row."),
    "memory": Kind(
        ("function", "dtype"),
        "Memory of an activation",
        "Bytes per element: kept for the backward pass (x and y, which other layers may keep too, and more), "
        "peaks of a forward pass without a graph and of forward+backward, results included.",
        memory,
    ),
    "launch": Kind(("function", "call"), "Launch", "Microseconds of the host per call."),
    "backward": Kind(
        ("function", "direction", "values", "dtype", "elements"),
        "Counting the gradient in the backward pass",
        "Microseconds with `grad_sketch` and without, by values of the incoming gradient.",
    ),
    "learned": Kind(
        ("function", "direction", "alphas", "dtype", "elements"),
        "Learning alpha",
        "Microseconds with one alpha for a layer, or one per channel.",
    ),
    "sketch": Kind(
        ("values", "dtype", "elements"),
        "Distribution of a tensor",
        "Microseconds of QuantileSketch.update and others.",
    ),
    "warm sketch": Kind(("values", "dtype", "elements"), "Distribution of a tensor, warm caches"),
    "exact": Kind(
        ("quantiles", "values", "dtype", "elements"),
        "Exact quantiles",
        "Microseconds of quantile, foreach_quantile (many) and others.",
    ),
    "monitor": Kind(("network",), "Monitored training step", "Ratio to the step without a monitor.", steps),
    "penalty": Kind(
        ("parameters", "way", "dtype"), "L2 penalty of a step", "Microseconds with WeightPenalty.attach."
    ),
    "table4": Kind(
        ("mode",),
        "Table 4 of the paper",
        "Seconds per 1,000 training steps with batches of 32, and what each model adds to the same network "
        "without remedies, by paired rounds. The paper states neither epochs nor batch: compare percentages.",
        table4,
    ),
    "growth": Kind(("series", "unit", "n"), "Growth", "Microseconds per call by size."),
}


def table(records: Results, kind: str) -> pd.DataFrame:
    """The results of one kind; keys first, then providers that take part, then ratios."""
    of = [record for record in records if record["kind"] == kind]
    own = KINDS[kind].rows
    rows = own(of) if own else cases(of, kind)
    frame: pd.DataFrame = pd.DataFrame(rows, dtype=object).fillna("")
    if own or frame.empty:
        return frame
    labels = [of.label for of in PROVIDERS.values()]
    known = dict.fromkeys([*KINDS[kind].keys, *labels])
    times = [name for name in known if name in frame and {*frame[name]} - {"", "refuses"}]
    ordered: pd.DataFrame = frame[[*times, *(name for name in frame if name not in known)]]
    return ordered


def markdown(frame: pd.DataFrame) -> str:
    """A table without padding, which the reader does not see."""
    text = frame.to_markdown(index=False, disable_numparse=True)
    return re.sub(r"-{3,}", "---", re.sub(r" {2,}", " ", str(text)))


def text_tables(records: Results) -> Iterator[tuple[str, str]]:
    """Title and aligned text of each table that has rows."""
    for unknown in {record["kind"] for record in records} - KINDS.keys():
        raise LookupError(f"unknown kind of result {unknown!r}: add it to KINDS in bench/report/tables.py")
    for kind in KINDS:
        frame = table(records, kind)
        if not frame.empty:
            yield KINDS[kind].title, frame.to_string(index=False)


def losses(records: Results) -> str:
    """How often sigscale was slower than what it replaces, and where; who refused; what was skipped."""
    ours = [record for record in records if record["provider"] == OURS and "ratios" in record]
    lines = []
    for other in dict.fromkeys(name for record in ours for name in record["ratios"]):
        pairs = [record for record in ours if other in record["ratios"]]
        slower = [record for record in pairs if record["ratios"][other][0] > 1]
        lines.append(f"slower than {other} in {len(slower)} of {len(pairs)}" + ":" * bool(slower))
        lines += [f"  {_name(record)}: {record['ratios'][other][0]:.2f}" for record in slower]
    refused: dict[tuple[str, str], int] = {}
    for record in records:
        if "refused" in record:
            key = record["provider"], record["refused"]
            refused[key] = refused.get(key, 0) + 1
    lines += [f"{name} refuses {count} cases: {words}" for (name, words), count in refused.items()]
    lines += [f"{r['provider']} is not timed: {r['skipped']}" for r in records if "skipped" in r]
    return "\n".join(lines)


def _name(record: dict[str, Any]) -> str:
    kind = record["kind"]
    return " ".join([kind, *(cell(record[name]) for name in KINDS[kind].keys)])


SUMMARY = (  # what the README shows: in words, what its results have, alternative
    ("tanh, forward + backward", {"activation", "tanh", "forward+backward"}, "eager"),
    ("QuantileSketch.update", {"sketch", "Gaussian"}, "torch.histc"),
    ("quantile, five", {"exact", "five", "Gaussian"}, "torch.quantile"),
    ("quantile, five", {"exact", "five", "Gaussian"}, "torch.sort"),
    ("foreach_quantile, five of 64", {"exact", "many"}, "torch.quantile"),
)


def summary(records: Results) -> str:
    """The README's table: sigscale's time over that of each alternative, by size; steps in a sentence."""
    ours = [record for record in records if record["provider"] == OURS]
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for words, about, other in SUMMARY:
        for record in ours:
            found = {value for value in record.values() if isinstance(value, str)}
            if about <= found and other in record["ratios"]:
                key = words, provider(other).label, record["dtype"]
                row = rows.setdefault(key, dict(zip(("time of", "over", "dtype"), key, strict=True)))
                row[size(record["elements"])] = number(record["ratios"][other][0])
    text = markdown(pd.DataFrame([*rows.values()], dtype=object).fillna(""))
    monitored = [r for r in ours if r["kind"] == "monitor"]
    sentences = [f"{r['cost']['no monitor'][0]:.2f} times as long ({r['network']})" for r in monitored]
    if sentences:
        text += f"\n\nA monitored training step takes {' and '.join(sentences)}."
    return text + "".join(
        f" Both remedies add {100 * (r['cost']['plain'][0] - 1):+.1f} % to a training step ({r['mode']}; "
        f"the paper's Table 4: {100 * r['paper_overhead']:+.1f} %)."
        for r in ours
        if r["kind"] == "table4"
    )
