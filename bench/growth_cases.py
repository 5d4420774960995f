"""Time against what grows, one thing at a time: what is timed by `test_growth.py`, checked before.

    series                      grows         providers
    tanh, forward+backward      elements      sigscale: tanh(x, 2); eager: 2 * torch.tanh(x / 2); copy
    sketch of a tensor          elements      sigscale: QuantileSketch.update; torch.histc; read: x.sum()
    five quantiles              elements      sigscale: quantile, exactly; torch.quantile
    five quantiles of each      tensors       sigscale: foreach_quantile; torch.quantile in a loop
    penalty's gradient          tensors       sigscale: a step with WeightPenalty.attach; loop: g += r theta,
                                              one by one; in the loss: penalty() and its backward pass
    step of an MLP              layers        plain: nn.Tanh; sigscale: nn.Tanh(2); and with a GradientMonitor
    step of the Table 3 network seeds         sigscale: all seeds as one network; one by one: each as its own

All in fp32; tensors of the series that count them have 1,024 elements each; the last two are in
`growth_training.py`. By the host's clock, calls in a row: on a GPU the next call is issued while the device
works on the last, hence `overlapped` where a call is a few launches and nothing else grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import quantile_cases
import sigscale
from cases import ALPHA, bind, expressions
from growth_training import layers, seeds
from measure import Call
from nothing import Nothing
from options import Settings
from quantile_cases import selecting_many

Make = Callable[[int, torch.device, ExitStack], Mapping[str, Call]]
ELEMENTS = {"cpu": [1 << e for e in range(8, 21, 2)], "cuda": [1 << e for e in range(8, 29, 2)]}
TENSORS = {kind: [1, 4, 16, 64, 256, 1024] for kind in ("cpu", "cuda")}
LAYERS = {kind: [2, 4, 8, 16, 32, 64] for kind in ("cpu", "cuda")}
SEEDS = {"cpu": [1, 2, 4, 8], "cuda": [1, 5, 25]}
TENSOR = 1024
TRIAL = 3  # sizes of a series in a trial
FACTOR = 2.0**-40  # of the penalty: gradients stay where they are, however often it is added


@dataclass(frozen=True)
class Series:
    """`make` gives the calls at a size, checked; what is to be closed afterwards goes to its stack.

    `baseline` is what does less than the others; `moved` the least bytes a unit, where work is moving data.
    """

    name: str
    unit: str
    sizes: Mapping[str, Sequence[int]]
    make: Make
    baseline: str | None = None
    moved: Mapping[str, int] = field(default_factory=dict)

    def chosen(self, given: Settings) -> Sequence[int]:
        """All sizes for the kind of device; where sizes of tensors are given, a trial, the smallest."""
        return self.sizes[given.device.type][: TRIAL if given.exponents else None]

    def record(self, n: int, device: torch.device, provider: str) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        amount = f"2^{n.bit_length() - 1}" if self.unit == "elements" else f"{n:,}"
        unit = self.unit if n > 1 else self.unit.removesuffix("s")
        return {
            "kind": "growth",
            "series": self.name,
            "unit": self.unit,
            "n": n,
            "size": f"{amount} {unit}",
            "bytes": self.moved.get(provider),
            "overlapped": device.type == "cuda" and self.unit == "elements",
        }


def activation(n: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """Values against a copy, gradients against those of the formula, both in fp64."""
    x, g = torch.randn(2, n, generator=torch.Generator(device).manual_seed(0), device=device)
    written = expressions(sigscale.FUNCTIONS["tanh"])
    slope = 1 - torch.tanh(x.double() / ALPHA) ** 2
    x.requires_grad_()
    calls = {name: bind(written[name], x, g) for name in ("sigscale", "eager", "copy")}
    for name, call in calls.items():
        expected = x.detach() if name == "copy" else (g * slope).to(x.dtype)
        torch.testing.assert_close(call(), expected, rtol=1e-5, atol=1e-6, msg=f"{name}, {n}: is not tanh's")
    return calls


def sketch(n: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    return _of_a_tensor("sketch", n, device, ("sigscale", "torch.histc", "read"))


def five(n: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    return _of_a_tensor("five", n, device, ("sigscale", "torch.quantile"))


def _of_a_tensor(task: str, n: int, device: torch.device, names: Sequence[str]) -> dict[str, Call]:
    """Those of `quantile_cases`, but for who refuses so large a tensor."""
    case = quantile_cases.Case(task, "Gaussian", torch.float32, n.bit_length() - 1, device)
    calls, _ = quantile_cases.calls(case)
    return {name: calls[name] for name in names if name in calls}


def many(n: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    gradients = [*torch.randn(n, TENSOR, generator=torch.Generator(device).manual_seed(0), device=device)]
    bound = selecting_many(gradients)
    calls = {name: bound[name] for name in ("sigscale", "torch.quantile")}
    q = torch.tensor(quantile_cases.FIVE, dtype=torch.float64, device=device)
    expected = [torch.quantile(gradient.double(), q).float() for gradient in gradients]
    for name, call in calls.items():
        torch.testing.assert_close(
            call(), expected, rtol=1e-5, atol=1e-5, msg=f"{name}, {n}: wrong quantiles"
        )
    return calls


def penalty(n: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """Each way adds FACTOR * theta to the gradient, which is exact, or returns it."""
    values = torch.randn(n, TENSOR, generator=torch.Generator(device).manual_seed(0), device=device)
    parameters = [nn.Parameter(value) for value in values]
    optimizer = Nothing(parameters)
    sigscale.WeightPenalty(parameters, l2=FACTOR).attach(optimizer)
    copies = [value.clone().requires_grad_() for value in values]
    written = sigscale.WeightPenalty(copies, l2=FACTOR)

    @torch.no_grad()
    def loop() -> None:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.add_(parameter, alpha=FACTOR)

    calls: dict[str, Callable[[], Any]] = {
        "sigscale": optimizer.step,
        "loop": loop,
        "in the loss": lambda: torch.autograd.grad(written(), copies),
    }
    for name, call in calls.items():
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        found = call() or [parameter.grad for parameter in parameters]
        torch.testing.assert_close(
            [*found], [*FACTOR * values], rtol=1e-6, atol=0, msg=f"{name}, {n}: not theta's"
        )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return calls


SERIES = (
    Series(
        "tanh, forward+backward",
        "elements",
        ELEMENTS,
        activation,
        "copy",
        {"sigscale": 20, "eager": 20, "copy": 8},
    ),
    Series(
        "sketch of a tensor",
        "elements",
        ELEMENTS,
        sketch,
        "read",
        dict.fromkeys(("sigscale", "torch.histc", "read"), 4),
    ),
    Series(
        "five quantiles", "elements", ELEMENTS, five, moved=dict.fromkeys(("sigscale", "torch.quantile"), 4)
    ),
    Series("five quantiles of each", "tensors", TENSORS, many),
    Series("penalty's gradient", "tensors", TENSORS, penalty),
    Series("step of an MLP", "layers", LAYERS, layers, "plain"),
    Series("step of the Table 3 network", "seeds", SEEDS, seeds),
)
