"""A trace that runs one of several like modules, so that a model of many like blocks is looked at quickly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import BuiltinFunctionType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from .copies import STANDARD
from .tracing import Tracer

PLAIN = {
    *(bool, int, float, complex, str, type(None), torch.dtype, torch.device),
    *(FunctionType, BuiltinFunctionType),
}


def entry(value: Any) -> Any:
    """Marks what goes into a module that stands for others."""
    return value


def leave(value: Any) -> Any:
    """Marks what such a module gives."""
    return value


def source(node: fx.Node) -> fx.Node:
    """What a node is the same value as, for going into a module."""
    while node.target is entry:
        (node,) = node.all_input_nodes
    return node


class Likeness:
    """Numbers for modules, the same for those that differ in nothing but names and values of parameters."""

    def __init__(self, tracer: fx.Tracer) -> None:
        self._tracer = tracer
        self._numbers: dict[tuple[object, ...], int] = {}

    def of(self, module: nn.Module) -> int | None:
        """None where attributes, buffers or shared modules may tell modules apart that look alike."""
        return self._of(module, self._tracer.path_of_module(module))

    def _of(self, module: nn.Module, path: str) -> int | None:
        key: list[object] = [type(module), module.training]
        leaf = self._tracer.is_leaf_module(module, path)
        for name, value in vars(module).items():
            if name in STANDARD:
                continue
            if _is_simple(value):
                key += (name, type(value), value)
            elif not leaf:
                return None
        for name, parameter in module._parameters.items():
            key += (name,) if parameter is None else (name, parameter.shape, parameter.dtype)
        if not leaf:
            if module._buffers:
                return None
            for name, child in module._modules.items():
                place = f"{path}.{name}"
                if child is None or self._tracer.path_of_module(child) != place:
                    return None
                number = self._of(child, place)
                if number is None:
                    return None
                key += (name, number)
        return self._numbers.setdefault(tuple(key), len(self._numbers))


def _is_simple(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and all(map(_is_simple, value)))


class Context(NamedTuple):
    """Where values go that leave a module which was run for another: to the users of that one's node."""

    start: fx.Node
    end: fx.Node
    call: fx.Node
    outer: Context | None


Place = tuple[fx.Node, Context | None]


class RepeatsTracer(Tracer):
    """Runs the first of modules that are alike and called with one tensor; the others become single calls."""

    def __init__(self) -> None:
        super().__init__()
        self._likeness = Likeness(self)
        self._first: dict[int, str] = {}
        self.runs: dict[str, tuple[fx.Node, fx.Node]] = {}
        self.calls: dict[str, tuple[str, list[fx.Node]]] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name, alone = self.path_of_module(m), len(args) == 1 and not kwargs and isinstance(args[0], fx.Proxy)
        number = None
        if alone and type(m) is not nn.Sequential and not self.is_leaf_module(m, name):
            number = self._likeness.of(m)
        if number is None or name in self.runs:
            return super().call_module(m, forward, args, kwargs)
        first = self._first.setdefault(number, name)
        if first in self.runs:
            node = self.graph.create_node("call_module", name, (args[0].node,), {})
            self.calls.setdefault(name, (first, []))[1].append(node)
            return self.proxy(node)
        start = self.create_proxy("call_function", entry, args, {})
        result = super().call_module(m, forward, (start,), kwargs)
        if isinstance(result, fx.Proxy) and source(result.node) is source(start.node):
            return args[0]
        if first == name and isinstance(result, fx.Proxy):
            result = self.create_proxy("call_function", leave, (result,), {})
            self.runs[name] = start.node, result.node
        return result


class Flow:
    """Where values go in a graph, also through modules that others were run in the place of."""

    def __init__(self, graph: fx.Graph, tracer: RepeatsTracer | None = None) -> None:
        self._runs = tracer.runs if tracer else {}
        self._calls = tracer.calls if tracer else {}
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._nodes: dict[str, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._nodes.setdefault(str(node.target), []).append(node)

    def places(self, name: str, context: Context | None = None) -> Iterator[Place]:
        """The calls of a module, and those in the run of another that stand for them."""
        for node in self._nodes.get(name, ()):
            if self._is_within(node, context):
                yield node, context
        path = name.split(".")
        for length in range(1, len(path)):
            first, calls = self._calls.get(".".join(path[:length]), ("", ()))
            for call in calls:
                if self._is_within(call, context):
                    inner = ".".join((first, *path[length:]))
                    yield from self.places(inner, Context(*self._runs[first], call, context))

    def _is_within(self, node: fx.Node, context: Context | None) -> bool:
        if context is None:
            return True
        return self._order[context.start] < self._order[node] < self._order[context.end]

    def users(self, place: Place) -> Iterator[Place]:
        """What takes the value of a node, in the order in which it would without runs for others."""
        node, context = place
        for user in node.users:
            if context is not None and user is context.end:
                yield from self.users((context.call, context.outer))
            elif user.target in (entry, leave):
                yield from self.users((user, context))
            elif user.op == "call_module" and str(user.target) in self._calls:
                start, end = self._runs[self._calls[str(user.target)][0]]
                yield from self.users((start, Context(start, end, user, context)))
            else:
                yield user, context
