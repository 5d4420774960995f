"""The activations of a model: which can be scaled, which are, and why others cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .._alpha import Scaled
from .._checks import DTYPES
from .._names import named_modules
from .pairs import pairs

Place = tuple[torch.device | None, torch.dtype | None]


@dataclass(frozen=True)
class Found:
    """A module that computes an activation, and the class it becomes, or why it cannot."""

    name: str
    module: nn.Module
    scaled: type[Scaled] | None
    refusal: str = ""

    @property
    def what(self) -> str:
        if isinstance(self.module, Scaled):
            return f"{type(self.module).__name__}({self.module.alpha_repr()})"
        return str(getattr(self.module, "original_name", type(self.module).__name__))


def survey(model: nn.Module, *, subclasses: bool = False) -> Iterator[Found]:
    """What there is to scale in a model, by the names of its modules; a model that is one has its class's."""
    known = pairs()
    plain, names = tuple(known), {kind.__name__ for kind in known}
    for name, module in named_modules(model):
        name = name or type(module).__name__
        if isinstance(module, Scaled):
            yield Found(name, module, None, "scaled already")
        elif isinstance(module, plain):
            kind = next(kind for kind in plain if isinstance(module, kind))
            refusal = _refusal(module, kind, subclasses)
            yield Found(name, module, None if refusal else known[kind], refusal)
        elif isinstance(module, torch.jit.ScriptModule) and module.original_name in names:
            yield Found(name, module, None, "scripted: scale the model before torch.jit.script")


def _refusal(module: nn.Module, kind: type[nn.Module], subclasses: bool) -> str:
    if getattr(module, "mode", "") == "RNN_RELU":
        return "relu stays the same under scaling"
    if "forward" in vars(module):
        return "its forward was replaced"
    if type(module) is kind:
        return ""
    if is_parametrized(module):
        return "parametrized: scale it before, or remove_parametrizations() first"
    if type(module).forward is not kind.forward:
        return f"a subclass of nn.{kind.__name__} with a forward of its own"
    return "" if subclasses else f"a subclass of nn.{kind.__name__}: pass subclasses=True"


def cells(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The cells of recurrent networks, which compute activations inside."""
    for name, module in named_modules(model):
        if isinstance(module, nn.RNNCellBase) and getattr(module, "nonlinearity", "tanh") == "tanh":
            yield name or type(module).__name__, module


def places(model: nn.Module) -> dict[nn.Module, Place]:
    """Device and dtype that a new parameter of each module has: those of the parameter before it."""
    parameters = [p for p in model.parameters() if p.dtype in DTYPES]
    place: Place = (parameters[0].device, parameters[0].dtype) if parameters else (None, None)
    found: dict[nn.Module, Place] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dtype in DTYPES:
                place = parameter.device, parameter.dtype
        found[module] = place
    return found


def check_parameters_may_change(model: nn.Module) -> None:
    """Raise ValueError if a wrapper has taken stock of the model's parameters."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    for module in model.modules():
        if (
            isinstance(module, (nn.parallel.DistributedDataParallel, fsdp))
            or "_fsdp_wrapped_module" in module._modules
        ):
            raise ValueError(
                "alphas that learn are parameters, and must come and go before the model is wrapped; got one "
                f"in {type(module).__name__}: convert the model, then wrap it, or leave learnable=False"
            )
