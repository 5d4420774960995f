"""What operations do to scales: positively homogeneous ones, f(s x) = s f(x) for s > 0, pass them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ._scales import ONE, Scales
from ._tracer import describes, is_number

Rule = Callable[[Scales, fx.Node], None]

EXTREMES = "max min median"
RANKING = "sort topk kthvalue mode cummax cummin"  # values and their indices
ZEROS = ("zeros", "zeros_like", "new_zeros")
TRANSPOSING = {"T", "mT", "H", "mH", "data"}


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operand(node: fx.Node) -> Any:
    """The first argument of a call."""
    return argument(node, 0, "input")


def dtypes(node: fx.Node) -> list[torch.dtype]:
    """The types that a call is given."""
    return [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, torch.dtype)]


def unknown(scales: Scales, node: fx.Node, why: str = "") -> None:
    """Everything keeps its scale, 1."""
    if node in scales.trace.constants:
        why = "does not depend on the model's inputs, so that its scale is 1"
    why = why or "is not known to be linear or positively homogeneous, so that its scale stays 1"
    for value in {*node.all_input_nodes, node}:
        scales.pin(value, ONE, node, why)


def shape_of(scales: Scales, value: Any) -> torch.Size:
    """The shape of a tensor; that of a number if it is not known."""
    return scales.trace.shapes.get(value, torch.Size()) if isinstance(value, fx.Node) else torch.Size()


def keep(scales: Scales, node: fx.Node) -> None:
    """The result has the operand's scale, channel by channel."""
    x = operand(node)
    floats = all(dtype.is_floating_point for dtype in dtypes(node))
    if scales.trace.kind(node) == "to":  # the type of another tensor, which may be one of integers
        floats &= {*node.all_input_nodes[1:]} <= scales.trace.constants
    if isinstance(x, fx.Node) and floats:
        scales.tie((x, node), node)
        if scales.trace.kind(node).endswith("_as"):  # only the shape of the other
            scales.free(node.all_input_nodes, node)
    else:
        unknown(scales, node)


def mix(scales: Scales, node: fx.Node) -> None:
    """The result has the operand's scale, if that is one number."""
    keep(scales, node)
    scales.single(node, node)


def spatial(dimensions: int) -> Rule:
    """Keep what works on the last dimensions, where those do not hold the channels."""

    def rule(scales: Scales, node: fx.Node) -> None:
        (keep if len(shape_of(scales, operand(node))) >= dimensions + 2 else mix)(scales, node)

    return rule


def pad(scales: Scales, node: fx.Node) -> None:
    """Zeros have any scale; other constants only their own."""
    widths, mode = argument(node, 1, "pad"), argument(node, 2, "mode", "constant")
    value = argument(node, 3, "value", 0)
    if mode == "constant" and value not in (None, 0):
        unknown(scales, node, f"pads with {value!r}, which does not scale")
    elif isinstance(widths, (tuple, list)):
        spatial(len(widths) // 2)(scales, node)
    else:
        mix(scales, node)


def reshape(scales: Scales, node: fx.Node) -> None:
    """Keep the scales of channels where each becomes several, in a row, or several become one."""
    if dtypes(node):
        unknown(scales, node, "reads the bits of its operand as another type")
        return
    before, after = shape_of(scales, operand(node)), shape_of(scales, node)
    rows = min(len(before), len(after)) > 1 and before[0] == after[0] and before[1] * after[1] > 0
    fits = rows and 0 in (after[1] % before[1], before[1] % after[1])
    (keep if fits else mix)(scales, node)


def average(scales: Scales, node: fx.Node) -> None:
    """Over the dimensions behind the channels, each channel keeps its scale."""
    dims, rank = argument(node, 1, "dim"), len(shape_of(scales, operand(node)))
    dims = (dims,) if isinstance(dims, int) else dims
    known = isinstance(dims, (tuple, list)) and all(isinstance(dim, int) for dim in dims)
    behind = known and rank > 0 and all(dim % rank > 1 for dim in dims)
    (keep if behind else mix)(scales, node)


def extreme(scales: Scales, node: fx.Node) -> None:
    """Of one tensor, or of two, which then have one scale."""
    scales.tie((*node.all_input_nodes, node), node)
    scales.single(node, node)


def ranked(scales: Scales, node: fx.Node) -> bool:
    """Whether a call returns values and their indices."""
    name = scales.trace.kind(node)
    if name in RANKING.split():
        return True
    if name in EXTREMES.split():  # of two tensors, of all numbers of one, or along a dimension
        other = argument(node, 1, "dim")
        return isinstance(other, int) or (isinstance(other, fx.Node) and is_number(other))
    if node.op == "call_module":
        return bool(getattr(scales.trace.layer(node), "return_indices", False))
    return name.endswith("_with_indices")  # as F.max_pool2d(return_indices=True) is called


def item(scales: Scales, node: fx.Node) -> None:
    """A part of a tensor, or one of several results, of which the second of a ranking are indices."""
    x, index = node.args
    if not (isinstance(x, fx.Node) and ranked(scales, x)):
        mix(scales, node)
    elif index in (1, -1, "indices"):
        scales.pin(node, ONE, node, "is indices")
        scales.free((x,), node)
    elif index in (0, -2, "values"):
        mix(scales, node)
    else:
        unknown(scales, node)


def direct(scales: Scales, node: fx.Node) -> None:
    """Which of several values is the largest does not depend on their scale."""
    scales.pin(node, ONE, node, "is indices")
    scales.free((operand(node),), node)
    scales.single(operand(node), node)


def assign(scales: Scales, node: fx.Node) -> None:
    """A part of a tensor is replaced by 0 or by what has its scale, as is all of it."""
    x, value = operand(node), argument(node, 2 if scales.trace.kind(node) == "setitem" else 1, "other")
    if isinstance(value, fx.Node):
        scales.tie((x, value, node), node)
    elif value == 0:
        scales.tie((x, node), node)
    else:
        unknown(scales, node, f"writes the number {value!r}, which does not scale")
    scales.single(x, node)


def differences(scales: Scales, node: fx.Node) -> None:
    """What is put before or behind a tensor has its scale."""
    others = (argument(node, 3, "prepend"), argument(node, 4, "append"))
    scales.tie((operand(node), *(x for x in others if isinstance(x, fx.Node)), node), node)
    scales.single(node, node)


def join(scales: Scales, node: fx.Node) -> None:
    """All operands and the result have one scale."""
    name = scales.trace.kind(node)
    if name.endswith("stack"):
        operands = parts(node)
    elif name == "where":
        operands = [argument(node, node.op == "call_function", "input"), argument(node, 2, "other")]
    else:
        operands = [operand(node), argument(node, 1, "other")]
    if None in operands:
        unknown(scales, node)
        return
    number = next((x for x in operands if not isinstance(x, fx.Node) and x != 0), None)
    if number is not None:
        unknown(scales, node, f"takes the number {number!r}, which does not scale")
        return
    tensors = [x for x in operands if isinstance(x, fx.Node)]
    for x in tensors:
        if x in scales.trace.constants and scales.trace.kind(x) not in ZEROS:
            scales.pin(x, ONE, x, "does not depend on the model's inputs, so that its scale is 1")
    scales.tie((*tensors, node), node)
    shapes = [shape_of(scales, x) for x in (*tensors, node)]
    if len({(len(shape), shape[1:2]) for shape in shapes}) > 1 or name.endswith("stack"):
        scales.single(node, node)


def parts(node: fx.Node) -> list[Any]:
    """The tensors that a call puts together; the one value that holds them all, as of h.chunk(2)."""
    found = argument(node, 0, "tensors")
    return [found] if isinstance(found, fx.Node) else list(found)


def compare(scales: Scales, node: fx.Node) -> None:
    """Whether a value is above or below 0 does not depend on its scale."""
    if argument(node, 1, "other") == 0:
        scales.free((operand(node),), node)
        scales.pin(node, ONE, node, "is true or false")
    else:
        unknown(scales, node)


def concatenate(scales: Scales, node: fx.Node) -> None:
    """Along the channels, each operand has its own scale."""
    operands = parts(node)
    known = all(part in scales.trace.shapes for part in operands)
    if known and argument(node, 1, "dim", 0) in (1, 1 - len(shape_of(scales, node))):
        scales.concatenate(node, operands)
    else:
        scales.tie((*operands, node), node)
        scales.single(node, node)


def multiply(scales: Scales, node: fx.Node) -> None:
    """Multiplication by a constant is linear."""
    operands = (*node.args[:2], *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs))
    varying = [x for x in operands if isinstance(x, fx.Node) and x not in scales.trace.constants]
    quotient = "div" in scales.trace.kind(node)
    if (
        len(varying) != 1
        or set(node.kwargs) - {"input", "other"}
        or (quotient and varying[0] is not operands[0])
    ):
        unknown(scales, node, "multiplies or divides values that depend on the model's inputs")
        return
    scales.tie((varying[0], node), node)
    if shape_of(scales, varying[0]) != shape_of(scales, node):
        scales.single(node, node)


def describe(scales: Scales, node: fx.Node) -> None:
    """What is asked of a tensor here does not depend on its values."""
    scales.free(node.all_input_nodes, node)


def attribute(scales: Scales, node: fx.Node) -> None:
    x, name = node.args
    if name in TRANSPOSING:
        mix(scales, node)
    elif isinstance(x, fx.Node) and name in ("values", "indices") and ranked(scales, x):
        item(scales, node)
    elif describes(node):
        describe(scales, node)
    else:
        unknown(scales, node)
