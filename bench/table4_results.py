"""What is kept of the timings of Table 4: a record for each mode and model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from comparison import OURS
from measure import Timings
from table4_cases import MODELS
from table4_table import EPOCHS, STEPS_AN_EPOCH

ALTERNATIVES = ("eager", "batch norm")
"""What both remedies are compared with besides their baseline, for the list of losses."""


def named(mode: str, name: str) -> str:
    """What is timed, in `Timings`."""
    return f"{mode}: {name}"


def results(timings: Timings, keys: Iterable[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Of these modes and models, each compared with others in the same mode."""
    for mode, name in keys:
        model = MODELS[name]
        this, others = named(mode, name), [model.baseline] * (name != model.baseline)
        base = MODELS[model.baseline].paper
        alternatives = ALTERNATIVES if name == OURS else ()
        yield {
            "mode": mode,
            "provider": name,
            "label": model.label,
            "seconds": timings.seconds(this),
            "quartiles": timings.spread(this),
            "rounds": len(timings.samples[this]),
            "run_seconds": EPOCHS * STEPS_AN_EPOCH * timings.seconds(this),
            "baseline": model.baseline,
            "cost": {o: timings.ratio(this, named(mode, o)) for o in [*others, *[OURS] * model.monitored]},
            "ratios": {o: timings.ratio(this, named(mode, o)) for o in alternatives},
            "paper": model.paper,
            "paper_overhead": model.paper / base - 1 if model.paper and base and others else None,
        }
