"""Sketches and exact quantiles against PyTorch and NumPy; `quantile_cases.py` says what is compared."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from comparison import OURS, compared
from measure import device_timer, interleaved, waited_for
from options import Record, settings
from quantile_cases import EXPONENTS, Case, calls, cases

ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    chosen = list(cases(given.device, given.dtypes, given.sizes(EXPONENTS)))
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_quantiles(
    benchmark: BenchmarkFixture, record: Record, case: Case, pytestconfig: pytest.Config
) -> None:
    bound, refused = calls(case)
    timings = interleaved(bound, device_timer(case.device), settings(pytestconfig).seconds)
    for result in compared(timings, refused, "read" if case.task == "sketch" else None):
        record(**case.record, **result)
    benchmark.group = case.task
    ours = waited_for(bound[OURS], case.device)
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
