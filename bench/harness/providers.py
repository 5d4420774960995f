"""One table of everything that is timed: key in the results, label, look, and maker of the activations.

Order is that of columns, lines and bars. A key that is missing here is an error wherever results are read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softsign

import sigscale

ALPHA = 2.0

Activation = Callable[[Tensor], Tensor]
Make = Callable[[str, Tensor], Activation]  # from the function's name, for tensors like this one

# What users write by hand; other functions are taken from the registry's PyTorch text.
BY_HAND: dict[str, Activation] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "arctan": torch.arctan,
    "softsign": softsign,
}


@dataclass(frozen=True)
class Provider:
    """`make` makes an activation; one that does `less` than sigscale is a limit or a baseline, no rival."""

    label: str
    color: str = "#999999"
    marker: str = "o"
    line: str = "-"
    make: Make | None = None
    less: bool = False
    plain: bool = False  # without alpha
    waits: bool = False  # for the device: cannot be captured in a graph


@dataclass(frozen=True)
class Learned:
    """An activation of x and of its alpha, whose gradient is asked for as well."""

    function: Callable[[Tensor, Tensor], Tensor]
    alpha: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, self.alpha)


def by_hand(function: str) -> Activation:
    return BY_HAND.get(function, sigscale.FUNCTIONS[function].torch_value)


def _sigscale(function: str, like: Tensor) -> Activation:
    return partial(getattr(sigscale, function), alpha=ALPHA)


def _sketch(function: str, like: Tensor) -> Activation:
    sketch = sigscale.QuantileSketch(device=like.device)
    return partial(getattr(sigscale, function), alpha=ALPHA, grad_sketch=sketch)


def _learned(function: str, like: Tensor) -> Activation:
    alpha = torch.full((1,), ALPHA, device=like.device, requires_grad=like.requires_grad)
    return Learned(getattr(sigscale, function), alpha)


def _plain(function: str, like: Tensor) -> Activation:
    return by_hand(function)


def _eager(function: str, like: Tensor) -> Activation:
    written = by_hand(function)
    return lambda x: ALPHA * written(x / ALPHA)


def _compile(function: str, like: Tensor) -> Activation:
    torch.compiler.reset()  # compiled for this very size, as in a program that has only this one
    return torch.compile(_eager(function, like))


def _copy(function: str, like: Tensor) -> Activation:
    return lambda x: x.detach().clone()


# Okabe and Ito's colors, which color-blind readers tell apart; markers do so in grayscale. Black is the
# speed of memory, gray what does less, vermilion sigscale, orange what one writes by hand.
BLACK, GRAY, ORANGE, SKY, GREEN = "#000000", "#999999", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PROVIDERS = {
    "no sketch": Provider("not counted", GRAY, "v", less=True),
    "fixed alpha": Provider("fixed alpha", GRAY, "v", less=True),
    "no monitor": Provider("no monitor", GRAY, "v", less=True),
    "plain": Provider("plain f, alpha = 1", GRAY, "v", make=_plain, less=True, plain=True),
    "sigscale": Provider("sigscale", VERMILION, "o", make=_sigscale),
    "sigscale, sketch": Provider("sigscale, gradient counted", VERMILION, "*", "--", _sketch),
    "sigscale, learned": Provider("sigscale, alpha learned", VERMILION, "d", ":", _learned),
    "sigscale, monitored": Provider("monitored", VERMILION),
    "sigscale, every tenth step": Provider("sigscale, monitored every tenth step", VERMILION),
    "sigscale, eager": Provider("sigscale, not compiled", VERMILION),
    "sigscale, exact": Provider("foreach_quantile of parameters", VERMILION),
    "sigscale, scaled": Provider("scaled", VERMILION),
    "sigscale, regularized": Provider("regularized", VERMILION),
    "sigscale, relu": Provider("relu, regularized", VERMILION),
    "eager": Provider("eager alpha * f(x / alpha)", ORANGE, "s", make=_eager),
    "compile": Provider("torch.compile of that", SKY, "D", make=_compile),
    "copy": Provider("copy (x.clone())", BLACK, "", "--", _copy, less=True, plain=True),
    "PyTorch": Provider("PyTorch operations", BLUE, "P"),
    "second pass": Provider("a second pass", PURPLE, "X"),
    "torch.quantile": Provider("torch.quantile", BLUE, "P"),
    "torch.sort": Provider("torch.sort", GREEN, "^"),
    "torch.kthvalue": Provider("torch.kthvalue", PURPLE, "X"),
    "torch.histc": Provider("torch.histc of log2 abs(x)", ORANGE, "s"),
    "wandb": Provider("recipe of wandb.watch", PURPLE, "X", waits=True),
    "numpy": Provider("numpy", SKY, "D", waits=True),
    "read": Provider("read (x.sum())", BLACK, "", "--", less=True),
    "batch norm": Provider("batch normalization", YELLOW, "h"),
    "relu": Provider("relu", GRAY, "v", less=True),
}
WAITING = tuple(name for name, of in PROVIDERS.items() if of.waits)


def provider(name: str) -> Provider:
    """The entry of a provider that results name."""
    if name not in PROVIDERS:
        raise LookupError(f"unknown provider {name!r}: add it to PROVIDERS in bench/harness/providers.py")
    return PROVIDERS[name]


def made(name: str, function: str, like: Tensor) -> Activation:
    """A provider's function of tensors like this one."""
    make = PROVIDERS[name].make
    assert make is not None, f"{name} is no activation"
    return make(function, like)
