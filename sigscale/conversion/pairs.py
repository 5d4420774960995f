"""Which of PyTorch's modules and functions sigscale has scaled, and how a module becomes one or the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

from .. import nn as scaled_nn
from .._alpha import Scaled
from ..kernels.functions import FUNCTIONS
from ..kernels.registry import Function

RECURRENT = ("RNN", "LSTM", "GRU")
OWN_STATE = ("_alpha", "save", "grad_sketch", "_plain_class")  # what a module has for being scaled


def pairs() -> dict[type[nn.Module], type[Scaled]]:
    """The scaled class of each of torch.nn's that there is one for; the registry tells which."""
    names = (*map(scaled_nn.class_name, FUNCTIONS), *RECURRENT)
    classes = ((getattr(nn, name, None), getattr(scaled_nn, name, None)) for name in names)
    return {plain: scaled for plain, scaled in classes if plain is not None and scaled is not None}


def is_gate(scaled: type[Scaled]) -> bool:
    """Whether values lie between 0 and alpha, so that at alpha = 1 they may be probabilities or a gate's."""
    return any(f.lower == 0 and scaled is scaled_nn.module(f) for f in FUNCTIONS.values())


def torch_functions() -> dict[Any, Function]:
    """PyTorch's functions and the names of its tensor methods, in place too, that compute one of ours."""
    found: dict[Any, Function] = {}
    for function in FUNCTIONS.values():
        for name in _torch_names(function):
            for place in (torch, F, torch.special):
                if hasattr(place, name):
                    found[getattr(place, name)] = function
            if hasattr(Tensor, name):
                found[name] = found[getattr(Tensor, name)] = function
    return found


def _torch_names(function: Function) -> Iterator[str]:
    for name in (function.name, *function.torch_aliases):
        yield from (name, f"{name}_")


def become_scaled(module: nn.Module, scaled: type[Scaled], alpha: float, **learning: Any) -> Scaled:
    """Let the module be of the scaled class from now on; it stays the same object, with all that it has."""
    plain = type(module)
    module.__class__ = scaled
    assert isinstance(module, Scaled)
    module.set_alpha(alpha, **learning)
    if isinstance(module, scaled_nn.Activation):
        module.save = None
    if _namesake(scaled) is not plain:
        vars(module)["_plain_class"] = plain
    return module


def become_plain(module: Scaled, plain: type[nn.Module]) -> None:
    """Let the module be of PyTorch's class again, without what it had for being scaled."""
    for name in OWN_STATE:
        vars(module).pop(name, None)
    module._parameters.pop("log2_alpha", None)
    module.__class__ = plain  # type: ignore[assignment]


def plain_class(module: Scaled) -> type[nn.Module] | None:
    """What become_plain() makes of it; None if PyTorch has no such module."""
    remembered: type[nn.Module] | None = vars(module).get("_plain_class")
    if remembered is not None:
        return remembered
    return _namesake(type(module))


def _namesake(scaled: type[Scaled]) -> type[nn.Module] | None:
    """The class of torch.nn that one of sigscale.nn scales."""
    name = scaled.__name__
    return getattr(nn, name, None) if getattr(scaled_nn, name, None) is scaled else None
