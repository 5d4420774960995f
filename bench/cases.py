"""What is compared: the providers of one activation, the bytes it moves, and the check that they compute it.

Bytes are the least that the operation can move, the same for every provider, so that GB/s are comparable:

    forward             reads x, writes y                                   2 elements
    forward+backward    reads x, writes y; reads g and x (or y), writes dx  5 elements
    copy                reads x, writes y                                   2 elements
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softsign

import sigscale
from measure import Call
from sigscale.kernels.registry import Function

ALPHA = 2.0
FORWARD, TRAINING = "forward", "forward+backward"
ELEMENTS_MOVED = {FORWARD: 2, TRAINING: 5, "copy": 2}
PROVIDERS = ("sigscale", "eager", "compile", "plain", "copy")

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

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(name for name in PROVIDERS if self.compiles or name != "compile")

    def __str__(self) -> str:
        return f"{self.function}-{self.direction}-{self.dtype_name}-2^{self.exponent}"

    def gbps(self, provider: str, seconds: float) -> float:
        moved = ELEMENTS_MOVED["copy" if provider == "copy" else self.direction]
        return moved * self.elements * self.dtype.itemsize / seconds / 1e9


def cases(device: torch.device, dtypes: Sequence[torch.dtype], exponents: Sequence[int]) -> Iterator[Case]:
    """The grid for a device. On a CPU it is thinned out: 16-bit types for the first function only."""
    for function in sigscale.FUNCTIONS:
        for dtype in dtypes:
            if device.type == "cpu" and dtype.itemsize == 2 and function != next(iter(sigscale.FUNCTIONS)):
                continue
            for direction in (FORWARD, TRAINING):
                for exponent in exponents:
                    compiles = exponent in COMPILED[device.type]
                    yield Case(function, direction, dtype, exponent, device, compiles)


EXPONENTS = {"cpu": [10, 14, 17, 20, 22], "cuda": [*range(10, 29, 2)]}
COMPILED = {"cpu": {14, 20}, "cuda": {10, 16, 22, 28}}


def calls(case: Case) -> dict[str, Call]:
    """The providers of a case on its tensors, ready to be timed, each checked against fp64."""
    x, g = tensors(case)
    scaled = expressions(sigscale.FUNCTIONS[case.function])
    torch.compiler.reset()  # compiled for this very size, as in a program that has only this one
    scaled["compile"] = torch.compile(scaled["eager"])
    bound = {name: bind(scaled[name], x, g) for name in case.providers}
    check(case, bound, x, g)
    return bound


def tensors(case: Case) -> tuple[Tensor, Tensor | None]:
    """x, of standard deviation 3, and where there is a backward pass the gradient that comes in."""
    generator = torch.Generator(case.device).manual_seed(0)
    n = case.elements
    x = torch.randn(n, generator=generator, device=case.device).mul_(3).to(case.dtype)
    if case.direction == FORWARD:
        return x, None
    g = torch.randn(n, generator=generator, device=case.device).to(case.dtype)
    return x.requires_grad_(), g


def expressions(function: Function) -> dict[str, Callable[[Tensor], Tensor]]:
    """Every provider but torch.compile as a function of x."""
    f = BY_HAND.get(function.name, function.torch_value)
    fused = getattr(sigscale, function.name)

    def plain(x: Tensor) -> Tensor:
        return f(x if function.name in BY_HAND else x.clone())

    return {
        "sigscale": lambda x: fused(x, ALPHA),
        "eager": lambda x: ALPHA * f(x / ALPHA),
        "plain": plain,
        "copy": lambda x: x.detach().clone(),
    }


def bind(function: Callable[[Tensor], Tensor], x: Tensor, g: Tensor | None) -> Call:
    """The call to be timed: function(x), or with an incoming gradient g also its gradient."""
    if g is None or not function(x).requires_grad:
        return lambda: function(x)
    return lambda: torch.autograd.grad(function(x), x, g)[0]


def check(case: Case, bound: dict[str, Call], x: Tensor, g: Tensor | None) -> None:
    """Every provider's last result against fp64, within 8 units of the dtype's precision."""
    wide = x.detach().double().requires_grad_(x.requires_grad)
    exact = expressions(sigscale.FUNCTIONS[case.function])
    wide_g = None if g is None else g.double()
    for name, call in bound.items():
        expected = bind(exact["eager" if name in ("sigscale", "compile") else name], wide, wide_g)()
        assert isinstance(expected, Tensor)
        eps = 8 * torch.finfo(case.dtype).eps
        atol = eps * expected.abs().max().item()
        message = f"{name} is further than {eps:.2g} from fp64 in {case}"
        torch.testing.assert_close(call(), expected, rtol=eps, atol=atol, check_dtype=False, msg=message)
