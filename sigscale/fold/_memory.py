"""What a model's forward writes into: operands of calls in place, what shares their memory, attributes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from ..kernels.functions import FUNCTIONS
from ..nn.activation import Scaled
from ._tracer import STATEMENTS, is_number

# Calls that return new memory; any other may return a view of an operand.
NEW = """add sub subtract maximum minimum where mul multiply div divide truediv true_divide cat concat
    concatenate stack hstack vstack gt ge lt le eq ne mean sum zeros zeros_like new_zeros clone neg abs amax
    amin linear conv1d conv2d conv3d matmul exp exp2 softplus"""
MODULE_STATE = frozenset(vars(nn.Module()))
EMPTY = torch.empty(0, dtype=torch.uint8, device="cpu")

Content = list[tuple[Any, int, Tensor]]


def plain_name(target: Any) -> str:
    """The name of a function or method, without the underscores that mark calls in place."""
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if name.startswith("__") and name.endswith("__"):
        return STATEMENTS.get(name, name)
    return name.removesuffix("_")


def writes(node: fx.Node, layer: nn.Module | None = None) -> tuple[fx.Node, ...]:
    """The operands that a call writes into; `layer` is the module that it calls."""
    arguments: dict[Any, Any] = dict(enumerate(node.args)) | node.kwargs
    written, in_place = [], False
    if layer is not None:
        in_place = getattr(layer, "inplace", False) is True
    elif node.op == "call_method":
        name = str(node.target)
        in_place = name in STATEMENTS or (name.endswith("_") and not name.endswith("__"))
    elif node.op == "call_function":
        name = plain_name(node.target)
        written.append(arguments.get("out"))
        in_place = getattr(node.target, "__name__", "") in (f"{name}_", "setitem") or _is_in_place(node)
        if name in ("batch_norm", "instance_norm"):
            written += [arguments.get(1, arguments.get("running_mean"))]
            written += [arguments.get(2, arguments.get("running_var"))]
    if in_place:
        written.append(arguments.get(0, arguments.get("input")))
    return tuple(value for value in tree_leaves(written) if isinstance(value, fx.Node))


def _is_in_place(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is not False
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which has no signature
        return False
    return bool(bound.arguments.get("inplace", False))


class Memory:
    """Which values of a graph may share memory."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._near: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
        holders: dict[Any, fx.Node] = {}
        for node in graph.nodes:
            if node.op == "get_attr":
                tensor: Any = functools.reduce(getattr, str(node.target).split("."), root)
                strided = isinstance(tensor, Tensor) and tensor.layout is torch.strided
                storage = tensor.untyped_storage()._cdata if strided else id(tensor)
                self._join(node, holders.setdefault(storage, node))
            if not is_number(node):
                layer = root.get_submodule(str(node.target)) if node.op == "call_module" else None
                for value in _sources(node, layer):
                    if not is_number(value):
                        self._join(node, value)

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        self._near[a].append(b)
        self._near[b].append(a)

    def around(self, values: Iterable[fx.Node]) -> set[fx.Node]:
        """These values and all that may share memory with them."""
        return {*reach(values, self._near.__getitem__)}


def reach(
    starts: Iterable[fx.Node], neighbors: Callable[[fx.Node], Iterable[fx.Node]]
) -> dict[fx.Node, fx.Node | None]:
    """All nodes connected to the starts; for each, its predecessor on a shortest path."""
    found: dict[fx.Node, fx.Node | None] = dict.fromkeys(starts)
    waiting = [*found]
    for node in waiting:  # which grows
        for other in neighbors(node):
            if other not in found:
                found[other] = node
                waiting.append(other)
    return found


def _sources(node: fx.Node, layer: nn.Module | None) -> Iterable[fx.Node]:
    """The operands with which the result of a call may share memory."""
    if layer is not None:
        makes_new = isinstance(layer, Scaled) or any(True for _ in layer.parameters())
    else:
        name = plain_name(node.target)
        makes_new = name in NEW.split() or name in FUNCTIONS
        if name.endswith("_as"):  # the second operand only lends its shape
            return node.all_input_nodes[:1]
    return writes(node, layer) if makes_new else node.all_input_nodes


def is_random(name: str) -> bool:
    """Whether a function of PyTorch, by its name, draws random numbers."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
    return any(torch.Tag.nondeterministic_seeded in overload.tags for overload in overloads)


class State:
    """A snapshot of the attributes and buffers of a model."""

    def __init__(self, root: nn.Module) -> None:
        self._before = {name: (value, _content(value)) for name, value in attributes(root)}

    def changes(self, root: nn.Module) -> dict[str, bool]:
        """The names of what has changed since; for each, whether it is a buffer that was written into."""
        buffers = {name for name, _ in root.named_buffers(remove_duplicate=False)}
        found = {}
        for name, value in attributes(root):
            old, content = self._before.get(name, (None, []))
            if value is not old or not _is_same(content, _content(value)):
                found[name] = value is old and name in buffers
        return found


def attributes(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """The attributes and buffers of all modules, without parameters and submodules."""
    for path, module in root.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            made_by_fx = path == "" and name.startswith("_tensor_constant")
            if name not in MODULE_STATE and not made_by_fx:
                yield f"{path}.{name}" if path else name, value


def _content(value: Any) -> Content:
    """The leaves of a value; for tensors also version and bits: writes to x.data show in bits alone."""
    return [(x, *_version_and_bits(x)) for x in tree_leaves(value)]


def _version_and_bits(x: Any) -> tuple[int, Tensor]:
    if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.layout is not torch.strided:
        return 0, EMPTY
    if x.is_quantized or x.is_meta or x.is_nested:
        return 0, EMPTY
    bits = x.detach().resolve_conj().resolve_neg().flatten().clone().view(torch.uint8)
    return 0 if x.is_inference() else x._version, bits


def _is_same(before: Content, now: Content) -> bool:
    return len(before) == len(now) and all(
        x is y and version == new_version and torch.equal(bits, new_bits)
        for (x, version, bits), (y, new_version, new_bits) in zip(before, now, strict=True)
    )
