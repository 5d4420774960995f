"""The activations of a model: which can be scaled, and how a module becomes scaled or plain."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from . import nn as scaled_nn
from ._calls import class_without_marks
from ._checks import DTYPES
from ._names import named_modules
from ._overlay import class_below, uncover
from .kernels.functions import FUNCTIONS
from .nn.activation import Scaled

RECURRENT = ("RNN", "LSTM", "GRU")
OWN_STATE = ("_alpha", "save", "grad_sketch", "_plain_class")  # attributes of scaled modules alone
NOT_SELECTED = "not selected"

DeviceAndDtype = tuple[torch.device | None, torch.dtype | None]


def default_functions() -> tuple[str, ...]:
    """The functions scaled by default: not those with values >= 0, often gates or probabilities."""
    return tuple(name for name, function in FUNCTIONS.items() if function.lower < 0)


def scaled_classes() -> dict[type[nn.Module], type[Scaled]]:
    """The scaled class for each class of torch.nn that has one."""
    names = (*map(scaled_nn.class_name, FUNCTIONS), *RECURRENT)
    classes = ((getattr(nn, name, None), getattr(scaled_nn, name, None)) for name in names)
    return {plain: scaled for plain, scaled in classes if plain is not None and scaled is not None}


@dataclass(frozen=True)
class Options:
    """The arguments of `scale_activations` that say what to scale and how."""

    alpha: float = 2.0
    functions: tuple[str, ...] = ()
    learnable: bool = False
    num_parameters: int = 1
    subclasses: bool = False
    functional: bool = False

    @property
    def suffix(self) -> str:
        return f"(alpha={self.alpha!r}{', learnable=True' if self.learnable else ''})"


@dataclass(frozen=True)
class Candidate:
    """An activation module, and the class that it can become or the reason why it cannot."""

    name: str
    module: nn.Module
    scaled: type[Scaled] | None
    refusal: str = ""

    @property
    def what(self) -> str:
        if isinstance(self.module, Scaled):
            return f"{type(self.module).__name__}({self.module.alpha_repr()})"
        return str(getattr(self.module, "original_name", type(self.module).__name__))


def find_activations(model: nn.Module, options: Options | None = None) -> Iterator[Candidate]:
    """The activation modules of a model by name; a model that is one itself has the name of its class.

    With `options.functional`, modules that cannot be converted but make calls are left out.
    """
    options = options or Options()
    known = scaled_classes()
    plain, names = tuple(known), {kind.__name__ for kind in known}
    for name, module in named_modules(model):
        name = name or type(module).__name__
        if isinstance(module, Scaled):
            yield Candidate(name, module, None, "scaled already")
        elif isinstance(module, plain):
            kind = next(kind for kind in plain if isinstance(module, kind))
            refusal = _refusal(module, kind, options.subclasses)
            if refusal and options.functional and not isinstance(module, nn.RNNBase):
                continue
            scaled = known[kind]
            function = next((f.name for f in FUNCTIONS.values() if scaled is scaled_nn.module(f)), "tanh")
            if not refusal and function not in options.functions:
                refusal = not_requested(function)
            yield Candidate(name, module, None if refusal else scaled, refusal)
        elif isinstance(module, torch.jit.ScriptModule) and module.original_name in names:
            yield Candidate(name, module, None, "scripted: scale the model before torch.jit.script")


def not_requested(function: str) -> str:
    """The note on a function that is not scaled."""
    return f"scaled only where functions= names {function!r}"


def _refusal(module: nn.Module, kind: type[nn.Module], subclasses: bool) -> str:
    if getattr(module, "mode", "") == "RNN_RELU":
        return "relu stays the same under scaling"
    if "forward" in vars(module):
        return "its forward was replaced"
    if kind in (class_without_marks(module), class_below(module)):
        return ""
    if is_parametrized(module):
        return "parametrized: scale it before, or remove_parametrizations() first"
    if getattr(class_below(module), "forward", None) is not kind.forward:
        return f"a subclass of nn.{kind.__name__} with a forward of its own"
    return "" if subclasses else f"a subclass of nn.{kind.__name__}: pass subclasses=True"


def recurrent_cells(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The recurrent cells of a model, which compute tanh inside."""
    for name, module in named_modules(model):
        if isinstance(module, nn.RNNCellBase) and getattr(module, "nonlinearity", "tanh") == "tanh":
            yield name or type(module).__name__, module


def become_scaled(
    module: nn.Module, scaled: type[Scaled], options: Options, place: DeviceAndDtype
) -> nn.Parameter | None:
    """Change the module's class to the scaled one, in place; returns the alpha that learns, if any."""
    uncover(module)  # an open monitor goes on with the grad_sketch that it has set
    plain = type(module)
    module.__class__ = scaled
    assert isinstance(module, Scaled)
    number, (device, dtype) = options.num_parameters, place
    module.set_alpha(
        options.alpha, learnable=options.learnable, num_parameters=number, device=device, dtype=dtype
    )
    if isinstance(module, scaled_nn.Activation):
        module.save = None
    if _namesake(scaled) is not plain:
        vars(module)["_plain_class"] = plain
    return module.log2_alpha


def become_plain(module: Scaled, plain: type[nn.Module]) -> None:
    """Change the module's class to PyTorch's, and drop what only a scaled module has."""
    for name in OWN_STATE:
        vars(module).pop(name, None)
    module._parameters.pop("log2_alpha", None)
    module.__class__ = plain  # type: ignore[assignment]


def plain_class(module: Scaled) -> type[nn.Module] | None:
    """The class for `become_plain`; None if PyTorch has no such module."""
    remembered: type[nn.Module] | None = vars(module).get("_plain_class")
    return _namesake(type(module)) if remembered is None else remembered


def _namesake(scaled: type[Scaled]) -> type[nn.Module] | None:
    """The class of torch.nn that one of sigscale.nn scales."""
    name = scaled.__name__
    return getattr(nn, name, None) if getattr(scaled_nn, name, None) is scaled else None


def placements(model: nn.Module) -> dict[nn.Module, DeviceAndDtype]:
    """Device and dtype for a new parameter of each module: those of the parameter before it."""
    parameters = [p for p in model.parameters() if p.dtype in DTYPES]
    place: DeviceAndDtype = (parameters[0].device, parameters[0].dtype) if parameters else (None, None)
    found: dict[nn.Module, DeviceAndDtype] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dtype in DTYPES:
                place = parameter.device, parameter.dtype
        found[module] = place
    return found


def check_parameters_may_change(model: nn.Module) -> None:
    """Raise ValueError if a wrapper has registered the model's parameters."""
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


@dataclass(frozen=True)
class ConversionEntry:
    """An activation of a model, by the name of its module or of the module whose forward calls it.

    `before` and `after` say what it was and is, `after` empty if nothing changed; `note` says where a call
    is, why it was left, or what deserves a look.
    """

    name: str
    before: str
    after: str = ""
    note: str = ""


@dataclass(frozen=True, repr=False)
class ConversionReport:
    """What changed in a model, what was left and why, and what is out of reach.

    Attributes:
        model: the model that was passed.
        changed, left: activations that are scaled (or plain) now, and those that are not.
        unseen: activations that no module computes.
        parameters: the alphas that learn, for an optimizer; from `unscale_activations`, those it removed.
        dry_run: whether nothing was changed, and the report says what would be.
    """

    model: nn.Module
    changed: tuple[ConversionEntry, ...] = ()
    left: tuple[ConversionEntry, ...] = ()
    unseen: tuple[ConversionEntry, ...] = ()
    parameters: tuple[nn.Parameter, ...] = ()
    dry_run: bool = False

    def __repr__(self) -> str:
        title = f"activations: {len(self.changed)} " + ("would change" if self.dry_run else "changed")
        title += f", {len(self.left)} left" + (f", {len(self.unseen)} not seen" if self.unseen else "")
        rows = [(entry.name, f"{entry.before} -> {entry.after}", entry.note) for entry in self.changed]
        rows += [(entry.name, f"{entry.before}, left", entry.note) for entry in self.left]
        rows += [(entry.name, f"{entry.before}, not seen", entry.note) for entry in self.unseen]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        lines = [f"  {name:{widths[0]}}  {what:{widths[1]}}  {note}".rstrip() for name, what, note in rows]
        return "\n".join([title, *lines])
