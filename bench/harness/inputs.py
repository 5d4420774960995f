"""The cases of benchmarks over tensors, and their values, typical and adversarial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

CONSTANT = 0.1
FIVE = [0.05, 0.25, 0.5, 0.75, 0.95]
"""The quantiles that benchmarks ask for."""


def gaussian(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, device=generator.device).to(dtype)


def half_zeros(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """As behind a relu."""
    return gaussian(n, dtype, generator).relu_()


def constant(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """All values in one bin."""
    return torch.full((n,), CONSTANT, dtype=dtype, device=generator.device)


def distinct(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Ascending from 0 to 1, as far as the dtype tells them apart: neighbors share a bin."""
    return (torch.arange(n, dtype=torch.float64, device=generator.device) / n).to(dtype)


def heavy_tails(n: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """All magnitudes of the dtype equally likely, with both signs: every bin is used."""
    limits = torch.finfo(dtype)
    low, high = math.log2(limits.tiny), math.log2(limits.max) - 2  # so that their range is finite
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    return (gaussian(n, dtype, generator).sign() * torch.exp2(low + (high - low) * uniform)).to(dtype)


DISTRIBUTIONS: Mapping[str, Callable[[int, torch.dtype, torch.Generator], Tensor]] = {
    "Gaussian": gaussian,
    "half zeros": half_zeros,
    "constant": constant,
    "distinct": distinct,
    "heavy tails": heavy_tails,
}
OTHERS_AT = {"cpu": {17}, "cuda": {16, 22, 26}}  # exponents at which the others are measured


def grid(device: torch.device, exponents: Sequence[int]) -> Iterator[tuple[str, int]]:
    """Distributions and exponents: Gaussian values everywhere, others at some sizes, or the first."""
    others = OTHERS_AT[device.type].intersection(exponents) or {min(exponents)}
    for values in DISTRIBUTIONS:
        for exponent in exponents:
            if values == "Gaussian" or exponent in others:
                yield values, exponent


def generate(values: str, n: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    return DISTRIBUTIONS[values](n, dtype, torch.Generator(device).manual_seed(seed))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Case:
    """One operation on one tensor; `what` names the operation as results do, kind first."""

    what: tuple[tuple[str, str], ...]
    dtype: torch.dtype
    exponent: int
    device: torch.device

    def __getitem__(self, name: str) -> str:
        return dict(self.what)[name]

    @property
    def elements(self) -> int:
        return 1 << self.exponent

    @property
    def about(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        return {**dict(self.what), "dtype": dtype_name(self.dtype), "elements": self.elements}

    def __str__(self) -> str:
        return "-".join([*(word for _, word in self.what), dtype_name(self.dtype), f"2^{self.exponent}"])


def parametrize(metafunc: pytest.Metafunc, cases: Iterable[Case]) -> None:
    chosen = [*cases]
    metafunc.parametrize("case", chosen, ids=map(str, chosen))
