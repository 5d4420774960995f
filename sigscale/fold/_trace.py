"""What a model computes, as a graph of calls."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from .._calls import method_as_scaled
from ..functional import functional
from ..kernels.functions import FUNCTIONS, Function
from ..nn.activation import Activation, module
from ..nn.recurrent import Recurrent

TORCH, OURS = (str(Path(file).parent.parent) for file in (fx.__file__, __file__))
# Methods and attributes of a tensor that do not depend on its values.
DESCRIBING = {"size", "dim", "numel", "nelement", "stride", "is_contiguous", "get_device", "element_size"}
DESCRIBING_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "requires_grad"}


class Trace(NamedTuple):
    """The calls of a model's forward in their order, and the modules they are made to."""

    graph: fx.Graph
    root: nn.Module  # a copy, which may be run, but for the parameters: they are the model's own
    shapes: Mapping[fx.Node, torch.Size]  # of the tensors; empty if there are no example inputs
    constants: frozenset[fx.Node]  # values that are computed from parameters and shapes alone

    def layer(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.root.get_submodule(str(node.target))

    def layers(self) -> list[tuple[fx.Node, nn.Module]]:
        return [(node, self.layer(node)) for node in self.graph.nodes if node.op == "call_module"]

    def kind(self, node: fx.Node) -> str:
        """The name of what a node calls, without the underscore of those in place; of a module, its class."""
        if node.op == "call_module":
            return type(self.layer(node)).__name__.lower()
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        return name.removesuffix("_")

    def named(self, node: fx.Node) -> str:
        """A node as errors name it."""
        if node.op == "call_module":
            return f"'{node.target}' ({type(self.layer(node)).__name__})"
        if node.op == "placeholder":
            return f"the model's input '{node.target}'"
        if node.op == "get_attr":
            return f"the parameter or buffer '{node.target}', which forward reads,"
        if node.op == "output":
            return "the model's output"
        if called_function(node.target):
            return f"sigscale.{self.kind(node)}() at '{node.name}'"
        return f"{self.kind(node)}() {place_of(node)}"


class Tracer(fx.Tracer):
    """Sees the modules of torch.nn and sigscale.nn as single calls; arguments with a default have it.

    Calls that `scale_activations` scales arrive as calls of sigscale's functions, from the mode that the
    model's forward enters; tensor methods, which no mode sees on a proxy, are sent there.
    """

    def __init__(self, given: int) -> None:
        super().__init__()
        self.given = given  # arguments that are passed, whether or not they have a default
        self.inside = [""]  # paths of the modules that are being traced

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            scaled_function(m) is not None
            or isinstance(m, Recurrent)
            or super().is_leaf_module(m, module_qualified_name)
        )

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind in ("call_function", "call_method"):
            node.meta["place"] = _place()
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


def _place() -> tuple[str, int] | None:
    """The line of the model's code that is being traced; None if all of it is PyTorch's, as in a subclass."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not trace.__code__:
        if not frame.f_code.co_filename.startswith((TORCH, OURS)):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def place_of(node: fx.Node) -> str:
    """Where a call is: a line of code or, if none is the user's, a module."""
    if node.meta["place"] is not None:
        file, line = node.meta["place"]
        return f"at {Path(file).name}:{line}"
    path, kind = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("", type(None)))
    return f"in '{path}' ({kind.__name__})" if path else "in forward"


def trace(model: nn.Module, inputs: tuple[Any, ...] | None) -> Trace:
    """The graph of a model, which stays as it is; ValueError with the reason if torch.fx finds none."""
    try:
        # User code runs here, and its buffers with it; parameters are only looked at.
        root = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    except RuntimeError as error:
        raise ValueError(f"cannot fold a model that cannot be copied: copy.deepcopy says: {error}") from error
    tracer = Tracer(len(inputs or ()))
    try:
        graph = tracer.trace(root)
    except Exception as error:  # whatever user code may raise when it meets a torch.fx.Proxy
        where = f"in '{tracer.inside[-1]}', " if tracer.inside[-1] else ""
        raise ValueError(
            f"cannot fold a model that torch.fx cannot trace: {where}{type(error).__name__}: {error}. "
            "Fold the parts that it can, as in model.features = sigscale.fold(model.features), or move the "
            "branch that depends on data out of forward"
        ) from error
    for node in reversed(graph.nodes):
        if node.op == "placeholder" and node.args and not node.users:
            graph.erase_node(node)
    shapes = {} if inputs is None else _shapes(root, graph, inputs)
    return Trace(graph, root, shapes, frozenset(_constants(graph)))


def scaled_function(layer: nn.Module) -> Function | None:
    """The function of a sigscale activation module; None for any other, subclasses included."""
    if isinstance(layer, Activation):
        return next((function for function in FUNCTIONS.values() if type(layer) is module(function)), None)
    return None


def called_function(target: Target) -> Function | None:
    """The function of a call such as sigscale.tanh(x)."""
    return next((function for function in FUNCTIONS.values() if target is functional(function)), None)


def constant(trace: Trace, value: Argument) -> Any:
    """What an argument is in every call; LookupError if it depends on the model's inputs."""
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        result: Any = trace.root
        for name in str(value.target).split("."):
            result = getattr(result, name)
        return result
    if value.op not in ("call_function", "call_method"):
        raise LookupError(value.name)
    args, kwargs = fx.node.map_aggregate((value.args, value.kwargs), lambda part: constant(trace, part))
    if callable(value.target):
        return value.target(*args, **kwargs)
    return getattr(args[0], value.target)(*args[1:], **kwargs)


def _constants(graph: fx.Graph) -> set[fx.Node]:
    found: set[fx.Node] = set()
    for node in graph.nodes:
        calls = node.op in ("call_function", "call_method")
        describes = calls and (
            node.args[1] in DESCRIBING_ATTRIBUTES if node.target is getattr else node.target in DESCRIBING
        )
        inherits = calls and bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or describes or inherits:
            found.add(node)
    return found


def _shapes(root: nn.Module, graph: fx.Graph, inputs: Sequence[Any]) -> dict[fx.Node, torch.Size]:
    shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                shapes[n] = result.shape
            return result

    with torch.no_grad(), torch.random.fork_rng():
        Recorder(fx.GraphModule(root, graph)).run(*inputs)
    return shapes
