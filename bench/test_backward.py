"""Backward passes that do more: count the gradient (`grad_sketch`), or learn alpha.

    kind        provider         what
    backward    no sketch        the gradient alone
                sigscale         with grad_sketch: counted by the kernel that computes it
                second pass      the gradient, then QuantileSketch.update of it
                torch.quantile   the gradient, then five quantiles of it, exactly
    learned     fixed alpha      a number, the gradient from the saved input
                sigscale         a tensor: one alpha for all, or one for each of 64 channels, in memory the
                                 last or, with 256 elements each, not the last dimension
                eager            alpha * f(x / alpha) with that tensor, written by hand

Directions: forward+backward through autograd, and the backward pass alone, as it is launched, which shows the
kernel on a GPU. Where the incoming gradient is constant, x is too, so that all values counted are alike.
Aims on a GPU: counting costs 1.02 in fp32 and 1.03 in bf16 from 2^26 elements on, 2.5 us more than that up to
2^22; learning alpha 1.05 at 2^26.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import sigscale
from bench.harness.activations import BACKWARD, TRAINING
from bench.harness.inputs import FIVE, dtype_name, generate, grid
from bench.harness.internals import MANTISSA_BITS, backward_launches, learned_launches
from bench.harness.options import Settings, settings
from bench.harness.providers import ALPHA, WAITING, by_hand
from bench.harness.timing import OURS, Bench, replayed

EXPONENTS = {"cpu": [10, 14, 17, 20], "cuda": [*range(10, 29, 2)]}
SHAPES = {"layer": (-1,), "channels last": (-1, 64), "channels": (-1, 64, 256)}
CHANNELS_FROM = 14  # exponent
BASELINE = {"backward": "no sketch", "learned": "fixed alpha"}
Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """`values` are those of the incoming gradient, `alphas` their shape where alpha learns."""

    kind: str
    direction: str
    dtype: torch.dtype
    exponent: int
    device: torch.device
    values: str = "Gaussian"
    alphas: str = ""

    @property
    def function(self) -> str:
        return next(iter(sigscale.FUNCTIONS))

    @property
    def record(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        about = {"kind": self.kind, "function": self.function, "direction": self.direction}
        of = {"alphas": self.alphas} if self.kind == "learned" else {"values": self.values}
        return {**about, **of, "dtype": dtype_name(self.dtype), "elements": 1 << self.exponent}

    def __str__(self) -> str:
        of = self.alphas or self.values
        return f"{self.kind}-{self.direction}-{of}-{dtype_name(self.dtype)}-2^{self.exponent}"


def cases(given: Settings) -> Iterator[Case]:
    """The grid for a device, of the first function; `test_activations.py` has all, with one alpha."""
    sizes = given.sizes(EXPONENTS)
    for dtype in given.dtypes:
        for direction in (TRAINING, BACKWARD):
            for values, exponent in grid(given.device, sizes):
                yield Case("backward", direction, dtype, exponent, given.device, values=values)
            for alphas in SHAPES:
                for exponent in sizes:
                    if alphas == "layer" or exponent >= CHANNELS_FROM:
                        yield Case("learned", direction, dtype, exponent, given.device, alphas=alphas)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = [*cases(settings(metafunc.config))]
    metafunc.parametrize("case", chosen, ids=map(str, chosen))


def test_backward(bench: Bench, case: Case) -> None:
    bound, refused = (learning if case.kind == "learned" else counting)(case)
    timed = replayed(bound, case.device, WAITING)
    bench.compare(case.record, timed, refused, baseline=BASELINE[case.kind])
    bench.steady(case.kind, bound[OURS])


def counting(case: Case) -> tuple[Ways, dict[str, str]]:
    """The ways to count, checked against each other; and why some refuse."""
    n = 1 << case.exponent
    g = generate(case.values, n, case.dtype, case.device)
    x = generate("constant" if case.values == "constant" else "Gaussian", n, case.dtype, case.device, seed=1)
    sketch = sigscale.QuantileSketch(MANTISSA_BITS, device=case.device)
    if case.direction == BACKWARD:
        gradient, counted = backward_launches(case.function, x, g, ALPHA, sketch)
    else:
        f = getattr(sigscale, case.function)
        x.requires_grad_()
        gradient = lambda: torch.autograd.grad(f(x, ALPHA), x, g)  # noqa: E731
        counted = lambda: torch.autograd.grad(f(x, ALPHA, grad_sketch=sketch), x, g)  # noqa: E731
    check_counting(case, gradient, counted, sketch)
    bound: Ways = {"no sketch": gradient, OURS: counted}
    refused: dict[str, str] = {}
    if case.direction == TRAINING:
        q = torch.tensor(FIVE, dtype=case.dtype, device=case.device)
        bound["second pass"] = lambda: sketch.update(gradient()[0])
        bound["torch.quantile"] = lambda: torch.quantile(gradient()[0], q)
        try:
            bound["torch.quantile"]()
        except RuntimeError as error:
            refused["torch.quantile"] = str(error).split("\n")[0]
            del bound["torch.quantile"]
    return bound, refused


def check_counting(
    case: Case,
    gradient: Callable[[], Sequence[Tensor]],
    counted: Callable[[], Sequence[Tensor]],
    sketch: sigscale.QuantileSketch,
) -> None:
    """The same gradient with and without a sketch, bit for bit, and the sketch that of the gradient."""
    (dx,) = counted()
    message = f"counting changes the gradient in {case}"
    torch.testing.assert_close(gradient()[0], dx, rtol=0, atol=0, msg=message)
    expected = sigscale.QuantileSketch(MANTISSA_BITS).update(dx).counts
    assert torch.equal(sketch.counts, expected), f"the sketch is not that of the gradient in {case}"


def learning(case: Case) -> tuple[Ways, dict[str, str]]:
    """The ways to learn alpha, checked against each other; none refuses."""
    x, g = (
        generate("Gaussian", 1 << case.exponent, case.dtype, case.device, seed).reshape(SHAPES[case.alphas])
        for seed in range(2)
    )
    alpha = torch.full((1 if case.alphas == "layer" else x.shape[1],), ALPHA, device=case.device)
    if case.direction == BACKWARD:
        fixed, learned = learned_launches(case.function, x, g, ALPHA, alpha)
        bound: Ways = {"fixed alpha": fixed, OURS: learned}
    else:
        bound = through_autograd(case.function, x.requires_grad_(), g, alpha.requires_grad_())
    check_learning(case, bound)
    return bound, {}


def through_autograd(function: str, x: Tensor, g: Tensor, alpha: Tensor) -> Ways:
    f, written = getattr(sigscale, function), by_hand(function)

    def eager() -> Sequence[Tensor]:
        scale = alpha.reshape(-1, *(1,) * max(x.ndim - 2, 0)).to(x.dtype)
        return torch.autograd.grad(scale * written(x / scale), (x, alpha), g)

    return {
        "fixed alpha": lambda: torch.autograd.grad(f(x, ALPHA, save="input"), x, g),
        OURS: lambda: torch.autograd.grad(f(x, alpha), (x, alpha), g),
        "eager": eager,
    }


def check_learning(case: Case, bound: Mapping[str, Callable[[], Sequence[Tensor]]]) -> None:
    """The same gradient of x with a number and with a tensor, and that of alpha as by hand, to rounding."""
    results = {name: way() for name, way in bound.items()}
    rounding = 2e-2 if case.dtype.itemsize == 2 else 1e-4
    for name, other in results.items():
        torch.testing.assert_close(
            results[OURS][: len(other)],
            tuple(other),
            rtol=rounding,
            atol=rounding * (1 << case.exponent) ** 0.5 if name == "eager" else rounding,
            msg=f"{case}: sigscale and {name} differ",
        )
