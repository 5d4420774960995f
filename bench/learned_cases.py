"""What it costs to learn alpha: forward and backward passes with a number and with a tensor that learns.

    fixed alpha    a number, the gradient from the saved input
    sigscale       a tensor: one alpha for all, or one for each of 64 channels, in memory the last or,
                   with 256 elements each, not the last dimension
    eager          alpha * f(x / alpha) with that tensor, written by hand

Directions: forward+backward through autograd, and the backward pass alone, as it is launched, which shows
the kernel on a GPU: 3 elements moved per element with either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sigscale
from cases import ALPHA, BACKWARD, BY_HAND, TRAINING
from measure import Call
from sigscale.kernels import activation, learned

EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 29, 2)]}
SHAPES = {
    "layer": (-1,),
    "channels last": (-1, 64),
    "channels": (-1, 64, 256),
}
Gradients = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    function: str
    direction: str
    alphas: str
    dtype: torch.dtype
    exponent: int
    device: torch.device

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        return {
            "kind": "learned",
            "function": self.function,
            "direction": self.direction,
            "alphas": self.alphas,
            "dtype": self.dtype_name,
            "elements": 1 << self.exponent,
        }

    def __str__(self) -> str:
        return f"{self.function}-{self.direction}-{self.alphas}-{self.dtype_name}-2^{self.exponent}"


def cases(device: torch.device, dtypes: Sequence[torch.dtype], exponents: Sequence[int]) -> Iterator[Case]:
    """The grid for a device, of the first function: `cases.py` has all of them, with one alpha.

    Alphas by channel take 2^14 elements.
    """
    function = next(iter(sigscale.FUNCTIONS))
    for dtype in dtypes:
        for direction in (TRAINING, BACKWARD):
            for alphas in SHAPES:
                for exponent in exponents:
                    if alphas == "layer" or exponent >= 14:
                        yield Case(function, direction, alphas, dtype, exponent, device)


def calls(case: Case) -> dict[str, Call]:
    """The ways, ready to be timed, checked against each other."""
    generator = torch.Generator(case.device).manual_seed(0)
    x, g = (
        torch.randn(1 << case.exponent, generator=generator, device=case.device)
        .to(case.dtype)
        .reshape(SHAPES[case.alphas])
        for _ in range(2)
    )
    alpha = torch.full((1 if case.alphas == "layer" else x.shape[1],), ALPHA, device=case.device)
    bound = through_autograd if case.direction == TRAINING else by_launch
    found = bound(case.function, x, g, alpha)
    check(case, found)
    return dict(found)


def through_autograd(function: str, x: Tensor, g: Tensor, alpha: Tensor) -> dict[str, Gradients]:
    f, by_hand = getattr(sigscale, function), BY_HAND.get(function, sigscale.FUNCTIONS[function].torch_value)
    x.requires_grad_()
    alpha.requires_grad_()

    def eager() -> Sequence[Tensor]:
        scale = alpha.reshape(-1, *(1,) * max(x.ndim - 2, 0)).to(x.dtype)
        return torch.autograd.grad(scale * by_hand(x / scale), (x, alpha), g)

    return {
        "fixed alpha": lambda: torch.autograd.grad(f(x, ALPHA, save="input"), x, g),
        "sigscale": lambda: torch.autograd.grad(f(x, alpha), (x, alpha), g),
        "eager": eager,
    }


def by_launch(function: str, x: Tensor, g: Tensor, alpha: Tensor) -> dict[str, Gradients]:
    entry = sigscale.FUNCTIONS[function]

    def in_one_launch() -> Sequence[Tensor]:
        dx, dalpha = learned.backward(entry, g, x, alpha, dx=True, dalpha=True)
        assert dx is not None
        assert dalpha is not None
        return dx, dalpha

    return {
        "fixed alpha": lambda: (activation.backward(entry, g, x, ALPHA, from_output=False),),
        "sigscale": in_one_launch,
    }


def check(case: Case, found: dict[str, Gradients]) -> None:
    """The same gradient of x with a number and with a tensor, and that of alpha as by hand, to rounding."""
    results = {name: way() for name, way in found.items()}
    rounding = 2e-2 if case.dtype.itemsize == 2 else 1e-4
    for name, other in results.items():
        say = f"{case}: sigscale and {name} differ"
        torch.testing.assert_close(
            results["sigscale"][: len(other)],
            tuple(other),
            rtol=rounding,
            atol=rounding * (1 << case.exponent) ** 0.5 if name == "eager" else rounding,
            msg=say,
        )
