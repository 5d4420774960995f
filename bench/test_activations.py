"""Every registered function against what it replaces; `cases.py` says what runs and how many bytes it moves.

The numbers that are reported come from interleaved rounds of all providers of a case (`measure.py`); on a GPU
they are the device's time between two events. pytest-benchmark's own columns are the host's clock around a
call that is waited for, one provider after the other: they tell whether the machine was steady, no more.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cases import EXPONENTS, Case, calls, cases
from measure import Call, Timings, device_timer, interleaved, waited_for
from options import Record, settings

ROUNDS = 5
RATIOS = ("eager", "compile")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    grid = cases(given.device, given.dtypes, given.sizes(EXPONENTS))
    chosen = [(case, name) for case in grid for name in case.providers]
    metafunc.parametrize(("case", "provider"), chosen, ids=[f"{case}-{name}" for case, name in chosen])


@lru_cache(maxsize=1)
def measured(case: Case, seconds: float) -> tuple[dict[str, Call], Timings]:
    bound = calls(case)
    return bound, interleaved(bound, device_timer(case.device), seconds)


def test_activation(
    benchmark: BenchmarkFixture, record: Record, case: Case, provider: str, pytestconfig: pytest.Config
) -> None:
    bound, timings = measured(case, settings(pytestconfig).seconds)
    seconds, copy_seconds = timings.seconds(provider), timings.seconds("copy")
    gbps = case.gbps(provider, seconds)
    record(
        kind="activation",
        function=case.function,
        direction=case.direction,
        dtype=case.dtype_name,
        elements=case.elements,
        provider=provider,
        seconds=seconds,
        gbps=gbps,
        share_of_copy=gbps / case.gbps("copy", copy_seconds),
        ratios={to: timings.ratio(provider, to) for to in RATIOS if provider == "sigscale" and to in bound},
    )
    benchmark.group = str(case)
    waiting = waited_for(bound[provider], case.device)
    benchmark.pedantic(waiting, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
