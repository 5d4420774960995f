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

Cells = Callable[[dict[str, Any]], dict[str, str]]


def ratio(of: Sequence[float]) -> str:
    """Median and quartiles."""
    middle, low, high = (f"{r:.2f}" if r >= 0.1 else f"{r:.2g}" for r in of)
    return f"{middle} ({low}-{high})"


def overhead(of: Sequence[float]) -> str:
    """A ratio of times, and its quartiles, as what is added."""
    middle, low, high = (f"{100 * (r - 1):+.1f}" for r in of)
    return f"{middle} % ({low} to {high})"


def cell(value: Any) -> str:
    return size(value) if isinstance(value, int) else str(value)


def size(n: int) -> str:
    return f"2^{n.bit_length() - 1}" if n & (n - 1) == 0 and n > 1 else f"{n:,}"


def wide(record: dict[str, Any]) -> dict[str, str]:
    """A provider's part of a row for the whole case: its time, and ratios of sigscale."""
    name, seconds = record["provider"], record["seconds"]
    cells = {provider(name).label: "refuses" if seconds is None else f"{1e6 * seconds:.1f}"}
    ratios = {f"{name} / {o}": ratio(of) for o, of in record["over"].items() if not o.startswith("sigscale,")}
    return cells | (ratios if name.startswith(OURS) else {})


def with_bandwidth(record: dict[str, Any]) -> dict[str, str]:
    return wide(record) | ({"GB/s": f"{gbps(record):.3g}"} if record["provider"] == OURS else {})


def with_seeds(record: dict[str, Any]) -> dict[str, str]:
    ms = f"{1e3 * record['seconds'] / record['n']:.2f}"
    return wide(record) | ({f"{record['provider']}, ms a seed": ms} if record["unit"] == "seeds" else {})


def tall(record: dict[str, Any]) -> dict[str, str]:
    """A row for each provider: its time, and what it adds to its baseline."""
    added = {} if record["seconds"] is None else {"ms a step": f"{1e3 * record['seconds']:.3f}"}
    baselines = [name for name in record["over"] if provider(name).less]
    added |= {f"over {name}": overhead(record["over"][name]) for name in baselines}
    return added | ({"paper": f"{100 * record['paper']:+.1f} %"} if record.get("paper") else {})


def memory(record: dict[str, Any]) -> dict[str, str]:
    return {name: f"{record[name] / record['elements']:.3g}" for name in ("kept", "peak")}


@dataclass(frozen=True)
class Kind:
    """A kind of result: what names a row of its table, and what each record adds to its row."""

    names: str
    title: str
    explained: str = "Microseconds per call."
    cells: Cells = wide

    @property
    def keys(self) -> list[str]:
        return self.names.split()


KINDS = {
    "activation": Kind("function direction dtype elements", "Activations", cells=with_bandwidth),
    "memory": Kind(
        "function dtype provider",
        "Memory of an activation",
        "Bytes per element: in use after a forward pass, y included, and at the peak of forward+backward.",
        memory,
    ),
    "launch": Kind("function call", "Launch", "Microseconds of the host per call."),
    "backward": Kind(
        "function direction values dtype elements", "Counting the gradient in the backward pass"
    ),
    "learned": Kind("function direction alphas dtype elements", "Learning alpha"),
    "sketch": Kind("values dtype elements", "Distribution of a tensor"),
    "warm sketch": Kind("values dtype elements", "Distribution of a tensor, warm caches"),
    "exact": Kind("quantiles values dtype elements", "Exact quantiles"),
    "monitor": Kind("network provider", "Monitored training step", "What monitoring adds to a step.", tall),
    "table4": Kind(
        "mode model",
        "Table 4 of the paper",
        "What each model adds to the same network without remedies, batches of 32. The paper states neither "
        "epochs nor batch: compare percentages.",
        tall,
    ),
    "growth": Kind("series unit n", "Growth", "Microseconds per call by size.", with_seeds),
}


def table(records: Results, kind: str) -> pd.DataFrame:
    """The results of one kind; keys first, then providers that take part, then ratios."""
    keys = KINDS[kind].keys
    of = [record for record in records if record["kind"] == kind and "skipped" not in record]
    rows = [{key: cell(record[key]) for key in keys} | KINDS[kind].cells(record) for record in of]
    frame: pd.DataFrame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame = frame.groupby(keys, sort=False).first().fillna("").reset_index()
    taking_part = [name for name in frame if {*frame[name]} - {"", "refuses"}]
    ranks = {name: place for place, name in enumerate([*keys, *(of.label for of in PROVIDERS.values())])}
    frame = frame[sorted(taking_part, key=lambda name: ranks.get(str(name), len(ranks)))]
    return frame


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
    slower: dict[str, list[str]] = {}
    count: dict[str, int] = {}
    words: dict[str, int] = {}
    for record in records:
        case = " ".join(
            cell(record[key]) for key in ("kind", *KINDS[record["kind"]].keys) if key != "provider"
        )
        for other, (median, *_) in record["over"].items():
            if record["provider"] == OURS and not other.startswith(OURS) and not provider(other).less:
                count[other] = count.get(other, 0) + 1
                slower.setdefault(other, []).extend([f"  {case}: {median:.2f}"] * (median > 1))
        for why in ("refused", "skipped"):
            if why in record:
                key = f"{record['provider']}, {why}: {record[why]}"
                words[key] = words.get(key, 0) + 1
    lines = []
    for other, where in slower.items():
        lines += [f"slower than {other} in {len(where)} of {count[other]}{':' * bool(where)}", *where]
    return "\n".join(lines + [f"{key} ({n} cases)" for key, n in words.items()])


SUMMARY = (  # what the README shows: in words, what its results have, alternative
    ("tanh, forward + backward", {"activation", "tanh", "forward+backward", "float32"}, "eager"),
    ("tanh, forward + backward", {"activation", "tanh", "forward+backward", "bfloat16"}, "eager"),
    ("distribution of a tensor", {"sketch", "Gaussian", "float32"}, "torch.histc"),
    ("five exact quantiles", {"exact", "five", "Gaussian", "float32"}, "torch.quantile"),
    ("five exact quantiles of 64 tensors", {"exact", "many", "float32"}, "torch.quantile"),
)


def summary(records: Results) -> str:
    """The README's table: sigscale's time over that of each alternative, by size; steps in a sentence."""
    ours = [record for record in records if record["provider"] == OURS]
    rows = []
    for words, about, other in SUMMARY:
        of = [
            r for r in ours if about <= {v for v in r.values() if isinstance(v, str)} and other in r["over"]
        ]
        for r in of:
            row = {"time of": words, "over": provider(other).label, "dtype": r["dtype"]}
            rows.append(row | {size(r["elements"]): ratio(r["over"][other]).split()[0]})
    if not rows:
        return ""
    keys = ["time of", "over", "dtype"]
    text = markdown(pd.DataFrame(rows).groupby(keys, sort=False).first().fillna("").reset_index())
    monitored = [f"{r['over']['no monitor'][0]:.2f} ({r['network']})" for r in ours if r["kind"] == "monitor"]
    sentences = [f"A monitored training step takes {', '.join(monitored)} times as long."] * bool(monitored)
    sentences += [
        f"Both remedies add {100 * (r['over']['plain'][0] - 1):+.1f} % to a training step ({r['mode']}; the "
        f"paper's Table 4: {100 * r['paper']:+.1f} %)."
        for r in ours
        if r["kind"] == "table4" and r["over"]
    ]
    return f"{text}\n\n{' '.join(sentences)}"
