"""Time against the number of elements, tensors, layers and seeds; see `growth_cases.py`.

The question is where launch cost ends: `growth_fit.py` has the model, `growth_table.py` the answers. Sizes
are those of a series; `--exponents`, whatever it says, makes this a trial of the smallest three.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from comparison import OURS, compared
from growth_cases import SERIES, Series
from measure import host_timer, interleaved, waited_for
from options import Record, settings

ROUNDS = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [(series, n) for series in SERIES for n in series.chosen(settings(metafunc.config))]
    metafunc.parametrize(("series", "n"), chosen, ids=[f"{series.name}-{n}" for series, n in chosen])


def test_growth(
    benchmark: BenchmarkFixture, record: Record, series: Series, n: int, pytestconfig: pytest.Config
) -> None:
    given = settings(pytestconfig)
    with ExitStack() as stack:
        calls = series.make(n, given.device, stack)
        timings = interleaved(calls, host_timer(given.device), given.seconds)
        for result in compared(timings, {}, series.baseline):
            name = result["provider"]
            record(**series.record(n, given.device, name), **result, quartiles=timings.spread(name))
        benchmark.group = f"growth, {series.name}"
        benchmark.pedantic(waited_for(calls[OURS], given.device), rounds=ROUNDS)  # type: ignore[no-untyped-call]
