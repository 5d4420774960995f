"""What a model computes, as a graph of calls."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.utils._pytree import tree_leaves, tree_map_only

from .._calls import call_scaling
from ._memory import Memory, State, attributes, is_random, plain_name, writes
from ._tracer import Tracer, called_function, is_proxy, place_of, reads_metadata


class Trace(NamedTuple):
    """The calls of a model's forward, in order, and the modules that they call."""

    graph: fx.Graph
    root: nn.Module  # a copy that is safe to run; the parameters are the model's own
    shapes: Mapping[fx.Node, torch.Size]  # of tensors; empty without example inputs
    constants: frozenset[fx.Node]  # values computed from parameters and shapes alone
    written: frozenset[fx.Node]  # values that share memory with what a call writes into
    read: Sequence[Tensor]  # buffers that forward reads
    kept: Mapping[fx.Node, str]  # values that forward keeps in attributes, and the names of these
    defaults: tuple[str, ...]  # optional arguments of forward, traced with their defaults
    changed: tuple[str, ...]  # side effects of forward that a graph would lose

    def layer(self, node: fx.Node) -> nn.Module:
        return self.root.get_submodule(str(node.target))

    def layers(self) -> list[tuple[fx.Node, nn.Module]]:
        return [(node, self.layer(node)) for node in self.graph.find_nodes(op="call_module")]

    def kind(self, node: fx.Node) -> str:
        """The name of what a node calls: a module's class, or a function without trailing underscore."""
        if node.op == "call_module":
            return type(self.layer(node)).__name__.lower()
        return plain_name(node.target)

    def attribute(self, node: fx.Node) -> Any:
        """The parameter, buffer or constant that a node reads."""
        return functools.reduce(getattr, str(node.target).split("."), self.root)

    def writes(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return writes(node, self.layer(node) if node.op == "call_module" else None)

    def named(self, node: fx.Node) -> str:
        """A node as error messages name it."""
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

    def constant(self, value: Argument) -> Any:
        """What an argument is in every call; LookupError if it depends on the model's inputs."""
        if not isinstance(value, fx.Node):
            return value
        if value in self.written:
            raise LookupError(value.name)
        if value.op == "get_attr":
            return self.attribute(value)
        if value.op not in ("call_function", "call_method") or is_random(plain_name(value.target)):
            raise LookupError(value.name)
        args, kwargs = fx.node.map_aggregate((value.args, value.kwargs), self.constant)
        if callable(value.target):
            return value.target(*args, **kwargs)
        return getattr(args[0], value.target)(*args[1:], **kwargs)


def trace(model: nn.Module, inputs: tuple[Any, ...] | None) -> Trace:
    """The graph of a model, which does not change; ValueError with the reason if torch.fx finds none."""
    given = len(inputs or ())
    root, graph, changes, read = _traced(model, given, ())
    arguments = graph.find_nodes(op="placeholder")
    defaults = tuple(node.target for node in arguments if node.args and not node.target.startswith("*"))
    buffers = [name for name, is_written_buffer in changes.items() if is_written_buffer]
    if buffers and needs_graph(root, graph, defaults):
        root, graph, changes, read = _traced(model, given, buffers)
    for position, node in enumerate(graph.find_nodes(op="placeholder")):
        if position < given:
            node.args = ()  # the copy requires it
        elif node.args and not node.users:
            graph.erase_node(node)
    constants, written = _constants(graph, root)
    kept = {
        leaf.node: name for name, value in attributes(root) for leaf in tree_leaves(value) if is_proxy(leaf)
    }
    _check_kept(root, given, {node: name for node, name in kept.items() if node not in constants})
    shapes = {} if inputs is None else _shapes(root, graph, inputs)
    return Trace(graph, root, shapes, constants, written, read, kept, defaults, tuple(changes))


def _traced(
    model: nn.Module, given: int, updated: Sequence[str]
) -> tuple[nn.Module, fx.Graph, dict[str, bool], list[Tensor]]:
    """A copy of the model, its graph, what its forward changes and the buffers that it reads.

    The graph includes calls on the buffers named `updated`; calls on other buffers happen during tracing.
    """
    try:
        # Tracing runs the user's code on the copy's buffers; parameters are only looked at.
        root = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    except RuntimeError as error:
        raise ValueError(f"cannot fold a model that cannot be copied: copy.deepcopy says: {error}") from error
    tracer = Tracer(given, [root.get_buffer(name) for name in updated])
    before = State(root)
    try:
        with torch.random.fork_rng():
            random = torch.get_rng_state()
            graph = tracer.trace(root)
            draws = not torch.equal(random, torch.get_rng_state())
    except Exception as error:  # whatever user code raises when it meets a torch.fx.Proxy
        where = f"in '{tracer.inside[-1]}', " if tracer.inside[-1] else ""
        raise ValueError(
            f"cannot fold a model that torch.fx cannot trace: {where}{type(error).__name__}: {error}. "
            "Fold the parts that it can, as in model.features = sigscale.fold(model.features), or move the "
            "branch that depends on data out of forward"
        ) from error
    frozen = [*tracer.modes, *(["random numbers, drawn once for all calls"] if draws else [])]
    return root, graph, before.changes(root) | dict.fromkeys(frozen, False), tracer.read


def needs_graph(model: nn.Module, graph: fx.Graph, defaults: Sequence[str]) -> bool:
    """Whether the copy has to be a graph: the model's own forward calls sigscale, or was traced in part."""
    scaled = [call_scaling(layer) for layer in model.modules()]
    calls = any(settings is not None and settings.functions for settings in scaled)
    return calls or bool(defaults) or any(called_function(node.target) for node in graph.nodes)


def _check_kept(root: nn.Module, given: int, kept: Mapping[fx.Node, str]) -> None:
    """Raise ValueError if forward, called again, reads what it kept from the first call."""
    found = [*kept.values()]
    try:
        nodes = Tracer(given, []).trace(root).nodes if kept else ()
        found = [kept[value] for node in nodes for value in node.all_input_nodes if value in kept]
    except Exception:  # a second call does something else
        pass
    if found:
        names = ", ".join(map(repr, dict.fromkeys(found)))
        raise ValueError(
            f"cannot fold a model whose forward keeps {names} for its next call, where torch.fx does not see "
            "it: pass it to forward and return it"
        )


def _constants(graph: fx.Graph, root: nn.Module) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """The values that are computed from parameters and shapes alone, and all that calls write into.

    A value is not constant if it shares memory with what a call on the inputs writes into.
    """
    memory = Memory(graph, root)
    layers = {n: root.get_submodule(str(n.target)) for n in graph.find_nodes(op="call_module")}
    targets = {node: writes(node, layers.get(node)) for node in graph.nodes}
    varying: set[fx.Node] = set()
    while True:
        constants: set[fx.Node] = set()
        for node in graph.nodes:
            calls = node.op in ("call_function", "call_method")
            inherits = calls and bool(node.all_input_nodes) and constants.issuperset(node.all_input_nodes)
            if (node.op == "get_attr" or reads_metadata(node) or inherits) and node not in varying:
                constants.add(node)
        depending = [node for node in targets if not constants.issuperset(node.all_input_nodes)]
        found = memory.around(value for node in depending for value in targets[node])
        if found <= varying:
            written = memory.around(value for values in targets.values() for value in values)
            return frozenset(constants), frozenset(written)
        varying |= found


def _shapes(root: nn.Module, graph: fx.Graph, inputs: tuple[Any, ...]) -> dict[fx.Node, torch.Size]:
    shapes = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                shapes[n] = result.shape
            return result

    module = copy.deepcopy(fx.GraphModule(root, graph))  # forward may write into its tensors
    try:
        with torch.no_grad(), torch.random.fork_rng():
            Recorder(module, graph=graph).run(*cloned(inputs))
    except Exception as error:  # whatever the model's operations raise
        raise ValueError(
            "example_inputs must be what the model is called with, a tensor for each argument that is one; "
            f"running the model's graph on them raised {type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}: pass the same as to the model, without trailing None"
        ) from error
    return shapes


def cloned(inputs: tuple[Any, ...]) -> Any:
    """Copies of the example inputs, which forward may write into."""
    return tree_map_only(Tensor, lambda x: x.detach().clone(), inputs)
