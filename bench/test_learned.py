"""Activations whose alpha learns against those with a number for it; see `learned_cases.py`.

The aim on a GPU: a backward pass, with alpha's gradient, takes 1.05 of the time without at 2^26 elements.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from comparison import OURS, compared
from learned_cases import EXPONENTS, Case, calls, cases
from measure import device_timer, interleaved, waited_for
from options import Record, settings

ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    chosen = list(cases(given.device, given.dtypes, given.sizes(EXPONENTS)))
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_learned_alpha(
    benchmark: BenchmarkFixture, record: Record, case: Case, pytestconfig: pytest.Config
) -> None:
    bound = calls(case)
    timings = interleaved(bound, device_timer(case.device), settings(pytestconfig).seconds)
    for result in compared(timings, {}, "fixed alpha"):
        record(**case.record, **result)
    benchmark.group = f"{case.function} with a learned alpha"
    benchmark.pedantic(waited_for(bound[OURS], case.device), rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
