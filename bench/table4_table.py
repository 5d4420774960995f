"""Table 4 as a table: a row a model, columns for each mode, and the paper's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, str]

EPOCHS, STEPS_AN_EPOCH = 100, 1562
"""Of a whole run, which are our choice: the paper states neither its epochs nor its batch."""

TITLE = (
    "Table 4 of the paper: seconds per 1,000 training steps (and the middle half of the rounds), and what is "
    f"added to the same network without remedies (by paired rounds); a run is {EPOCHS} epochs x "
    f"{STEPS_AN_EPOCH:,} steps, our choice, since the paper states neither epochs nor batch: compare "
    "percentages, not seconds"
)
WORDS = {"eager": "eager", "compile": "torch.compile", "graph": "CUDA graph"}
ALONE = "... the monitoring alone, over both without"


def measured(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By model (provider), then by mode."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for record in records:
        if record["kind"] == "table4" and record["seconds"] is not None:
            models.setdefault(record["provider"], {})[record["mode"]] = record
    return models


def rows(records: Iterable[dict[str, Any]], *, whole_run: bool = True) -> list[Row]:
    """`whole_run`: with the seconds of one as well."""
    models = measured(records)
    modes = [*dict.fromkeys(mode for by_mode in models.values() for mode in by_mode)]
    table = []
    for by_mode in models.values():
        any_mode = next(iter(by_mode.values()))
        head = "model, batches of {batch} ({data}), {rounds} rounds of {steps} steps".format(**any_mode)
        row = {head: any_mode["label"]}
        for mode in modes:
            row |= _columns(mode, by_mode.get(mode), any_mode["baseline"], whole_run)
        paper, more = any_mode["paper"], any_mode["paper_overhead"]
        row["paper, s a run"] = "" if paper is None else f"{paper:,.1f}"
        row["paper, overhead"] = "" if more is None else percent(more)
        table.append(row)
        table += [
            _alone(row, head, by_mode, other) for other in any_mode["cost"] if other != any_mode["baseline"]
        ]
    return table


def _columns(mode: str, record: Mapping[str, Any] | None, baseline: str, whole_run: bool) -> Row:
    if record is None:
        return _columns_of(mode, "", "", "", whole_run)
    middle, low, high = (f"{1e3 * seconds:.3g}" for seconds in record["quartiles"])
    run = f"{record['run_seconds']:,.0f}"
    cost = overhead(record["cost"].get(baseline))
    return _columns_of(mode, f"{middle} ({low}-{high})", cost, run, whole_run)


def _columns_of(mode: str, seconds: str, cost: str, run: str, whole_run: bool) -> Row:
    word = WORDS[mode]
    columns = {f"{word}, s / 1,000": seconds, f"{word}, overhead": cost}
    return columns | {f"{word}, s a run": run} if whole_run else columns


def _alone(row: Row, head: str, by_mode: Mapping[str, dict[str, Any]], other: str) -> Row:
    """Below a model that is compared with a second one: that comparison."""
    costs = {f"{WORDS[mode]}, overhead": overhead(r["cost"].get(other)) for mode, r in by_mode.items()}
    return dict.fromkeys(row, "") | {head: ALONE} | costs


def overhead(ratio: Sequence[float] | None) -> str:
    """A ratio of times and its quartiles as what is added."""
    if ratio is None:
        return ""
    middle, low, high = (f"{100 * (r - 1):+.1f}" for r in ratio)
    return f"{middle} % ({low} to {high})"


def percent(more: float) -> str:
    return f"{100 * more:+.1f} %"
