"""Kernels of other packages that compute tanh, where they are installed: `pip install -e ".[peers]"`.

    liger        liger-kernel's DyT, gamma * tanh(x / alpha), which also learns gamma and alpha
    flag_gems    flag_gems' tanh and tanh_backward, from the saved output; alpha is 1

Both need a GPU. Those that are not there are named in the results, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
Made = Callable[[float, Tensor], Activation]  # of alpha, for tensors like this one
WIDTH = 4096  # features of a row of DyT, as in a transformer


def liger() -> Made:
    from liger_kernel.ops.dyt import LigerDyTFunction

    def made(alpha: float, like: Tensor) -> Activation:
        slope = torch.full((1,), 1 / alpha, dtype=like.dtype, device=like.device)
        gamma = torch.full((WIDTH,), alpha, dtype=like.dtype, device=like.device)
        return lambda x: LigerDyTFunction.apply(x.view(-1, WIDTH), slope, gamma, None).view(-1)

    return made


def flag_gems() -> Made:
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

    def of_tanh(x: Tensor) -> Tensor:
        y: Tensor = Tanh.apply(x)
        return y

    return lambda alpha, like: of_tanh


PEERS = {"liger": ("liger-kernel", liger), "flag_gems": ("flag-gems", flag_gems)}
PLAIN = ("flag_gems",)  # those without alpha
LEAST = {"liger": WIDTH}  # elements; each other width of a row would be tuned for anew, which takes seconds


@cache
def found(device: torch.device) -> tuple[dict[str, Made], dict[str, str]]:
    """The peers that can be asked here, and why others cannot."""
    here: dict[str, Made] = {}
    absent: dict[str, str] = {}
    for name, (package, load) in PEERS.items():
        if device.type != "cuda":
            absent[name] = f"{package} runs on GPUs only"
            continue
        try:
            here[name] = load()
        except ModuleNotFoundError as error:
            absent[name] = f"{package} is not installed: no module {error.name}"
        except Exception as error:  # whatever another package's import may raise
            absent[name] = f"{package} cannot be imported: {error}".split("\n")[0]
    return here, absent
