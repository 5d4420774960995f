"""A torch.fx tracer that also records statements in place, line numbers and changes of mode."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target

from .._calls import call_scaling, method_as_scaled
from .._checks import line_of_user
from ..functional import functional
from ..kernels.device import SUPPORTED
from ..kernels.functions import FUNCTIONS, Function
from ..nn.activation import module
from ..nn.recurrent import Recurrent

# Methods and attributes of a tensor that do not depend on its values.
METADATA = {
    "size",
    "dim",
    "numel",
    "nelement",
    "stride",
    "is_contiguous",
    "get_device",
    "element_size",
}
METADATA_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad"}
# Tensor methods that Python calls for statements in place, and the operations that they do.
STATEMENTS = {
    **{f"__i{name}__": name for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "xor")},
    **{"__iand__": "and_", "__ior__": "or_", "__setitem__": "setitem"},
}


class Value(fx.Proxy):
    """A proxy that records statements in place, such as h += c and h[0] = c, as calls of tensor methods."""

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


def _statement(method: str, name: str) -> Callable[[Value, Any], Any]:
    def statement(self: Value, other: Any) -> Any:
        if is_number(self.node):  # which cannot change: the name gets another
            return getattr(operator, name)(self, other)
        return self.tracer.create_proxy("call_method", method, (self, other), {})

    return statement


for _method, _name in STATEMENTS.items():
    if _method != "__setitem__":
        setattr(Value, _method, _statement(_method, _name))


def is_proxy(value: Any) -> bool:
    return isinstance(value, fx.Proxy)


def reads_metadata(node: fx.Node) -> bool:
    """Whether a call asks for something that does not depend on a tensor's values, such as its shape."""
    if node.target is getattr:
        return node.args[1] in METADATA_ATTRIBUTES
    return node.op in ("call_function", "call_method") and node.target in METADATA


def is_number(node: fx.Node) -> bool:
    """Whether Python computes a value from sizes alone."""
    if reads_metadata(node):
        return True
    by_python = getattr(node.target, "__module__", None) in ("_operator", "builtins", "math")
    inputs = node.all_input_nodes
    return node.op == "call_function" and by_python and bool(inputs) and all(map(is_number, inputs))


def scaled_function(layer: nn.Module) -> Function | None:
    """The function of an activation module of sigscale; None for any other module and for subclasses."""
    return next((function for function in FUNCTIONS.values() if type(layer) is module(function)), None)


def called_function(target: Target) -> Function | None:
    """The function of a call such as sigscale.tanh(x)."""
    return next((function for function in FUNCTIONS.values() if target is functional(function)), None)


class Tracer(fx.Tracer):
    """Records modules of torch.nn and sigscale.nn as single calls; optional arguments keep their defaults.

    Calls that `scale_activations` scales arrive as calls of sigscale's functions, from the mode that the
    model's forward enters. No mode sees a method of a proxy, so these are sent there.
    """

    def __init__(self, given: int, updated: list[Tensor]) -> None:
        super().__init__()
        self.given = given  # the number of arguments that are passed
        self.updated = updated  # buffers that forward writes into: calls on them belong in the graph
        self.read: list[Tensor] = []  # buffers that forward reads
        self.modes: dict[str, None] = {}  # calls in a mode that forward enters, such as torch.no_grad()
        self.inside = [""]  # paths of the modules that are being traced
        self._mode = _mode()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        settings = call_scaling(m)
        if settings is not None and settings.functions:
            return False  # also one of torch.nn: its forward makes calls that are scaled
        ours = isinstance(m, Recurrent) or scaled_function(m) is not None
        return ours or super().is_leaf_module(m, module_qualified_name)

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
            node.meta["line"] = line_of_user(fx.Tracer.trace)
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
        self.inside.pop()  # stays after an exception, to say where it was
        return result

    def create_args_for_root(self, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
        # A proxy would take the branch of `if mask is not None`: what is not given has its default instead.
        function, arguments = super().create_args_for_root(*args, **kwargs)
        for i, proxy in enumerate(arguments[1:], 1):
            if i > self.given and proxy.node.args and not str(proxy.node.target).startswith("*"):
                arguments[i] = proxy.node.args[0]
        return function, arguments


def _mode() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), *(torch.is_autocast_enabled(kind) for kind in SUPPORTED)


def place_of(node: fx.Node) -> str:
    """Where forward makes a call: the user's line or, where there is none, the module."""
    if node.meta.get("line"):
        return f"at {node.meta['line']}"
    path, kind = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", type(None)))
    return f"in '{path}' ({kind.__name__})" if path else "in forward"
