"""Sets of seeds as text: "25" for the first so many, "0-9,20-24" for spans of them."""

from __future__ import annotations

from collections.abc import Iterable

LIMIT = 10_000
RULE = "must be how many, such as 25, or spans, such as 0-9,20-24"


def parse(text: str) -> tuple[int, ...]:
    """The seeds, ascending and each once; ValueError if there are none or the text is something else."""
    ranges = [range(int(text))] if _is_number(text) else [_span(span) for span in text.split(",")]
    if not 0 < sum(map(len, ranges)) <= LIMIT:
        raise ValueError(f"{text!r}: {RULE}; from 1 to {LIMIT:,} of them")
    return tuple(sorted({seed for span in ranges for seed in span}))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10


def _span(text: str) -> range:
    first, dash, last = text.partition("-")
    if not (dash and _is_number(first) and _is_number(last) and int(first) <= int(last)):
        raise ValueError(f"{text!r}: {RULE}")
    return range(int(first), int(last) + 1)


def name(seeds: Iterable[int]) -> str:
    """What `parse` reads: 0-4,7-7 for 0, 1, 2, 3, 4 and 7."""
    spans: list[list[int]] = []
    for seed in sorted(seeds):
        if spans and seed == spans[-1][1] + 1:
            spans[-1][1] = seed
        else:
            spans.append([seed, seed])
    return ",".join(f"{first}-{last}" for first, last in spans)
