"""One activation on one tensor: who takes part, the bytes it moves, and the check that all compute it.

Bytes are the least that the operation can move, the same for every provider, so that GB/s are comparable:

    forward             reads x, writes y                                   2 elements
    backward            reads g and x (or y), writes dx                     3 elements
    forward+backward    both                                                5 elements
    copy                reads x, writes y, in every direction               2 elements
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

import sigscale
from bench.harness.inputs import Case, generate
from bench.harness.options import Settings
from bench.harness.providers import PROVIDERS, Activation, Learned, made
from bench.harness.timing import Call

FORWARD, BACKWARD, TRAINING = "forward", "backward", "forward+backward"
ELEMENTS_MOVED = {FORWARD: 2, BACKWARD: 3, TRAINING: 5, "copy": 2}
CHECKED = 1 << 18  # elements at the start and the end of a tensor
FIRST = next(iter(sigscale.FUNCTIONS))

EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 31, 2)]}
COMPILED = {"cpu": {20}, "cuda": {10, 16, 28}}  # for the first function; takes seconds a case


def providers(case: Case, compiles: bool) -> list[str]:
    """Those that take part; a sketch changes nothing of a forward pass, compiling takes seconds."""
    left_out = {"sigscale, sketch"} if case["direction"] == FORWARD else set()
    if not compiles or case["function"] != FIRST or case.exponent not in COMPILED[case.device.type]:
        left_out |= {"compile"}
    return [name for name, of in PROVIDERS.items() if of.make and name not in left_out]


def gbps(record: Mapping[str, Any]) -> float:
    """Effective bandwidth of a result."""
    moved = ELEMENTS_MOVED["copy" if record["provider"] == "copy" else record["direction"]]
    itemsize = getattr(torch, record["dtype"]).itemsize
    return float(moved * record["elements"] * itemsize / record["seconds"] / 1e9)


def cases(given: Settings) -> Iterator[Case]:
    """The grid for a device. On a CPU 16-bit types are measured for the first function only."""
    device = given.device
    for function in sigscale.FUNCTIONS:
        for dtype in given.dtypes:
            if device.type == "cpu" and dtype.itemsize == 2 and function != FIRST:
                continue
            for direction in (FORWARD, BACKWARD, TRAINING):
                what = (("kind", "activation"), ("function", function), ("direction", direction))
                for exponent in given.sizes(EXPONENTS):
                    yield Case(what, dtype, exponent, device)


def calls(case: Case, compiles: bool = False) -> tuple[dict[str, Call], dict[str, str]]:
    """The providers of a case on its tensors, ready to be timed, each checked against fp64; who refuses."""
    x, g = tensors(case)
    bound: dict[str, Call] = {}
    refused: dict[str, str] = {}
    alone = case["direction"] == BACKWARD
    with functorch.patch(donated_buffer=not alone):  # the graph is kept
        for name in providers(case, compiles):
            try:
                call = bind(made(name, case["function"], x), x, g, backward_alone=alone)
                check(case, name, call(), x, g)
                bound[name] = call
            except Exception as error:
                if name != "compile":
                    raise
                refused[name] = str(error).split("\n")[0]
    return bound, refused


def tensors(case: Case) -> tuple[Tensor, Tensor | None]:
    """x, of standard deviation 3, and where there is a backward pass the gradient that comes in."""
    x, g = (generate("Gaussian", case.elements, case.dtype, case.device, seed) for seed in range(2))
    x.mul_(3)
    return (x, None) if case["direction"] == FORWARD else (x.requires_grad_(), g)


def bind(function: Activation, x: Tensor, g: Tensor | None, backward_alone: bool = False) -> Call:
    """The call to be timed: function(x), or with an incoming gradient g also its gradient, or only that."""
    inputs = (x, function.alpha) if isinstance(function, Learned) else (x,)
    y = function(x)
    if g is None or not y.requires_grad:
        return lambda: function(x)
    if backward_alone:
        return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)[0]
    return lambda: torch.autograd.grad(function(x), inputs, g)[0]


def check(case: Case, name: str, result: Any, x: Tensor, g: Tensor | None) -> None:
    """A provider's result against fp64 where the tensor starts and ends, to 8 units of the precision."""
    eps = 8 * torch.finfo(case.dtype).eps
    alike = name if name == "copy" else "plain" if PROVIDERS[name].plain else "eager"
    for part in (slice(CHECKED), slice(-CHECKED, None))[: 1 + (case.elements > CHECKED)]:
        wide = x.detach()[part].double().requires_grad_(x.requires_grad)
        truth: Any = bind(
            made(alike, case["function"], wide), wide, None if g is None else g[part].double()
        )()
        message = f"{name} is further than {eps:.2g} from fp64 in {case}"
        atol = eps * truth.abs().max().item()
        torch.testing.assert_close(result[part], truth, rtol=eps, atol=atol, check_dtype=False, msg=message)
