"""Activations with `grad_sketch` against those without and against a second pass; see `backward_cases.py`.

The aim on a GPU: a backward pass takes 1.02 of the time without in fp32 and 1.03 in bf16 at 2^26 elements
and more, and 2.5 us more than that at 2^22 elements and less.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from backward_cases import EXPONENTS, Case, calls, cases
from comparison import OURS, compared
from measure import device_timer, interleaved, waited_for
from options import Record, settings

ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    chosen = list(cases(given.device, given.dtypes, given.sizes(EXPONENTS)))
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_backward_sketch(
    benchmark: BenchmarkFixture, record: Record, case: Case, pytestconfig: pytest.Config
) -> None:
    bound, refused = calls(case)
    timings = interleaved(bound, device_timer(case.device), settings(pytestconfig).seconds)
    for result in compared(timings, refused, "no sketch"):
        record(**case.record, **result)
    benchmark.group = f"{case.function} with a sketch"
    ours = waited_for(bound[OURS], case.device)
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
