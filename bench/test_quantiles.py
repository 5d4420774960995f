"""Sketches and exact quantiles of tensors, against PyTorch and NumPy, each checked before it is timed.

    task      result                                          providers
    sketch    the distribution, counted or sorted             sigscale: QuantileSketch.update(x)
                                                              torch.histc: 4096 bins of log2 |x|
                                                              wandb: what wandb.watch does
                                                              torch.sort
                                                              read: x.sum(), as fast as x is read
    five      five quantiles, exactly                         sigscale: quantile(x, [...])
                                                              torch.quantile, torch.sort, numpy
    median    the median, exactly                             the same, and torch.kthvalue
    many      five quantiles of each of 64 equal parts        sigscale: foreach_quantile
                                                              torch.quantile, torch.sort, in a loop

torch.kthvalue gives the lower of two middle values; numpy takes part on a CPU. A provider that refuses a case
(torch.quantile takes no 16-bit types) is recorded with its error. On a GPU torch.kthvalue takes part up to
2^26 values; all but the recipe of wandb.watch, which waits for the device, are replayed as CUDA graphs, and a
sketch of a tensor that fits into the second-level cache is timed warm as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sigscale
from bench.harness.inputs import FIVE, Case, generate, grid, parametrize
from bench.harness.options import Settings, settings
from bench.harness.providers import WAITING
from bench.harness.timing import OURS, Bench, Call, replayed, warm_timer

TASKS = {"sketch": FIVE, "five": FIVE, "median": [0.5], "many": FIVE}
PARTS = 64
MANY_EXPONENTS = range(6, 23)  # of all parts together
EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 31, 2)]}
HISTC_BINS, WANDB_BINS = 4096, 64
COUNTED_EXACTLY = 1 << 24  # torch.histc counts in float32
KTHVALUE_UP_TO = 1 << 26  # on a GPU it is one block of threads: seconds a call beyond
WARM_BYTES = 32 << 20  # fits into the second-level cache of an H100


def cases(given: Settings) -> Iterator[Case]:
    for task in TASKS:
        kind = (("kind", "sketch"),) if task == "sketch" else (("kind", "exact"), ("quantiles", task))
        for dtype in given.dtypes:
            for values, exponent in grid(given.device, given.sizes(EXPONENTS)):
                if task != "many" or (values == "Gaussian" and exponent in MANY_EXPONENTS):
                    yield Case((*kind, ("values", values)), dtype, exponent, given.device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, cases(settings(metafunc.config)))


def test_quantiles(bench: Bench, case: Case) -> None:
    bound, refused = calls(case)
    timed = replayed(bound, case.device, WAITING)
    baseline = "read" if case["kind"] == "sketch" else None
    bench.compare(case.about, timed, refused, baseline=baseline)
    small = case.elements * case.dtype.itemsize <= WARM_BYTES
    if case["kind"] == "sketch" and case.device.type == "cuda" and small:
        bench.compare({**case.about, "kind": "warm sketch"}, timed, baseline=baseline, timer=warm_timer)
    bench.steady(task_of(case), bound[OURS])


def task_of(case: Case) -> str:
    return dict(case.what).get("quantiles", "sketch")


def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The providers on the case's tensor, ready to be timed, each checked; and why others refuse."""
    x, task = generate(case["values"], case.elements, case.dtype, case.device), task_of(case)
    ordered = [part.sort().values for part in (x.view(PARTS, -1) if task == "many" else x[None])]
    makers = {"sketch": counting, "many": selecting_many}
    bound = makers[task](x) if task in makers else selecting(x, TASKS[task])
    refused: dict[str, str] = {}
    for name, call in bound.items():
        try:
            result: Any = call()
        except (RuntimeError, TypeError) as error:
            if name == OURS:
                raise
            refused[name] = str(error).split("\n")[0]
            continue
        if task == "sketch":
            check_counts(case, name, result, x, ordered[0])
        else:
            for part, found in zip(ordered, result if task == "many" else [result], strict=True):
                check_quantiles(case, name, found, part)
    return {name: call for name, call in bound.items() if name not in refused}, refused


def counting(x: Tensor) -> dict[str, Call]:
    sketch = sigscale.QuantileSketch(device=x.device)
    return {
        OURS: lambda: sketch.update(x),
        "torch.histc": lambda: histogram_by_hand(x),
        "wandb": lambda: wandb_recipe(x),
        "torch.sort": lambda: x.sort(),
        "read": lambda: x.sum(),
    }


def histogram_by_hand(x: Tensor) -> Tensor:
    """Counts over the exponents of a dtype; zeros are left out."""
    limits = torch.finfo(x.dtype)
    low, high = math.floor(math.log2(limits.smallest_normal * limits.eps)), math.ceil(math.log2(limits.max))
    wide = x.float() if x.dtype.itemsize == 2 else x
    return torch.histc(wide.abs().log2(), HISTC_BINS, low, high)


def wandb_recipe(x: Tensor) -> Tensor:
    """What wandb.watch does with a gradient before writing it down, waiting for the device four times."""
    flat = x.detach().clone().reshape(-1)
    flat = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    finite = torch.isfinite(flat)
    if not finite.all():
        flat = flat[finite]
    low, high = flat.min().item(), flat.max().item()
    if low == high:
        return torch.tensor([float(flat.numel())])
    return torch.histc(flat, WANDB_BINS, low, high).cpu()


def selecting(x: Tensor, numbers: list[float]) -> dict[str, Call]:
    q = torch.tensor(numbers, dtype=x.dtype, device=x.device)
    bound: dict[str, Call] = {
        OURS: lambda: sigscale.quantile(x, numbers),
        "torch.quantile": lambda: torch.quantile(x, q),
        "torch.sort": sorting(x, numbers),
    }
    if numbers == [0.5] and not (x.is_cuda and x.numel() > KTHVALUE_UP_TO):
        bound["torch.kthvalue"] = lambda: x.kthvalue((x.numel() + 1) // 2).values.view(1)
    if not x.is_cuda:
        bound["numpy"] = lambda: np.quantile(x.numpy(), numbers)
    return bound


def selecting_many(x: Tensor) -> dict[str, Call]:
    parts, q = x.view(PARTS, -1).unbind(), torch.tensor(FIVE, dtype=x.dtype, device=x.device)
    by_sorting = [sorting(part, FIVE) for part in parts]
    return {
        OURS: lambda: sigscale.foreach_quantile(parts, FIVE),
        "torch.quantile": lambda: [torch.quantile(part, q) for part in parts],
        "torch.sort": lambda: [call() for call in by_sorting],
    }


def sorting(x: Tensor, numbers: Sequence[float]) -> Call:
    """Sort, then read between the order statistics that each quantile lies between."""
    ranks = torch.tensor(numbers, dtype=torch.float64, device=x.device) * (x.numel() - 1)

    def call() -> Tensor:
        return at(x.sort().values, ranks)

    return call


def at(ordered: Tensor, ranks: Tensor) -> Tensor:
    """Between the order statistics, for ranks that are not whole, as float64."""
    below, above = ordered[ranks.floor().long()].double(), ordered[ranks.ceil().long()].double()
    return torch.lerp(below, above, ranks.frac())


def check_counts(case: Case, name: str, result: Any, x: Tensor, ordered: Tensor) -> None:
    """A sketch's bounds hold the order statistics; histograms have counted all values that they should."""
    if name == OURS:
        assert int(result.count) == case.elements, f"the sketch of {case} has lost values"
        ranks = torch.tensor(FIVE, dtype=torch.float64, device=x.device) * (case.elements - 1)
        bounds = [[float(bound) for bound in result.bounds(q)] for q in FIVE]
        low, high = torch.tensor(bounds, dtype=torch.float64, device=x.device).T
        held = (low <= at(ordered, ranks.floor())) & (at(ordered, ranks.ceil()) <= high)
        assert held.all(), f"the bounds {low}, {high} do not hold the quantiles in {case}"
    elif name in ("torch.histc", "wandb") and case.elements <= COUNTED_EXACTLY:
        expected = int(x.count_nonzero()) if name == "torch.histc" else case.elements
        counted = int(result.double().sum())
        assert counted == expected, f"{name} counted {counted} of {expected} values in {case}"


def check_quantiles(case: Case, name: str, result: Any, ordered: Tensor) -> None:
    """Quantiles of float64 ranks, but for rounding q to float32 and the result to the dtype."""
    last = len(ordered) - 1
    ranks = torch.tensor(TASKS[task_of(case)], dtype=torch.float64, device=ordered.device) * last
    slack = ranks * 2.0**-22
    low, high = at(ordered, ranks - slack), at(ordered, (ranks + slack).clamp(max=last))
    if name == "torch.kthvalue":
        low = high = at(ordered, ranks.floor())
    sides = torch.maximum(at(ordered, ranks.floor()).abs(), at(ordered, ranks.ceil()).abs())
    rounding = 4 * torch.finfo(case.dtype).eps * sides
    found = torch.as_tensor(result, device=ordered.device).double()
    right = ((low - rounding <= found) & (found <= high + rounding)).all()
    assert right, f"{name} gives {found.tolist()} in {case}, which is from {low.tolist()} to {high.tolist()}"
