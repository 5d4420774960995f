"""What is kept of a case's timings: a record a provider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from measure import Timings

OURS = "sigscale"


def compared(
    timings: Timings, refused: Mapping[str, str], baseline: str | None = None
) -> Iterator[dict[str, Any]]:
    """sigscale's ratio to each alternative; all costs over the baseline; who refused, and why."""
    names = list(timings.samples)
    others = [name for name in names if not name.startswith(OURS) and name != baseline]
    for name in names:
        ratios = {other: timings.ratio(name, other) for other in others} if name == OURS else {}
        result = {"provider": name, "seconds": timings.seconds(name), "ratios": ratios}
        if baseline is not None and name != baseline:
            result["cost"] = {baseline: timings.ratio(name, baseline)}
            result["added"] = {baseline: timings.added(name, baseline)}
        yield result
    for name, words in refused.items():
        yield {"provider": name, "seconds": None, "ratios": {}, "refused": words}
