"""The calls of a model as torch.fx traces them, and the traced model with modules in their place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch import fx, nn

from .._alpha import Scaled
from .._names import named_modules
from ..kernels.registry import Function
from .calls import called
from .copies import copied

TORCH, OURS = (str(Path(file).parent.parent) for file in (fx.__file__, __file__))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Tracer(fx.Tracer):
    """Sees scaled modules as single calls, as those of torch.nn, and notes where in the code a call is."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Scaled) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        if kind in ("call_function", "call_method"):
            node.meta["place"] = _place()
        return node


def _place() -> tuple[str, int] | None:
    """The line of the model's code that is being traced; None if all of it is PyTorch's, as in a subclass."""
    frame = sys._getframe(2)
    while frame.f_back and (frame.f_code.co_name == "call_module" or _within(frame, TORCH)):
        frame = frame.f_back
    return None if _within(frame, OURS) else (frame.f_code.co_filename, frame.f_lineno)


def _within(frame: FrameType, folder: str) -> bool:
    return frame.f_code.co_filename.startswith(folder)


def place_of(node: fx.Node) -> str:
    """Where a call is: a line of code or, if none is the user's, a module."""
    if node.meta["place"] is not None:
        file, line = node.meta["place"]
        return f"at {Path(file).name}:{line}"
    path, kind = next(reversed(node.meta["nn_module_stack"].values()), ("", type(None)))
    return f"in '{path}' ({kind.__name__})" if path else "in forward"


class Trace(NamedTuple):
    """The graph of a model, and the copy of it that was traced, which has the constants made in forward."""

    graph: fx.Graph
    root: nn.Module

    def whole(self, named: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
        """Those of the modules that are called as a whole, or lie in one that is: the graph stops there."""
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        return [(name, m) for name, m in named if not called.isdisjoint(_path(name))]


def _path(name: str) -> list[str]:
    """The modules that a module lies in, and itself: of "a.b.c" a, a.b and a.b.c."""
    return [*accumulate(name.split("."), lambda path, part: f"{path}.{part}")]


def trace(model: nn.Module, tracer: Tracer | None = None) -> Trace:
    """Trace a model, which stays as it is; raises whatever its code raises when it is traced.

    User code runs here, on a copy that has the model's parameters and modules of torch.nn, which a trace does
    not run, but no hooks, and buffers and lists of its own.
    """
    tracer = tracer or Tracer()
    single = {m for m in model.modules() if not m._modules and tracer.is_leaf_module(m, "")} - {model}
    root = copied(model, (*model.parameters(), *single))
    for module in {*root.modules()} - single:
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    return Trace(tracer.trace(root), root)


def traced(model: nn.Module) -> Trace:
    """Trace a model that the traced one can replace.

    Raises:
        ValueError: torch.fx cannot trace the model, or the traced one would not do the same.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        result = trace(model)
        for module, training in modes:
            module.training = not training
        other = trace(model)
    except Exception as error:  # whatever user code raises when it meets a torch.fx.Proxy
        raise ValueError(
            f"functional=True traces the model by torch.fx, which fails: {type(error).__name__}: {error}: "
            "convert the parts that it can trace, one by one, or write sigscale.tanh(x) in forward"
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if str(result.graph) != str(other.graph):
        raise ValueError(
            "functional=True traces the model, which fixes what forward does; this one does not do the same "
            "in training and in evaluation: use modules such as nn.Dropout for what depends on self.training"
        )
    _check_hooks(model, result)
    return result


def _check_hooks(model: nn.Module, trace: Trace) -> None:
    hooked = [(n, m) for n, m in named_modules(model) if any(getattr(m, hooks) for hooks in HOOKS)]
    kept = trace.whole(hooked)
    for name, _ in hooked:
        if name not in dict(kept):
            raise ValueError(
                f"functional=True traces the model, which would lose the hooks of {name or 'the model'!r}: "
                "remove them first, and put them on the traced model"
            )


@dataclass(frozen=True)
class Call:
    """A call of an activation function in a graph; `refusal` says why no module can take its place."""

    node: fx.Node
    function: Function
    called: str
    place: str
    refusal: str = ""


def calls_in(
    model: nn.Module, graph: fx.Graph, functions: Mapping[Any, Function]
) -> Iterator[tuple[str, Call]]:
    """The calls in a graph by the names that modules in their place will have."""
    taken = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for node in graph.nodes:
        function = functions.get(node.target) if node.op in ("call_function", "call_method") else None
        if function is not None:
            inside = next(reversed(node.meta.get("nn_module_stack", {"": None})), "")
            stem = name = f"{inside}.{function.name}" if inside else function.name
            number = 0
            while name in taken or hasattr(model, name):
                number += 1
                name = f"{stem}_{number}"
            taken.add(name)
            yield name, Call(node, function, called(node.target), _line(node), _refusal(node))


def _line(node: fx.Node) -> str:
    return place_of(node).removeprefix("at ")


def _refusal(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if target.endswith("_"):
        return "in place, which may change other tensors: write it without the underscore"
    if len(node.all_input_nodes) != 1 or len(node.args) + len(node.kwargs) != 1:
        return "with further arguments: write it without them"
    if node.all_input_nodes[0].op == "get_attr":
        return "of a parameter or a buffer, not of an activation"
    return ""


def with_modules(
    model: nn.Module, traced: Trace, calls: Mapping[str, Call], modules: Mapping[str, nn.Module]
) -> nn.Module:
    """The traced model, with parameters and modules of the model, and modules in the place of calls."""
    graph, attributes = traced.graph, {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            owner = model if not target.startswith("_tensor_constant") else traced.root
            attributes[target] = attrgetter(target)(owner)
    result = fx.GraphModule(attributes, graph, type(model).__name__)
    result.training = model.training
    for name, module in modules.items():
        result.add_submodule(name, module.train(model.training))
        node = calls[name].node
        with graph.inserting_before(node):
            node.replace_all_uses_with(graph.call_module(name, (node.all_input_nodes[0],)))
        graph.erase_node(node)
    graph.lint()
    result.recompile()
    return result
