"""Calls that write into their operands, and values that may share memory with what is written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..kernels.functions import FUNCTIONS
from ..nn.activation import Scaled
from ._tracer import STATEMENTS, is_number

# Calls whose results are new memory; any other may return a view of an operand.
NEW = """add sub subtract maximum minimum where mul multiply div divide truediv true_divide cat concat
    concatenate stack hstack vstack gt ge lt le eq ne mean sum zeros zeros_like new_zeros clone neg abs amax
    amin linear conv1d conv2d conv3d matmul exp exp2 softplus"""


def plain_name(target: Any) -> str:
    """The name of what is called, without the underscores of calls in place."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if name.startswith("__") and name.endswith("__"):
        return STATEMENTS.get(name, name)
    return name.removesuffix("_")


def writes(node: fx.Node, layer: nn.Module | None = None) -> tuple[fx.Node, ...]:
    """The operands that a call writes into; `layer` is the module that it calls."""
    arguments: dict[Any, Any] = dict(enumerate(node.args))
    arguments.update(node.kwargs)
    written = [arguments["out"]] if node.op == "call_function" and "out" in arguments else []
    if layer is not None:
        in_place = getattr(layer, "inplace", False) is True
    elif node.op == "call_method":
        name = str(node.target)
        dunder = name.startswith("__") and name.endswith("__")
        in_place = name in STATEMENTS if dunder else name.endswith("_")
    elif node.op == "call_function":
        name = plain_name(node.target)
        in_place = getattr(node.target, "__name__", "") in (f"{name}_", "setitem") or _option(node, "inplace")
        if name in ("batch_norm", "instance_norm"):
            written += [arguments.get(1, arguments.get("running_mean"))]
            written += [arguments.get(2, arguments.get("running_var"))]
    else:
        in_place = False
    if in_place:
        written.append(arguments.get(0, arguments.get("input")))
    return tuple(value for value in tree_leaves(written) if isinstance(value, fx.Node))


def _option(node: fx.Node, name: str) -> bool:
    """Whether an option of a function is given, by position or by name, and true."""
    if name in node.kwargs:
        return node.kwargs[name] is not False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which has no signature
        return False
    return bool(bound.arguments.get(name, False))


def makes_new(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether a call returns new memory, or an operand that it writes into."""
    if layer is not None:
        return isinstance(layer, Scaled) or any(True for _ in layer.parameters())
    return plain_name(node.target) in {*NEW.split(), *FUNCTIONS}


class Memory:
    """Which values of a graph may share memory."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._near: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
        holders: dict[Any, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                tensor = functools.reduce(getattr, str(node.target).split("."), root)
                self._join(node, holders.setdefault(_storage(tensor), node))
            if is_number(node):
                continue
            layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
            shared: Iterable[fx.Node] = node.all_input_nodes
            if makes_new(node, layer):
                shared = writes(node, layer)
            elif plain_name(node.target).endswith("_as"):  # of which the second has the shape
                shared = node.all_input_nodes[:1]
            for value in shared:
                if not is_number(value):
                    self._join(node, value)

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        self._near[a].append(b)
        self._near[b].append(a)

    def around(self, values: Iterable[fx.Node]) -> set[fx.Node]:
        """These values and all that may share memory with them."""
        found = {*values}
        waiting = [*found]
        while waiting:
            for other in self._near[waiting.pop()]:
                if other not in found:
                    found.add(other)
                    waiting.append(other)
        return found


def _storage(tensor: Any) -> Any:
    if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
        return tensor.untyped_storage()._cdata
    return id(tensor)


def is_random(name: str) -> bool:
    """Whether a function of PyTorch, by its name, draws random numbers."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)
