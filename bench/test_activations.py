"""Every registered function against what it replaces; `cases.py` says what runs and how many bytes it moves.

The numbers that are reported come from interleaved rounds of all providers of a case (`measure.py`); on a GPU
they are the device's time between two events, with its caches overwritten and, where a tensor fits into them,
also with caches that are warm. pytest-benchmark's own columns are the host's clock around a call that is
waited for, one provider after the other: they tell whether the machine was steady, no more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cases import EXPONENTS, VARIANTS, Case, calls, cases
from measure import Call, Timings, device_timer, interleaved, waited_for, warm_timer
from options import Record, settings
from peers import PEERS

ROUNDS = 5
OURS = "sigscale"
RATIOS = ("eager", "compile", *PEERS)
WARM_BYTES = 16 << 20  # a tensor; several fit into the second-level cache of an H100


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    grid = cases(given.device, given.dtypes, given.sizes(EXPONENTS))
    chosen = [(case, name) for case in grid for name in case.providers]
    metafunc.parametrize(("case", "provider"), chosen, ids=[f"{case}-{name}" for case, name in chosen])


class Measured:
    """The calls of a case, their times, and who refused."""

    def __init__(self, case: Case, seconds: float) -> None:
        self.case = case
        self.calls, self.refused = calls(case)
        self.timings = {"activation": self.timed(device_timer, seconds)}
        if case.device.type == "cuda" and case.elements * case.dtype.itemsize <= WARM_BYTES:
            self.timings["warm"] = self.timed(warm_timer, seconds)

    def timed(self, timer: Callable[..., Callable[[Call], float]], seconds: float) -> Timings:
        return interleaved(self.calls, timer(self.case.device), seconds)

    def result(self, kind: str, provider: str) -> dict[str, Any]:
        case, timings = self.case, self.timings[kind]
        gbps = case.gbps(provider, timings.seconds(provider))
        ratios = {to: timings.ratio(provider, to) for to in RATIOS if provider == OURS and to in self.calls}
        cost = {"cost": {OURS: timings.ratio(provider, OURS)}} if provider in VARIANTS else {}
        return {
            **self.about(kind, provider),
            "seconds": timings.seconds(provider),
            "gbps": gbps,
            "share_of_copy": gbps / case.gbps("copy", timings.seconds("copy")),
            "ratios": ratios,
            **cost,
        }

    def about(self, kind: str, provider: str) -> dict[str, Any]:
        case = self.case
        what = {"function": case.function, "direction": case.direction, "dtype": case.dtype_name}
        return {"kind": kind, **what, "elements": case.elements, "provider": provider}

    def refusals(self) -> list[dict[str, Any]]:
        return [
            {**self.about("activation", name), "seconds": None, "ratios": {}, "refused": words}
            for name, words in self.refused.items()
        ]


class Latest:
    """The case measured last; its tensors are let go before those of the next are made."""

    case: Case | None = None
    found: Measured | None = None
    too_large = ""

    def measured(self, case: Case, seconds: float) -> Measured:
        if self.case != case:
            self.case, self.found = case, None
            self.too_large = case.too_large()
            if not self.too_large:
                self.found = Measured(case, seconds)
        if self.found is None:
            pytest.skip(self.too_large)
        return self.found


LATEST = Latest()


def test_activation(
    benchmark: BenchmarkFixture, record: Record, case: Case, provider: str, pytestconfig: pytest.Config
) -> None:
    found = LATEST.measured(case, settings(pytestconfig).seconds)
    if provider == OURS:
        for refusal in found.refusals():
            record(**refusal)
    if provider in found.refused:
        pytest.skip(found.refused[provider])
    for kind in found.timings:
        record(**found.result(kind, provider))
    benchmark.group = str(case)
    waiting = waited_for(found.calls[provider], case.device)
    benchmark.pedantic(waiting, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
