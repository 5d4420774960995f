"""What every registered function and its alternatives take of memory; see `memory.py`.

On a CPU the kernels' twin takes temporary tensors that the kernels do not.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cases import FORWARD, OTHERS, TRAINING, Case, bind, cases, provided, tensors
from measure import waited_for
from memory import kept, peak
from options import Record, settings

EXPONENTS = {"cpu": [18], "cuda": [24]}
ROUNDS = 5


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    grid = cases(given.device, given.dtypes, [max(given.sizes(EXPONENTS))])
    compiles = not given.exponents  # a trial is to be short
    chosen = [replace(case, compiles=compiles) for case in grid if case.direction == TRAINING]
    metafunc.parametrize("case", chosen, ids=[f"{case.function}-{case.dtype_name}" for case in chosen])


def test_memory(benchmark: BenchmarkFixture, record: Record, case: Case) -> None:
    if words := case.too_large():
        pytest.skip(words)
    x, g = tensors(case)
    written = provided(case, x)
    for name in case.providers:
        function, plain = written[name], x.detach()
        try:
            taken = {
                "kept": kept(function, x)._asdict(),
                "peak_forward": peak(bind(function, plain, None), case.device),
                "peak_training": peak(bind(function, x, g), case.device),
            }
        except Exception:
            if name not in OTHERS:
                raise
            continue
        about = {"function": case.function, "dtype": case.dtype_name, "elements": case.elements}
        record(kind="memory", **about, provider=name, **taken)
    benchmark.group = f"{case} ({FORWARD} and backward)"
    ours = waited_for(bind(written["sigscale"], x, g), case.device)
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
