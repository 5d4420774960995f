"""Time against the number of elements and seeds.

The line is t(n) = fixed + each * n with coefficients that are not negative, fitted to the medians by least
squares of relative residuals. Launch cost ends at n = fixed / each, where work takes as long as what is
fixed. Where a cache ends or calls overlap, no line holds, and n says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from bench.harness.timing import OURS

Points = Sequence[tuple[int, float]]
# Series of elements are taken from other benchmarks: name, what their results have, providers.
OF_ELEMENTS = (
    ("tanh, training", {"activation", "tanh", "forward+backward", "float32"}, (OURS, "eager", "copy")),
    ("sketch of a tensor", {"sketch", "Gaussian", "float32"}, (OURS, "torch.histc", "read")),
    ("five quantiles", {"exact", "five", "Gaussian", "float32"}, (OURS, "torch.quantile")),
)


def series(records: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results with their size as `n`, by series; those of more than one size."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, about, providers in OF_ELEMENTS:
        for record in records:
            words = {value for value in record.values() if isinstance(value, str)}
            if about <= words and record["provider"] in providers and record["seconds"] is not None:
                found.setdefault(name, []).append({**record, "n": record["elements"], "unit": "elements"})
    for record in records:
        if record["kind"] == "growth":
            found.setdefault(record["series"], []).append(record)
    return {name: of for name, of in found.items() if len({record["n"] for record in of}) > 1}


def fit(points: Points) -> tuple[float, float]:
    """Seconds that are fixed, and that each unit adds."""
    n, t = np.array(sorted(points), dtype=np.float64).T
    (fixed, each), _ = nnls(np.stack([1 / t, n / n.max() / t], 1), np.ones_like(t))
    return float(fixed), float(each / n.max())


def line(points: Points) -> tuple[Any, Any]:
    """The fit over the sizes that were measured."""
    fixed, each = fit(points)
    n = np.geomspace(min(points)[0], max(points)[0], 200)
    return n, fixed + each * n


def end(of: list[dict[str, Any]]) -> str:
    """Where sigscale's launch cost ends, if within the sizes measured."""
    points = [(record["n"], record["seconds"]) for record in of if record["provider"] == OURS]
    fixed, each = fit(points) if len(points) > 1 else (0.0, 0.0)
    if not each or not min(points)[0] <= fixed / each <= max(points)[0]:
        return ""
    return f"launch cost ends at {float(f'{fixed / each:.1e}'):,.0f} {of[0]['unit']}"
