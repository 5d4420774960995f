"""How a model's forward is recorded: with the statements in place that `torch.fx` would lose."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target

from .._calls import call_scaling, method_as_scaled
from ..kernels.device import SUPPORTED
from ..kernels.functions import FUNCTIONS, Function
from ..nn.activation import Activation, module
from ..nn.recurrent import Recurrent

TORCH, OURS = (str(Path(file).parent.parent) for file in (fx.__file__, __file__))
# Methods and attributes of a tensor that do not depend on its values.
DESCRIBING = {"size", "dim", "numel", "nelement", "stride", "is_contiguous", "get_device", "element_size"}
DESCRIBING_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad"}
# Methods of a tensor that Python calls for statements in place, and the operations that these are.
STATEMENTS = {
    **{f"__i{name}__": name for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "xor")},
    **{"__iand__": "and_", "__ior__": "or_", "__setitem__": "setitem"},
}


class Value(fx.Proxy):
    """A value whose statements in place, such as h += c and h[0] = c, are calls of a tensor's methods."""

    def __getattr__(self, name: str) -> ValueAttribute:
        return ValueAttribute(self, name)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_method", "__setitem__", (self, index, value), {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node", "root", "attr", "_node"):
            raise TypeError(f"forward sets the attribute {name!r} of a tensor, which a graph cannot")
        super().__setattr__(name, value)


class ValueAttribute(fx.proxy.Attribute, Value):
    """An attribute of a value, such as h.T, or a method that is about to be called."""


def _in_place(method: str, name: str) -> Callable[[Value, Any], Any]:
    """The statement of a tensor as a call of its method; numbers, which cannot change, are replaced."""

    def statement(self: Value, other: Any) -> Any:
        if is_number(self.node):
            return getattr(operator, name)(self, other)
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return statement


for _method, _name in STATEMENTS.items():
    if _method != "__setitem__":
        setattr(Value, _method, _in_place(_method, _name))


def is_proxy(value: Any) -> bool:
    return isinstance(value, fx.Proxy)


def describes(node: fx.Node) -> bool:
    """Whether a call asks what does not depend on a tensor's values, such as its shape."""
    if node.target is getattr:
        return node.args[1] in DESCRIBING_ATTRIBUTES
    return node.op in ("call_function", "call_method") and node.target in DESCRIBING


def is_number(node: fx.Node) -> bool:
    """Whether a value is computed by Python from sizes alone."""
    if describes(node):
        return True
    by_python = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    inputs = node.all_input_nodes
    return node.op == "call_function" and by_python and bool(inputs) and all(map(is_number, inputs))


class Tracer(fx.Tracer):
    """Sees the modules of torch.nn and sigscale.nn as single calls; arguments with a default have it.

    Calls that `scale_activations` scales arrive as calls of sigscale's functions, from the mode that the
    model's forward enters; tensor methods, which no mode sees on a proxy, are sent there.
    """

    def __init__(self, given: int, updated: list[Tensor]) -> None:
        super().__init__()
        self.given = given  # arguments that are passed, whether or not they have a default
        self.updated = updated  # buffers that forward writes into: calls of theirs belong into the graph
        self.read: list[Tensor] = []  # buffers that forward reads
        self.modes: dict[str, None] = {}  # calls in a mode, such as torch.no_grad(), that forward enters
        self._mode = _mode()
        self.inside = [""]  # paths of the modules that are being traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        settings = call_scaling(m)
        if settings is not None and settings.functions:
            return False  # also one of torch.nn: its forward calls what is scaled
        return (
            scaled_function(m) is not None
            or isinstance(m, Recurrent)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Value(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        self.proxy_buffer_attributes = any(attr_val is buffer for buffer in self.updated)
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            self.read.append(attr_val)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind in ("call_function", "call_method"):
            node.meta["place"] = _place()
        if kind.startswith("call") and _mode() != self._mode:
            self.modes[f"the mode of gradients or autocast {place_of(node)}"] = None
        return node

    def create_proxy(self, kind: str, target: Target, args: Any, kwargs: Any, *rest: Any, **more: Any) -> Any:
        scaled = method_as_scaled(target) if kind == "call_method" else None
        if scaled is not None:
            return scaled(*args, **kwargs)
        return super().create_proxy(kind, target, args, kwargs, *rest, **more)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()
        return result

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        # `if mask is not None` would take the branch with a mask, since what is traced is not None.
        function, arguments = super().create_args_for_root(*args, **kwargs)
        for i, proxy in enumerate(arguments[1:], 1):
            if i > self.given and proxy.node.args and not str(proxy.node.target).startswith("*"):
                arguments[i] = proxy.node.args[0]
        return function, arguments


def _mode() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in SUPPORTED)


def _place() -> tuple[str, int] | None:
    """The line of the model's code that is being traced; None if all of it is PyTorch's, as in a subclass."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not Tracer.trace.__code__:
        if not frame.f_code.co_filename.startswith((TORCH, OURS)):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def place_of(node: fx.Node) -> str:
    """Where a call is: a line of code or, if none is the user's, a module."""
    if node.meta.get("place") is not None:
        file, line = node.meta["place"]
        return f"at {Path(file).name}:{line}"
    path, kind = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", type(None)))
    return f"in '{path}' ({kind.__name__})" if path else "in forward"


def scaled_function(layer: nn.Module) -> Function | None:
    """The function of a sigscale activation module; None for any other, subclasses included."""
    if isinstance(layer, Activation):
        return next((function for function in FUNCTIONS.values() if type(layer) is module(function)), None)
    return None
