"""One table of everything that is timed: key in the results, label, look, and maker of the activations.

Order is that of columns, lines and bars. A key that is missing here is an error wherever results are read.
Kernels of other packages (`pip install -e ".[peers]"`) need a GPU: liger is liger-kernel's DyT,
gamma * tanh(x / alpha), which also learns gamma and alpha; flag_gems has tanh and tanh_backward, alpha is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softsign

import sigscale

ALPHA = 2.0
WIDTH = 4096  # features of a row of DyT, as in a transformer

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
    """`make` makes an activation; `package`, where it may be absent, runs on GPUs only."""

    label: str
    color: str = "#999999"
    marker: str = "o"
    line: str = "-"
    make: Make | None = None
    package: str = ""
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
    fused = getattr(sigscale, function)
    return lambda x: fused(x, ALPHA)


def _sketch(function: str, like: Tensor) -> Activation:
    fused, sketch = getattr(sigscale, function), sigscale.QuantileSketch(device=like.device)
    return lambda x: fused(x, ALPHA, grad_sketch=sketch)


def _learned(function: str, like: Tensor) -> Activation:
    alpha = torch.full((1,), ALPHA, device=like.device, requires_grad=like.requires_grad)
    return Learned(getattr(sigscale, function), alpha)


def _eager(function: str, like: Tensor) -> Activation:
    f = by_hand(function)
    return lambda x: ALPHA * f(x / ALPHA)


def _compile(function: str, like: Tensor) -> Activation:
    torch.compiler.reset()  # compiled for this very size, as in a program that has only this one
    return torch.compile(_eager(function, like))


def _plain(function: str, like: Tensor) -> Activation:
    return by_hand(function)


def _copy(function: str, like: Tensor) -> Activation:
    return lambda x: x.detach().clone()


def _liger(function: str, like: Tensor) -> Activation:
    from liger_kernel.ops.dyt import LigerDyTFunction

    slope = torch.full((1,), 1 / ALPHA, dtype=like.dtype, device=like.device)
    gamma = torch.full((WIDTH,), ALPHA, dtype=like.dtype, device=like.device)
    return lambda x: LigerDyTFunction.apply(x.view(-1, WIDTH), slope, gamma, None).view(-1)


def _flag_gems(function: str, like: Tensor) -> Activation:
    from flag_gems.ops.tanh import tanh, tanh_backward

    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            y: Tensor = tanh(x)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            dx: Tensor = tanh_backward(g, *ctx.saved_tensors)
            return dx

    return Tanh.apply  # type: ignore[no-any-return]


# Okabe and Ito's colors, which color-blind readers tell apart; markers do so in grayscale. Black is the
# speed of memory, gray what does less, vermilion sigscale, orange what one writes by hand.
BLACK, GRAY, ORANGE, SKY, GREEN = "#000000", "#999999", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PROVIDERS = {
    "no sketch": Provider("not counted", GRAY, "v"),
    "fixed alpha": Provider("fixed alpha", GRAY, "v"),
    "no monitor": Provider("no monitor", GRAY, "v"),
    "plain": Provider("plain f, alpha = 1", GRAY, "v", make=_plain, plain=True),
    "sigscale": Provider("sigscale", VERMILION, "o", make=_sigscale),
    "sigscale, sketch": Provider("sigscale, gradient counted", VERMILION, "*", "--", _sketch),
    "sigscale, learned": Provider("sigscale, alpha learned", VERMILION, "d", ":", _learned),
    "sigscale, monitored": Provider("sigscale, monitored", VERMILION, "*", "--"),
    "sigscale, every tenth step": Provider("GradientMonitor, every tenth step", VERMILION),
    "sigscale, activations": Provider("GradientMonitor, activations", VERMILION),
    "sigscale, parameters": Provider("GradientMonitor, parameters", VERMILION),
    "sigscale, exact": Provider("foreach_quantile of parameters", VERMILION),
    "sigscale, scaled": Provider("scaled", VERMILION),
    "sigscale, regularized": Provider("regularized", VERMILION),
    "sigscale, in the loss": Provider("penalty() in the loss", VERMILION),
    "sigscale, relu": Provider("relu, regularized", VERMILION),
    "JIT launch": Provider("sigscale by Triton's launcher", VERMILION, "x", ":"),
    "eager": Provider("eager alpha * f(x / alpha)", ORANGE, "s", make=_eager),
    "compile": Provider("torch.compile of that", SKY, "D", make=_compile),
    "liger": Provider("liger-kernel's DyT", GREEN, "^", make=_liger, package="liger-kernel"),
    "flag_gems": Provider(
        "flag_gems, alpha = 1", BLUE, "P", make=_flag_gems, package="flag-gems", plain=True
    ),
    "copy": Provider("copy (x.clone())", BLACK, "", "--", _copy, plain=True),
    "torch._foreach_add_": Provider("torch._foreach_add_", ORANGE, "s"),
    "loop": Provider("loop of add_", ORANGE, "s"),
    "in the loss": Provider("penalty in the loss", SKY, "D"),
    "weight_decay": Provider("weight_decay", BLUE, "P"),
    "second pass": Provider("a second pass", PURPLE, "X"),
    "torch.quantile": Provider("torch.quantile", BLUE, "P"),
    "torch.sort": Provider("torch.sort", GREEN, "^"),
    "torch.kthvalue": Provider("torch.kthvalue", PURPLE, "X"),
    "torch.histc": Provider("torch.histc of log2 abs(x)", ORANGE, "s"),
    "wandb": Provider("recipe of wandb.watch", PURPLE, "X", waits=True),
    "numpy": Provider("numpy", SKY, "D", waits=True),
    "read": Provider("read (x.sum())", BLACK, "", "--"),
    "one by one": Provider("one by one", GREEN, "^"),
    "batch norm": Provider("batch normalization", YELLOW, "h"),
    "relu": Provider("relu", GRAY, "v"),
    "torch.compile": Provider("torch.compile", SKY, "D"),
    "CUDA graph": Provider("CUDA graph", BLUE, "P"),
}
WAITING = tuple(name for name, of in PROVIDERS.items() if of.waits)
PEERS = tuple(name for name, of in PROVIDERS.items() if of.package)
PEERS_OF = "tanh"
LEAST = {"liger": WIDTH}  # elements; every other row width would be tuned anew, which takes seconds


def provider(name: str) -> Provider:
    """The entry of a provider that results name."""
    if name not in PROVIDERS:
        raise LookupError(f"unknown provider {name!r}: add it to PROVIDERS in bench/harness/providers.py")
    return PROVIDERS[name]


@cache
def absent(device: torch.device) -> dict[str, str]:
    """The peers that do not run on this device, and why."""
    why: dict[str, str] = {}
    for name in PEERS:
        package = PROVIDERS[name].package
        if device.type != "cuda":
            why[name] = f"{package} runs on GPUs only"
            continue
        try:
            made(name, PEERS_OF, torch.empty(0, device=device))
        except ModuleNotFoundError as error:
            why[name] = f"{package} is not installed: no module {error.name}"
        except Exception as error:  # whatever another package's import may raise
            why[name] = f"{package} cannot be imported: {error}".split("\n")[0]
    return why


def made(name: str, function: str, like: Tensor) -> Activation:
    """A provider's function of tensors like this one."""
    make = PROVIDERS[name].make
    assert make is not None, f"{name} is no activation"
    return make(function, like)
