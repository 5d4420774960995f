"""What it costs to count a gradient: backward passes with and without `grad_sketch`, and other ways.

    no sketch        the gradient alone
    sigscale         with grad_sketch: counted by the kernel that computes it
    second pass      the gradient, then QuantileSketch.update of it
    torch.quantile   the gradient, then five quantiles of it, exactly

Directions: forward+backward through autograd, and the backward pass alone, as it is launched, which shows
the kernel on a GPU. The distribution is that of the gradient that comes in; where that is constant, x is
too, so that all values counted are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import sigscale
from cases import ALPHA, BACKWARD, TRAINING
from distributions import generate, grid
from measure import Call
from quantile_cases import EXPONENTS, FIVE
from sigscale.kernels import activation

__all__ = ["EXPONENTS", "Case", "calls", "cases"]
MANTISSA_BITS = 3


@dataclass(frozen=True)
class Case:
    """`others` where the ways that take a second pass take part."""

    function: str
    direction: str
    values: str
    dtype: torch.dtype
    exponent: int
    device: torch.device
    others: bool

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        return {
            "kind": "backward",
            "function": self.function,
            "direction": self.direction,
            "values": self.values,
            "dtype": self.dtype_name,
            "elements": 1 << self.exponent,
        }

    def __str__(self) -> str:
        return f"{self.function}-{self.direction}-{self.values}-{self.dtype_name}-2^{self.exponent}"


def cases(device: torch.device, dtypes: Sequence[torch.dtype], exponents: Sequence[int]) -> Iterator[Case]:
    """The grid for a device, of the first function: `cases.py` has all of them, on Gaussian values."""
    function = next(iter(sigscale.FUNCTIONS))
    for dtype in dtypes:
        for direction in (TRAINING, BACKWARD):
            for values, exponent in grid(device, exponents):
                yield Case(function, direction, values, dtype, exponent, device, direction == TRAINING)


def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The ways, ready to be timed, checked against each other; and why some refuse."""
    n = 1 << case.exponent
    g = generate(case.values, n, case.dtype, case.device)
    x = generate("constant" if case.values == "constant" else "Gaussian", n, case.dtype, case.device, seed=1)
    sketch = sigscale.QuantileSketch(MANTISSA_BITS, device=case.device)
    differentiate = through_autograd if case.direction == TRAINING else by_launch
    gradient, counted = differentiate(case.function, x, g, sketch)
    check(case, gradient, counted, sketch)
    bound: dict[str, Call] = {"no sketch": gradient, "sigscale": counted}
    refused = {}
    if case.others:
        q = torch.tensor(FIVE, dtype=case.dtype, device=case.device)
        bound["second pass"] = lambda: sketch.update(gradient())
        bound["torch.quantile"] = lambda: torch.quantile(gradient(), q)
        try:
            bound["torch.quantile"]()
        except RuntimeError as error:
            refused["torch.quantile"] = str(error).split("\n")[0]
            del bound["torch.quantile"]
    return bound, refused


Gradient = Callable[[], Tensor]


def through_autograd(
    function: str, x: Tensor, g: Tensor, sketch: sigscale.QuantileSketch
) -> tuple[Gradient, Gradient]:
    f = getattr(sigscale, function)
    x.requires_grad_()
    return (
        lambda: torch.autograd.grad(f(x, ALPHA), x, g)[0],
        lambda: torch.autograd.grad(f(x, ALPHA, grad_sketch=sketch), x, g)[0],
    )


def by_launch(
    function: str, x: Tensor, g: Tensor, sketch: sigscale.QuantileSketch
) -> tuple[Gradient, Gradient]:
    """From what is kept by default: x in 16 bits, else the output."""
    entry, from_output = sigscale.FUNCTIONS[function], x.dtype.itemsize > 2
    saved = activation.forward(entry, x, ALPHA) if from_output else x
    counts = sketch.counts_on(x.device)
    return (
        lambda: activation.backward(entry, g, saved, ALPHA, from_output=from_output),
        lambda: activation.backward(
            entry, g, saved, ALPHA, from_output=from_output, counts=counts, m=MANTISSA_BITS
        ),
    )


def check(case: Case, gradient: Gradient, counted: Gradient, sketch: sigscale.QuantileSketch) -> None:
    """The same gradient with and without a sketch, bit for bit, and the sketch that of the gradient."""
    dx = counted()
    torch.testing.assert_close(gradient(), dx, rtol=0, atol=0, msg=f"counting changes the gradient in {case}")
    expected = sigscale.QuantileSketch(MANTISSA_BITS).update(dx).counts
    assert torch.equal(sketch.counts, expected), f"the sketch is not that of the gradient in {case}"
