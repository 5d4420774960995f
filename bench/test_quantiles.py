"""Sketches and exact quantiles of tensors, against PyTorch and NumPy, each checked before it is timed.

    task      result                                          providers
    sketch    the distribution, counted or sorted             sigscale: QuantileSketch.update(x)
                                                              torch.histc: 4096 bins of log2 |x|
                                                              wandb: what wandb.watch does
                                                              torch.sort
                                                              read: x.sum(), as fast as x is read
    five      five quantiles, exactly                         sigscale: quantile(x, [...])
                                                              torch.quantile, torch.sort, numpy
    median    the median, exactly; torch.kthvalue and         the same and torch.kthvalue
              numpy.partition give the lower of two
    many      five quantiles of each of 64 equal parts        sigscale: foreach_quantile
                                                              torch.quantile, torch.sort, in a loop

numpy stands for numpy.quantile or, for the median, numpy.partition, and takes part on a CPU. A provider
that refuses a case (torch.quantile takes no 16-bit types) is recorded with its error. On a GPU torch.kthvalue
takes part up to 2^26 values; all but the recipe of wandb.watch, which waits for the device, are replayed as
CUDA graphs, and a sketch of a tensor that fits into the second-level cache is timed warm as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sigscale
from bench.harness.inputs import FIVE, dtype_name, generate, grid
from bench.harness.options import settings
from bench.harness.providers import WAITING
from bench.harness.timing import OURS, Bench, Call, replayed, warm_timer

TASKS = ("sketch", "five", "median", "many")
QUANTILES = {"five": FIVE, "median": [0.5], "many": FIVE}
PARTS = 64
MANY_EXPONENTS = range(6, 23)  # of all parts together
EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 31, 2)]}
HISTC_BINS, WANDB_BINS = 4096, 64
LOWER = ("torch.kthvalue", "numpy")  # of the two middle values these return the lower one
COUNTED_EXACTLY = 1 << 24  # torch.histc counts in float32
KTHVALUE_UP_TO = 1 << 26  # on a GPU it is one block of threads: seconds a call beyond
WARM_BYTES = 32 << 20  # fits into the second-level cache of an H100


@dataclass(frozen=True)
class Case:
    task: str
    values: str
    dtype: torch.dtype
    exponent: int
    device: torch.device

    @property
    def elements(self) -> int:
        return 1 << self.exponent

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        what = {"values": self.values, "dtype": dtype_name(self.dtype)}
        kind = {"kind": "sketch"} if self.task == "sketch" else {"kind": "exact", "quantiles": self.task}
        return {**kind, **what, "elements": self.elements}

    def __str__(self) -> str:
        return f"{self.task}-{self.values}-{str(self.dtype).removeprefix('torch.')}-2^{self.exponent}"


def cases(device: torch.device, dtypes: Sequence[torch.dtype], exponents: Sequence[int]) -> Iterator[Case]:
    for task in TASKS:
        for dtype in dtypes:
            for values, exponent in grid(device, exponents):
                if task == "many" and (values != "Gaussian" or exponent not in MANY_EXPONENTS):
                    continue
                yield Case(task, values, dtype, exponent, device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    given = settings(metafunc.config)
    chosen = list(cases(given.device, given.dtypes, given.sizes(EXPONENTS)))
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_quantiles(bench: Bench, case: Case) -> None:
    bound, refused = calls(case)
    timed = replayed(bound, case.device, WAITING)
    baseline = "read" if case.task == "sketch" else None
    bench.compare(case.record, timed, refused, baseline=baseline)
    small = case.elements * case.dtype.itemsize <= WARM_BYTES
    if case.task == "sketch" and case.device.type == "cuda" and small:
        warm = {**case.record, "kind": "warm sketch"}
        bench.compare(warm, timed, baseline=baseline, timer=warm_timer)
    bench.steady(case.task, bound[OURS])


def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The providers on the case's tensor, ready to be timed, each checked; and why others refuse."""
    x = generate(case.values, case.elements, case.dtype, case.device)
    parts = x.view(PARTS, -1).unbind() if case.task == "many" else (x,)
    if case.task == "sketch":
        bound = counting(x)
    else:
        bound = selecting(x, case.task) if case.task != "many" else selecting_many(parts)
    results: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, call in bound.items():
        try:
            results[name] = call()
        except (RuntimeError, TypeError) as error:
            if name == OURS:
                raise
            refused[name] = str(error).split("\n")[0]
    truths = [Truth(part) for part in parts]
    for name, result in results.items():
        if case.task == "sketch":
            check_counts(case, name, result, x, truths[0])
        else:
            found = result if case.task == "many" else [result]
            for quantiles, truth in zip(found, truths, strict=True):
                check_quantiles(case, name, quantiles, truth)
    return {name: bound[name] for name in results}, refused


def counting(x: Tensor) -> dict[str, Call]:
    sketch = sigscale.QuantileSketch(device=x.device)
    return {
        "sigscale": lambda: sketch.update(x),
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


def selecting(x: Tensor, task: str) -> dict[str, Call]:
    numbers = QUANTILES[task]
    q = torch.tensor(numbers, dtype=x.dtype, device=x.device)
    middle = (x.numel() - 1) // 2
    bound: dict[str, Call] = {
        "sigscale": lambda: sigscale.quantile(x, numbers),
        "torch.quantile": lambda: torch.quantile(x, q),
        "torch.sort": sorting(x, numbers),
    }
    if task == "median" and not (x.is_cuda and x.numel() > KTHVALUE_UP_TO):
        bound["torch.kthvalue"] = lambda: x.kthvalue(middle + 1).values.view(1)
    if x.device.type == "cpu":
        by_numpy = {
            "five": lambda: np.quantile(x.numpy(), numbers),
            "median": lambda: np.partition(x.numpy(), middle)[middle : middle + 1],
        }
        bound["numpy"] = by_numpy[task]
    return bound


def selecting_many(parts: Sequence[Tensor]) -> dict[str, Call]:
    q = torch.tensor(FIVE, dtype=parts[0].dtype, device=parts[0].device)
    by_sorting = [sorting(part, FIVE) for part in parts]
    return {
        "sigscale": lambda: sigscale.foreach_quantile(parts, FIVE),
        "torch.quantile": lambda: [torch.quantile(part, q) for part in parts],
        "torch.sort": lambda: [call() for call in by_sorting],
    }


def sorting(x: Tensor, numbers: Sequence[float]) -> Call:
    """Sort, then read between the order statistics that each quantile lies between."""
    ranks = torch.tensor(numbers, dtype=torch.float64, device=x.device) * (x.numel() - 1)
    below, above, weight = ranks.floor().long(), ranks.ceil().long(), ranks.frac()

    def call() -> Tensor:
        ordered = x.sort().values
        return torch.lerp(ordered[below].double(), ordered[above].double(), weight)

    return call


class Truth:
    """Order statistics by sorting, as float64."""

    def __init__(self, x: Tensor) -> None:
        self.ordered = x.sort().values
        self.last = x.numel() - 1

    def of_rank(self, rank: int) -> float:
        return float(self.ordered[min(max(rank, 0), self.last)])

    def at(self, rank: float) -> float:
        """Between the order statistics, for a rank that is not whole."""
        below, above = self.of_rank(math.floor(rank)), self.of_rank(math.ceil(rank))
        return below + (above - below) * (rank - math.floor(rank))


def check_counts(case: Case, name: str, result: Any, x: Tensor, truth: Truth) -> None:
    """A sketch's bounds hold the order statistics; histograms have counted all values that they should."""
    if name == "sigscale":
        assert int(result.count) == case.elements, f"the sketch of {case} has lost values"
        for q in FIVE:
            low, high = (float(bound) for bound in result.bounds(q))
            rank = q * truth.last
            held = low <= truth.of_rank(math.floor(rank)) and truth.of_rank(math.ceil(rank)) <= high
            assert held, f"the bounds {low}, {high} of quantile {q} do not hold it in {case}"
    elif name in ("torch.histc", "wandb") and case.elements <= COUNTED_EXACTLY:
        expected = int(x.count_nonzero()) if name == "torch.histc" else case.elements
        counted = int(result.double().sum())
        assert counted == expected, f"{name} counted {counted} of {expected} values in {case}"


def check_quantiles(case: Case, name: str, result: Any, truth: Truth) -> None:
    """Quantiles of float64 ranks, but for rounding q to float32 and the result to the dtype."""
    for q, value in zip(QUANTILES[case.task], torch.as_tensor(result).tolist(), strict=True):
        rank = q * truth.last
        if name in LOWER and case.task == "median":
            low = high = truth.of_rank(math.floor(rank))
        else:
            slack = rank * 2.0**-22
            low, high = truth.at(rank - slack), truth.at(rank + slack)
        sides = (truth.of_rank(math.floor(rank)), truth.of_rank(math.ceil(rank)))
        rounding = 4 * torch.finfo(case.dtype).eps * max(abs(side) for side in sides)
        message = f"{name} gives {value} for quantile {q} in {case}, which is from {low} to {high}"
        assert low - rounding <= value <= high + rounding, message
