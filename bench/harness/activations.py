"""One activation on one tensor: who takes part, the bytes it moves, and the check that all compute it.

Bytes are the least that the operation can move, the same for every provider, so that GB/s are comparable:

    forward             reads x, writes y                                   2 elements
    backward            reads g and x (or y), writes dx                     3 elements
    forward+backward    both                                                5 elements
    copy                reads x, writes y, in every direction               2 elements
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch

import sigscale
from bench.harness import providers
from bench.harness.inputs import dtype_name
from bench.harness.providers import PEERS, PROVIDERS, Activation, Learned, made
from bench.harness.timing import FLUSH_BYTES, Call

FORWARD, BACKWARD, TRAINING = "forward", "backward", "forward+backward"
ELEMENTS_MOVED = {FORWARD: 2, BACKWARD: 3, TRAINING: 5, "copy": 2}
# Tensors that all providers together hold at the worst: alone, with what each keeps for its backward pass.
TENSORS_HELD = {FORWARD: 6, BACKWARD: 26, TRAINING: 12}
OTHERS = ("compile", *PEERS)  # which may fail or be wrong: that is a result as well
CHECKED = 1 << 20  # elements at the start and the end of a tensor

EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 31, 2)]}
COMPILED = {"cpu": {20}, "cuda": {10, 16, 28}}  # for the first function; takes seconds a case
SELDOM: dict[str, set[int]] = {"cpu": set(), "cuda": {28}}  # for others


@dataclass(frozen=True)
class Case:
    """One operation on one tensor; `compiles` where torch.compile takes part."""

    function: str
    direction: str
    dtype: torch.dtype
    exponent: int
    device: torch.device
    compiles: bool

    @property
    def elements(self) -> int:
        return 1 << self.exponent

    @property
    def refused(self) -> dict[str, str]:
        """Kernels of other packages that do not run here, and why."""
        return dict(providers.absent(self.device)) if self.function == providers.PEERS_OF else {}

    @property
    def providers(self) -> tuple[str, ...]:
        """Those that take part; a sketch changes nothing of a forward pass."""
        left_out = {*PEERS} if self.function != providers.PEERS_OF else {*self.refused}
        left_out |= {name for name, least in providers.LEAST.items() if self.elements < least}
        left_out |= set() if self.compiles else {"compile"}
        left_out |= {"sigscale, sketch"} if self.direction == FORWARD else set()
        return tuple(name for name, of in PROVIDERS.items() if of.make and name not in left_out)

    @property
    def about(self) -> dict[str, Any]:
        """What is measured, as it stands in the results."""
        what = {"function": self.function, "direction": self.direction}
        return {**what, "dtype": dtype_name(self.dtype), "elements": self.elements}

    def __str__(self) -> str:
        return f"{self.function}-{self.direction}-{dtype_name(self.dtype)}-2^{self.exponent}"

    def too_large(self) -> str:
        """Why the case does not fit into memory, or nothing."""
        held = TENSORS_HELD[self.direction] * self.elements * self.dtype.itemsize
        needed, free = held + FLUSH_BYTES * (self.device.type == "cuda"), free_memory(self.device)
        if needed <= free:
            return ""
        return f"{self} needs {needed / 2**30:.1f} GiB of memory, but only {free / 2**30:.1f} are free"


def free_memory(device: torch.device) -> int:
    """Bytes that a program may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def gbps(record: Mapping[str, Any]) -> float:
    """Effective bandwidth of a result."""
    moved = ELEMENTS_MOVED["copy" if record["provider"] == "copy" else record["direction"]]
    itemsize = getattr(torch, record["dtype"]).itemsize
    return float(moved * record["elements"] * itemsize / record["seconds"] / 1e9)


def cases(device: torch.device, dtypes: Sequence[torch.dtype], exponents: Sequence[int]) -> Iterator[Case]:
    """The grid for a device. On a CPU it is thinned out: 16-bit types for the first function only."""
    first = next(iter(sigscale.FUNCTIONS))
    for function in sigscale.FUNCTIONS:
        for dtype in dtypes:
            if device.type == "cpu" and dtype.itemsize == 2 and function != first:
                continue
            for direction in (FORWARD, BACKWARD, TRAINING):
                for exponent in exponents:
                    compiles = exponent in (COMPILED if function == first else SELDOM)[device.type]
                    yield Case(function, direction, dtype, exponent, device, compiles)


def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The providers of a case on its tensors, ready to be timed, each checked against fp64; who refuses."""
    x, g = tensors(case)
    bound: dict[str, Call] = {}
    refused, alone = case.refused, case.direction == BACKWARD
    with functorch.patch(donated_buffer=not alone):  # the graph is kept
        for name in case.providers:
            try:
                bound[name] = call = bind(made(name, case.function, x), x, g, backward_alone=alone)
                call()
                if name in OTHERS:
                    check(case, {name: call}, x, g)
            except Exception as error:
                if name not in OTHERS:
                    raise
                bound.pop(name, None)
                refused[name] = f"{error!r}".split("\n")[0]
    check(case, {name: call for name, call in bound.items() if name not in OTHERS}, x, g)
    return bound, refused


def tensors(case: Case) -> tuple[Tensor, Tensor | None]:
    """x, of standard deviation 3, and where there is a backward pass the gradient that comes in."""
    generator = torch.Generator(case.device).manual_seed(0)
    n = case.elements
    x = torch.randn(n, generator=generator, device=case.device).mul_(3).to(case.dtype)
    if case.direction == FORWARD:
        return x, None
    g = torch.randn(n, generator=generator, device=case.device).to(case.dtype)
    return x.requires_grad_(), g


def bind(function: Activation, x: Tensor, g: Tensor | None, backward_alone: bool = False) -> Call:
    """The call to be timed: function(x), or with an incoming gradient g also its gradient, or only that."""
    if g is None:
        return lambda: function(x)
    inputs = (x, function.alpha) if isinstance(function, Learned) else (x,)
    y = function(x)
    if not y.requires_grad:
        return lambda: function(x)
    if backward_alone:
        return lambda: torch.autograd.grad(y, inputs, g, retain_graph=True)[0]
    return lambda: torch.autograd.grad(function(x), inputs, g)[0]


def check(case: Case, bound: Mapping[str, Call], x: Tensor, g: Tensor | None) -> None:
    """Every provider's result against fp64 where the tensor starts and ends, to 8 units of the precision."""
    eps = 8 * torch.finfo(case.dtype).eps
    for part in (slice(CHECKED), slice(-CHECKED, None))[: 1 + (case.elements > CHECKED)]:
        wide = x.detach()[part].double().requires_grad_(x.requires_grad)
        wide_g = None if g is None else g[part].double()
        truths: dict[str, object] = {}
        for name, call in bound.items():
            alike = name if name == "copy" else "plain" if PROVIDERS[name].plain else "eager"
            if alike not in truths:
                truths[alike] = bind(made(alike, case.function, wide), wide, wide_g)()
            result, truth = call(), truths[alike]
            assert isinstance(result, Tensor)
            assert isinstance(truth, Tensor)
            message = f"{name} is further than {eps:.2g} from fp64 in {case}"
            atol = eps * truth.abs().max().item()
            torch.testing.assert_close(
                result[part], truth, rtol=eps, atol=atol, check_dtype=False, msg=message
            )
