"""What is compared: the providers of one activation, the bytes it moves, and the check that they compute it.

    sigscale             the activation
    sigscale, sketch     the same, its gradient counted by the backward pass
    sigscale, learned    the same, with an alpha that learns
    eager                alpha * f(x / alpha), written by hand
    compile              torch.compile of that
    plain                f of PyTorch, without alpha
    copy                 x.clone(), in every direction
    liger, flag_gems     kernels of other packages, see `peers.py`

Bytes are the least that the operation can move, the same for every provider, so that GB/s are comparable:

    forward             reads x, writes y                                   2 elements
    backward            reads g and x (or y), writes dx                     3 elements
    forward+backward    both                                                5 elements
    copy                reads x, writes y                                   2 elements
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import softsign

import peers
import sigscale
from measure import FLUSH_BYTES, Call
from sigscale.kernels.registry import Function

ALPHA = 2.0
FORWARD, BACKWARD, TRAINING = "forward", "backward", "forward+backward"
ELEMENTS_MOVED = {FORWARD: 2, BACKWARD: 3, TRAINING: 5, "copy": 2}
# Tensors that all providers together hold at the worst: alone, with what each keeps for its backward pass.
TENSORS_HELD = {FORWARD: 6, BACKWARD: 26, TRAINING: 12}
SKETCH, LEARNED = "sigscale, sketch", "sigscale, learned"
VARIANTS = (SKETCH, LEARNED)
PROVIDERS = ("sigscale", *VARIANTS, "eager", "compile", "plain", "copy", *peers.PEERS)
PEERS_OF = "tanh"
OTHERS = ("compile", *peers.PEERS)  # which may fail or be wrong: that is a result as well
CHECKED = 1 << 20  # elements at the start and the end of a tensor

# What users write by hand; a function that is not listed is taken from the registry's PyTorch text.
BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "arctan": torch.arctan,
    "softsign": softsign,
}


@dataclass(frozen=True)
class Case:
    """One operation on one tensor; `compiles` where torch.compile takes part, which costs seconds a case."""

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
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def peers(self) -> tuple[dict[str, peers.Made], dict[str, str]]:
        if self.function != PEERS_OF:
            return {}, {}
        here, absent = peers.found(self.device)
        return {
            name: made for name, made in here.items() if self.elements >= peers.LEAST.get(name, 0)
        }, absent

    @property
    def providers(self) -> tuple[str, ...]:
        """Those that take part; a sketch changes nothing of a forward pass."""
        left_out = {*peers.PEERS} - {*self.peers[0]}
        left_out |= set() if self.compiles else {"compile"}
        left_out |= {SKETCH} if self.direction == FORWARD else set()
        return tuple(name for name in PROVIDERS if name not in left_out)

    def __str__(self) -> str:
        return f"{self.function}-{self.direction}-{self.dtype_name}-2^{self.exponent}"

    def gbps(self, provider: str, seconds: float) -> float:
        moved = ELEMENTS_MOVED["copy" if provider == "copy" else self.direction]
        return moved * self.elements * self.dtype.itemsize / seconds / 1e9

    def too_large(self) -> str:
        """Why the case does not fit into memory, or nothing."""
        held = TENSORS_HELD[self.direction] * self.elements * self.dtype.itemsize
        needed, there = held + FLUSH_BYTES * (self.device.type == "cuda"), free_memory(self.device)
        if needed <= there:
            return ""
        return f"{self} takes {needed / 2**30:.1f} GiB of memory, of which {there / 2**30:.1f} are free"


def free_memory(device: torch.device) -> int:
    """Bytes that a program may still take."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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


EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 31, 2)]}
COMPILED = {"cpu": {14, 20}, "cuda": {10, 16, 28}}  # for the first function
SELDOM = {"cpu": {20}, "cuda": {28}}  # for others


def calls(case: Case) -> tuple[dict[str, Call], dict[str, str]]:
    """The providers of a case on its tensors, ready to be timed, each checked against fp64; who refuses."""
    x, g = tensors(case)
    written = provided(case, x)
    bound: dict[str, Call] = {}
    refused = dict(case.peers[1])
    with torch._functorch.config.patch(donated_buffer=case.direction != BACKWARD):  # the graph is kept
        for name in case.providers:
            try:
                bound[name] = call = bind(written[name], x, g, backward_alone=case.direction == BACKWARD)
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


@dataclass(frozen=True)
class Learned:
    """An activation of x and of its alpha, whose gradient is asked for as well."""

    function: Callable[[Tensor, Tensor], Tensor]
    alpha: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, self.alpha)


def provided(case: Case, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """All providers as functions of x."""
    written = expressions(sigscale.FUNCTIONS[case.function])
    fused, sketch = getattr(sigscale, case.function), sigscale.QuantileSketch(device=case.device)
    alpha = torch.full((1,), ALPHA, device=case.device, requires_grad=x.requires_grad)
    torch.compiler.reset()  # compiled for this very size, as in a program that has only this one
    return {
        **written,
        SKETCH: lambda x: fused(x, ALPHA, grad_sketch=sketch),
        LEARNED: Learned(fused, alpha),
        "compile": torch.compile(written["eager"]),
        **{name: made(ALPHA, x) for name, made in case.peers[0].items()},
    }


def expressions(function: Function) -> dict[str, Callable[[Tensor], Tensor]]:
    """sigscale, and what stands beside it in plain PyTorch."""
    f = BY_HAND.get(function.name, function.torch_value)
    fused = getattr(sigscale, function.name)

    return {
        "sigscale": lambda x: fused(x, ALPHA),
        "eager": lambda x: ALPHA * f(x / ALPHA),
        "plain": f,
        "copy": lambda x: x.detach().clone(),
    }


def bind(
    function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor | None, backward_alone: bool = False
) -> Call:
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
    exact = expressions(sigscale.FUNCTIONS[case.function])
    alike = {"plain": "plain", "copy": "copy"} | dict.fromkeys(peers.PLAIN, "plain")
    eps = 8 * torch.finfo(case.dtype).eps
    for part in (slice(CHECKED), slice(-CHECKED, None))[: 1 + (case.elements > CHECKED)]:
        wide = x.detach()[part].double().requires_grad_(x.requires_grad)
        wide_g = None if g is None else g[part].double()
        expected = {name: bind(exact[name], wide, wide_g)() for name in {"eager", *alike.values()}}
        for name, call in bound.items():
            result, truth = call(), expected[alike.get(name, "eager")]
            assert isinstance(result, Tensor)
            assert isinstance(truth, Tensor)
            message = f"{name} is further than {eps:.2g} from fp64 in {case}"
            atol = eps * truth.abs().max().item()
            torch.testing.assert_close(
                result[part], truth, rtol=eps, atol=atol, check_dtype=False, msg=message
            )
