"""Every registered function against what it replaces: time and memory; see `harness/activations.py`.

On a GPU the device's time between two events with cold caches and, where a tensor fits into them, also with
warm ones. On a CPU the kernels' plain-PyTorch twin takes temporary tensors that the kernels do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.harness.activations import EXPONENTS, OTHERS, TRAINING, Case, bind, calls, cases, tensors
from bench.harness.options import settings
from bench.harness.providers import PEERS, made
from bench.harness.timing import OURS, Bench, Call, device_timer, warm_timer

AGAINST = ("eager", "compile", *PEERS)
WARM_BYTES = 16 << 20  # per tensor; several fit into the second-level cache of an H100
MEMORY_EXPONENTS = {"cpu": [18], "cuda": [24]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    if metafunc.function is test_activation:
        grid = cases(given.device, given.dtypes, given.sizes(EXPONENTS))
        chosen = [replace(case, compiles=case.compiles and given.compiles) for case in grid]
    else:
        grid = cases(given.device, given.dtypes, [max(given.sizes(MEMORY_EXPONENTS))])
        compiles = given.compiles and given.device.type == "cuda" and not given.exponents
        chosen = [replace(case, compiles=compiles) for case in grid if case.direction == TRAINING]
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_activation(bench: Bench, case: Case) -> None:
    if words := case.too_large():
        pytest.skip(words)
    bound, refused = calls(case)
    timers = {"activation": device_timer}
    if case.device.type == "cuda" and case.elements * case.dtype.itemsize <= WARM_BYTES:
        timers["warm"] = warm_timer
    for kind, timer in timers.items():
        bench.compare({"kind": kind, **case.about}, bound, refused, against=AGAINST, timer=timer)
        refused = {}
    bench.steady(f"{case.function}, {case.direction}", bound[OURS])


def test_memory(bench: Bench, case: Case) -> None:
    if words := case.too_large():
        pytest.skip(words)
    x, g = tensors(case)
    for name in case.providers:
        try:
            function, plain = made(name, case.function, x), x.detach()
            taken = {
                "kept": kept(function, x),
                "peak_forward": peak(bind(function, plain, None), case.device),
                "peak_training": peak(bind(function, x, g), case.device),
            }
        except Exception:
            if name not in OTHERS:
                raise
            continue
        bench.record(kind="memory", **case.about, provider=name, **taken)
    bench.steady("memory", bind(made(OURS, case.function, x), x, g))


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, int]:
    """Bytes kept for the backward pass: x and y, which other layers may keep too, and what else.

    Memory that several tensors share counts once.
    """
    storages: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        y = function(x)
    of_x, of_y = (storages.pop(tensor.untyped_storage().data_ptr(), 0) for tensor in (x, y))
    return {"x": of_x, "y": of_y, "more": sum(storages.values())}


def peak(call: Call, device: torch.device) -> int:
    """Bytes in use at the worst moment of a call, beyond those in use before; its result included."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    used = largest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            largest = max(largest, used)
    return largest
