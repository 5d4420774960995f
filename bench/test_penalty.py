"""What an L2 penalty adds to a training step: `WeightPenalty.attach` against other ways to the same gradient.

By gradient, the way of any optimizer, here of one that does nothing else:

    sigscale               step() with an attached penalty
    torch._foreach_add_    g += r theta by hand: reads g and theta, writes g, 3 elements moved per element
    in the loss            penalty() and its backward pass

By weight_decay, the way of SGD and most others: step() with an attached penalty, and with weight_decay=r.
Gradients are there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import sigscale
from comparison import OURS, compared
from measure import Call, device_timer, interleaved, waited_for
from nothing import Nothing
from options import Record, settings
from training import mlp

ROUNDS = 5
FACTOR = 2.0**-40  # so that gradients stay where they are, however often it is added
SMALL = 50


def small() -> list[Tensor]:
    return [torch.randn(64) for _ in range(SMALL)]


def of_mlp() -> list[Tensor]:
    return [parameter.detach() for parameter in mlp()[0].parameters()]


PARAMETERS: Mapping[str, Callable[[], list[Tensor]]] = {"50 of 64 elements": small, "12-layer MLP": of_mlp}


Ways = dict[str, Call]


def by_gradient(parameters: list[nn.Parameter]) -> Ways:
    optimizer = Nothing(parameters)
    sigscale.WeightPenalty(parameters, l2=FACTOR).attach(optimizer)
    copies = [parameter.detach().requires_grad_() for parameter in parameters]
    written = sigscale.WeightPenalty(copies, l2=FACTOR)

    @torch.no_grad()
    def by_hand() -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_add_(gradients, copies, alpha=FACTOR)

    return {
        OURS: optimizer.step,
        "torch._foreach_add_": by_hand,
        "in the loss": lambda: torch.autograd.grad(written(), copies),
    }


def by_weight_decay(parameters: list[nn.Parameter]) -> Ways:
    attached, stock = torch.optim.SGD(parameters, lr=0.0), torch.optim.SGD(parameters, lr=0.0)
    attachment = sigscale.WeightPenalty(parameters, l2=FACTOR).attach(attached)
    assert attachment.ways == ("weight_decay",)
    for group in stock.param_groups:
        group["weight_decay"] = FACTOR
    return {OURS: attached.step, "weight_decay": stock.step}


WAYS: Mapping[str, Callable[[list[nn.Parameter]], Ways]] = {
    "gradient": by_gradient,
    "weight_decay": by_weight_decay,
}


def check(parameters: list[nn.Parameter], call: Call) -> None:
    """One call adds r theta to the gradients; they are 0 again afterwards."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    call()
    for parameter in parameters:
        torch.testing.assert_close(parameter.grad, FACTOR * parameter.detach(), atol=0, rtol=1e-2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("dtype", settings(metafunc.config).dtypes, ids=str)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PARAMETERS)
def test_penalty(
    benchmark: BenchmarkFixture,
    record: Record,
    name: str,
    way: str,
    dtype: torch.dtype,
    pytestconfig: pytest.Config,
) -> None:
    device, seconds = settings(pytestconfig).device, settings(pytestconfig).seconds
    torch.manual_seed(0)
    parameters = [nn.Parameter(tensor.to(device, dtype)) for tensor in PARAMETERS[name]()]
    bound = WAYS[way](parameters)
    if way == "gradient":
        check(parameters, bound[OURS])
        check(parameters, bound["torch._foreach_add_"])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    timings = interleaved(bound, device_timer(device), seconds)
    case = {"parameters": name, "way": way, "dtype": str(dtype).removeprefix("torch.")}
    for result in compared(timings, {}):
        record(kind="penalty", **case, **result)
    benchmark.group = f"{name}, by {way}"
    ours = waited_for(bound[OURS], device)
    benchmark.pedantic(ours, rounds=ROUNDS, warmup_rounds=1)  # type: ignore[no-untyped-call]
