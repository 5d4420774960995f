"""Calls such as torch.tanh(x) in the forward of a model, scaled as they happen.

A module whose calls are scaled gets a subclass of its own class, whose forward runs the original one inside
a `TorchFunctionMode`. Nothing is traced: branches, random numbers, hooks and wrappers keep working, and
copies and pickles of the model are scaled as well.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from ._checks import DTYPES
from ._names import named_modules
from .functional import ActivationFunction, functional
from .kernels.functions import FUNCTIONS, Function

SETTINGS, OWNER, PLAIN_CLASS = "_scaled_calls", "_alpha_owner", "_without_scaled_calls"
NAMESPACES = {"torch": torch, "F": F, "torch.special": torch.special, "Tensor": Tensor}


class Known(NamedTuple):
    """A function of PyTorch that computes one of the registry's, and how users write it."""

    function: Function
    text: str
    in_place: bool


def known_calls() -> dict[Any, Known]:
    """PyTorch's functions and tensor methods that compute a function of the registry."""
    found: dict[Any, Known] = {}
    names = [(f, name) for f in FUNCTIONS.values() for name in (f.name, *f.torch_aliases)]
    for function, name in names:
        for spelling in (name, f"{name}_"):
            for prefix, namespace in NAMESPACES.items():
                if hasattr(namespace, spelling):
                    known = Known(function, f"{prefix}.{spelling}", spelling != name)
                    found.setdefault(getattr(namespace, spelling), known)
    return found


class CallScaling:
    """How the calls of a module are scaled: those of `functions` are, those of others stay plain."""

    def __init__(self, alpha: float, functions: tuple[str, ...]) -> None:
        self.alpha, self.functions = alpha, functions
        self.table: dict[Any, tuple[ActivationFunction, bool] | None] = {
            call: (functional(known.function), known.in_place) if known.function.name in functions else None
            for call, known in known_calls().items()
        }

    def __reduce__(self) -> tuple[type[CallScaling], tuple[float, tuple[str, ...]]]:
        return CallScaling, (self.alpha, self.functions)


class ScalingMode(TorchFunctionMode):
    """Scales calls while it is active; the innermost mode decides, also that a call stays plain."""

    def __init__(self, settings: CallScaling, alpha: float | Tensor) -> None:
        super().__init__()
        self.settings, self.table, self.alpha = settings, settings.table, alpha

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.table:
            return func(*args, **kwargs)
        if self.table[func] is None:
            return without_modes(func, args, kwargs)
        return without_modes(self._scaled, (func, args, kwargs), {})

    def _scaled(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """func(*args, **kwargs) with alpha f(x / alpha) in place of f(x)."""
        inputs = [*args, *(value for name, value in kwargs.items() if name in ("input", "x"))]
        if len(inputs) != 1 or not kwargs.keys() <= {"input", "x", "out"}:
            return func(*args, **kwargs)  # which raises PyTorch's own error
        (x,), (activation, in_place) = inputs, self.table[func]  # type: ignore[misc]
        if in_place:
            return x.copy_(activation(x.clone(), self.alpha)) if takes(x) else func(*args, **kwargs)
        y = activation(x, self.alpha) if takes(x) else self.alpha * func(x / self.alpha)
        return torch.mul(y, 1, out=kwargs["out"]) if kwargs.get("out") is not None else y


def without_modes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a function outside all active modes."""
    if torch._C._is_torch_function_mode_enabled():
        with _pop_mode_temporarily():
            return without_modes(func, args, kwargs)
    return func(*args, **kwargs)


def innermost_mode() -> ScalingMode | None:
    """The mode that decides about a call made now."""
    for place in range(torch._C._len_torch_function_stack() - 1, -1, -1):
        mode = torch._C._get_function_stack_at(place)
        if isinstance(mode, ScalingMode):
            return mode
    return None


def method_as_scaled(name: Any) -> Callable[..., Any] | None:
    """What the innermost mode replaces a tensor's method with; None if it leaves it alone."""
    mode = innermost_mode()
    method = getattr(Tensor, name, None) if isinstance(name, str) else None
    if mode is None or method is None or mode.table.get(method) is None:
        return None
    return lambda *args, **kwargs: mode.__torch_function__(method, (), args, kwargs)


def takes(x: Any) -> bool:
    """Whether the activations of sigscale take a tensor; PyTorch's functions take others as well."""
    return not isinstance(x, Tensor) or (x.dtype in DTYPES and x.layout is torch.strided and not x.is_nested)


@functools.cache
def with_scaled_calls(plain: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a module's class that runs forward in a `ScalingMode`; it has the name of its base."""

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        settings = getattr(self, SETTINGS, None)
        mode = innermost_mode()
        if settings is None or (mode is not None and mode.settings is settings):
            return plain.forward(self, *args, **kwargs)
        owner = getattr(self, OWNER, None)
        with ScalingMode(settings, settings.alpha if owner is None else 2.0**owner.log2_alpha):
            return plain.forward(self, *args, **kwargs)

    def reduce_ex(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = plain.__reduce_ex__(self, protocol)
        make, arguments, *rest = reduced
        arguments = tuple(plain if argument is type(self) else argument for argument in arguments)
        return _restored, (vars(self).get(SETTINGS), make, arguments), *rest

    def deep_copy(self: Any, memo: dict[int, Any]) -> nn.Module:
        copy = plain.__deepcopy__(self, memo)  # type: ignore[attr-defined]
        return copy if SETTINGS in vars(copy) else _with_settings(copy, vars(self).get(SETTINGS))

    members: dict[str, Any] = {"forward": forward, "__reduce_ex__": reduce_ex, PLAIN_CLASS: plain}
    if hasattr(plain, "__deepcopy__"):
        members["__deepcopy__"] = deep_copy
    members |= {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    return types.new_class(plain.__name__, (plain,), {}, lambda namespace: namespace.update(members))


def _restored(settings: CallScaling | None, make: Callable[..., nn.Module], arguments: Any) -> nn.Module:
    return _with_settings(make(*arguments), settings)


def _with_settings(module: nn.Module, settings: CallScaling | None) -> nn.Module:
    kind: Any = type(module)
    module.__class__ = with_scaled_calls(kind)
    vars(module)[SETTINGS] = settings
    return module


def call_scaling(module: nn.Module) -> CallScaling | None:
    """The settings of a module whose calls are scaled, or kept plain inside one whose calls are scaled."""
    return vars(module).get(SETTINGS)


def scale_calls(module: nn.Module, settings: CallScaling, owner: nn.Module | None = None) -> None:
    """Scale the calls in a module's forward, by the log2_alpha of `owner` if alpha is learned."""
    unscale_calls(module)
    _with_settings(module, settings)
    if owner is not None:
        vars(module)[OWNER] = owner


def keep_calls_plain(module: nn.Module) -> None:
    """Exempt a module inside one whose calls are scaled."""
    scale_calls(module, CallScaling(1.0, ()))


def unscale_calls(module: nn.Module) -> None:
    vars(module).pop(SETTINGS, None)
    vars(module).pop(OWNER, None)
    module.__class__ = class_without_marks(module)


def class_without_marks(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had before `scale_calls`."""
    return vars(type(module)).get(PLAIN_CLASS, type(module))  # type: ignore[no-any-return]


class Region(NamedTuple):
    """The modules of a model whose calls one `scale_activations` scaled."""

    name: str
    settings: CallScaling
    modules: list[nn.Module]

    @property
    def owner(self) -> nn.Module | None:
        """The module that has the learned alpha."""
        return vars(self.modules[0]).get(OWNER)

    @property
    def what(self) -> str:
        learns = ", learnable=True" if self.owner is not None else ""
        return f"calls of {', '.join(self.settings.functions)} (alpha={self.settings.alpha!r}{learns})"


def regions(model: nn.Module) -> list[Region]:
    """The regions of a model, named by the common part of their modules' names."""
    groups: dict[CallScaling, dict[str, nn.Module]] = {}
    for name, module in named_modules(model):
        settings = call_scaling(module)
        if settings is not None and settings.functions:
            groups.setdefault(settings, {})[name] = module
    found = []
    for settings, members in groups.items():
        common = os.path.commonprefix([name.split(".") for name in members])  # noqa: RUF071 (of lists)
        found.append(Region(".".join(common) or type(model).__name__, settings, [*members.values()]))
    return found
