"""What operations do to scales: positively homogeneous ones, f(s x) = s f(x) for s > 0, pass them on.

`RULES` has the rule for each function, method and module without parameters; all others have `unknown`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

from ._scales import ONE, Scales
from ._tracer import METADATA, is_number, reads_metadata

Rule = Callable[[Scales, fx.Node], None]

EXTREMES = ("max", "min", "median")
RANKING = ("sort", "topk", "kthvalue", "mode", "cummax", "cummin")  # return values and their indices
ZEROS = ("zeros", "zeros_like", "new_zeros")
TRANSPOSING = {"T", "mT", "H", "mH", "data"}


def apply_rule(scales: Scales, node: fx.Node) -> None:
    """Collect what a call demands of the scales of its operands and its result."""
    name = scales.trace.kind(node).replace("_", "")
    if node.op == "call_function":
        rule = FUNCTIONS_BY_OBJECT.get(node.target, unknown)
    elif node.op == "call_method" or _is_stock(scales.trace.layer(node)):
        rule = RULES.get(name, unknown)
    else:
        rule = unknown
    if rule is reshape and scales.trace.writes(node):
        rule = mix  # the shape that is known for the operand is not the one that later calls see
    (unknown if "out" in node.kwargs else rule)(scales, node)


def _is_stock(layer: nn.Module) -> bool:
    return getattr(nn, type(layer).__name__, None) is type(layer)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operand(node: fx.Node) -> Any:
    """The first argument of a call."""
    return argument(node, 0, "input")


def parts(node: fx.Node) -> list[Any]:
    """The tensors that a call joins; the one value that holds them all, as of h.chunk(2)."""
    found = argument(node, 0, "tensors")
    return [found] if isinstance(found, fx.Node) else list(found)


def shape_of(scales: Scales, value: Any) -> torch.Size:
    """The shape of a tensor; empty if it is unknown, and for numbers."""
    return scales.trace.shapes.get(value, torch.Size()) if isinstance(value, fx.Node) else torch.Size()


def dtypes(node: fx.Node) -> list[torch.dtype]:
    """The dtypes among the arguments of a call."""
    return [x for x in (*node.args, *node.kwargs.values()) if isinstance(x, torch.dtype)]


def unknown(scales: Scales, node: fx.Node, why: str = "") -> None:
    """Everything keeps its scale, 1."""
    if node in scales.trace.constants:
        why = "does not depend on the model's inputs, so that its scale is 1"
    why = why or "is not known to be linear or positively homogeneous, so that its scale stays 1"
    for value in {*node.all_input_nodes, node}:
        scales.pin(value, ONE, node, why)


def keep(scales: Scales, node: fx.Node) -> None:
    """The result has the operand's scale, channel by channel."""
    x, name = operand(node), scales.trace.kind(node)
    floats = all(dtype.is_floating_point for dtype in dtypes(node))
    if name == "to":  # the dtype of another tensor, which may be an integer type
        floats &= {*node.all_input_nodes[1:]} <= scales.trace.constants
    if not (isinstance(x, fx.Node) and floats):
        unknown(scales, node)
        return
    scales.tie((x, node), node)
    if name.endswith("_as"):  # the other operand only lends its shape
        scales.free(node.all_input_nodes, node)


def mix(scales: Scales, node: fx.Node) -> None:
    """The result has the operand's scale, which must be one number."""
    keep(scales, node)
    scales.single(node, node)


def spatial(dimensions: int) -> Rule:
    """`keep` for operations on the last dimensions, unless one of these holds the channels."""

    def rule(scales: Scales, node: fx.Node) -> None:
        (keep if len(shape_of(scales, operand(node))) >= dimensions + 2 else mix)(scales, node)

    return rule


def pad(scales: Scales, node: fx.Node) -> None:
    """Zeros have any scale; other constants only their own."""
    if node.op == "call_module":
        layer: Any = scales.trace.layer(node)
        widths, value = layer.padding, getattr(layer, "value", 0)
    else:
        widths, value = argument(node, 1, "pad"), argument(node, 3, "value", 0)
        value = value if argument(node, 2, "mode", "constant") == "constant" else 0
    if value not in (None, 0):
        unknown(scales, node, f"pads with {value!r}, which does not scale")
    elif isinstance(widths, (tuple, list)):
        spatial(len(widths) // 2)(scales, node)
    else:
        mix(scales, node)


def alpha_dropout(scales: Scales, node: fx.Node) -> None:
    """A module that shifts what it drops while it trains."""
    is_layer = node.op == "call_module"
    (keep if is_layer and not scales.trace.layer(node).training else unknown)(scales, node)


def reshape(scales: Scales, node: fx.Node) -> None:
    """Channels keep their scales where each becomes several adjacent ones, or several become one."""
    if dtypes(node):
        unknown(scales, node, "reads the bits of its operand as another type")
        return
    before, after = shape_of(scales, operand(node)), shape_of(scales, node)
    rows = min(len(before), len(after)) > 1 and before[0] == after[0] and before[1] * after[1] > 0
    fits = rows and 0 in (after[1] % before[1], before[1] % after[1])
    (keep if fits else mix)(scales, node)


def average(scales: Scales, node: fx.Node) -> None:
    """Each channel keeps its scale where only dimensions after the channels are reduced."""
    dims, rank = argument(node, 1, "dim"), len(shape_of(scales, operand(node)))
    dims = (dims,) if isinstance(dims, int) else dims
    known = isinstance(dims, (tuple, list)) and all(isinstance(dim, int) for dim in dims)
    behind = known and rank > 0 and all(dim % rank > 1 for dim in dims)
    (keep if behind else mix)(scales, node)


def share(scales: Scales, node: fx.Node) -> None:
    """All operands and the result share one scale, which must be one number."""
    scales.tie((*node.all_input_nodes, node), node)
    scales.single(node, node)


def ranked(scales: Scales, node: fx.Node) -> bool:
    """Whether a call returns values and their indices."""
    name = scales.trace.kind(node)
    if name in EXTREMES:  # of two tensors, of all values of one, or along a dimension
        other = argument(node, 1, "dim")
        return isinstance(other, int) or (isinstance(other, fx.Node) and is_number(other))
    if node.op == "call_module":
        return bool(getattr(scales.trace.layer(node), "return_indices", False))
    return name in RANKING or name.endswith("_with_indices")  # as F.max_pool2d(return_indices=True) is called


def item(scales: Scales, node: fx.Node) -> None:
    """A part of a tensor, or one of several results; the second result of a ranking holds indices."""
    x, index = node.args
    if not (isinstance(x, fx.Node) and ranked(scales, x)) or index in (0, -2, "values"):
        mix(scales, node)
    elif index in (1, -1, "indices"):
        scales.pin(node, ONE, node, "is indices")
        scales.free((x,), node)
    else:
        unknown(scales, node)


def indices_of(scales: Scales, node: fx.Node) -> None:
    """Which of several values is the largest does not depend on their scale, if they have one."""
    scales.pin(node, ONE, node, "is indices")
    scales.free((operand(node),), node)
    scales.single(operand(node), node)


def assign(scales: Scales, node: fx.Node) -> None:
    """All or part of a tensor is overwritten with 0 or with values of its scale."""
    x, value = operand(node), argument(node, 2 if scales.trace.kind(node) == "setitem" else 1, "other")
    if isinstance(value, fx.Node):
        scales.tie((x, value, node), node)
    elif value == 0:
        scales.tie((x, node), node)
    else:
        unknown(scales, node, f"writes the number {value!r}, which does not scale")
    scales.single(x, node)


def join(scales: Scales, node: fx.Node) -> None:
    """All operands and the result have one scale."""
    name = scales.trace.kind(node)
    if name.endswith("stack"):
        operands = parts(node)
    elif name == "where":
        operands = [argument(node, node.op == "call_function", "input"), argument(node, 2, "other")]
    else:
        operands = [operand(node), argument(node, 1, "other")]
    number = next((x for x in operands if not isinstance(x, fx.Node) and x != 0), None)
    if None in operands or number is not None:
        unknown(
            scales, node, "" if None in operands else f"takes the number {number!r}, which does not scale"
        )
        return
    tensors = [x for x in operands if isinstance(x, fx.Node)]
    for x in tensors:
        if x in scales.trace.constants and scales.trace.kind(x) not in ZEROS:
            scales.pin(x, ONE, x, "does not depend on the model's inputs, so that its scale is 1")
    scales.tie((*tensors, node), node)
    shapes = [shape_of(scales, x) for x in (*tensors, node)]
    if len({(len(shape), shape[1:2]) for shape in shapes}) > 1 or name.endswith("stack"):
        scales.single(node, node)


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
    divides = "div" in scales.trace.kind(node)
    rounds = set(node.kwargs) - {"input", "other"}
    if len(varying) != 1 or rounds or (divides and varying[0] is not operands[0]):
        unknown(scales, node, "multiplies or divides values that depend on the model's inputs")
        return
    scales.tie((varying[0], node), node)
    if shape_of(scales, varying[0]) != shape_of(scales, node):
        scales.single(node, node)


def metadata(scales: Scales, node: fx.Node) -> None:
    """The result does not depend on the operand's values."""
    scales.free(node.all_input_nodes, node)


def attribute(scales: Scales, node: fx.Node) -> None:
    x, name = node.args
    if name in TRANSPOSING:
        mix(scales, node)
    elif isinstance(x, fx.Node) and name in ("values", "indices") and ranked(scales, x):
        item(scales, node)
    else:
        (metadata if reads_metadata(node) else unknown)(scales, node)


NAMES: dict[Rule, str] = {
    keep: """relu leaky_relu prelu rrelu dropout dropout1d dropout2d dropout3d feature_dropout abs neg
        positive pos clone contiguous detach to float double half bfloat16 cpu cuda identity interpolate
        upsample upsampling_nearest2d upsampling_bilinear2d""",
    reshape: "flatten reshape view view_as reshape_as unflatten squeeze unsqueeze",
    average: "mean sum",
    share: f"diff {' '.join(EXTREMES)}",
    mix: f"""permute transpose t swapaxes swapdims movedim moveaxis select narrow index_select gather
        take_along_dim chunk split tensor_split unbind cumsum amax amin flip roll expand expand_as repeat
        repeat_interleave tile broadcast_to pixel_shuffle pixel_unshuffle channel_shuffle unfold fold
        max_unpool1d max_unpool2d max_unpool3d {" ".join(RANKING)}""",
    indices_of: "argmax argmin argsort",
    assign: "setitem copy",
    item: "getitem",
    join: "add sub subtract maximum minimum where stack hstack vstack",
    compare: "gt ge lt le eq ne",
    concatenate: "cat concat concatenate",
    multiply: "mul multiply div divide truediv true_divide",
    metadata: " ".join((*METADATA, *ZEROS)),
    alpha_dropout: "alpha_dropout feature_alpha_dropout",
    pad: " ".join(
        [
            "pad",
            *(
                f"{kind}_pad{d}d"
                for kind in ("zero", "constant", "reflection", "replication", "circular")
                for d in (1, 2, 3)
            ),
        ]
    ),
    **{
        spatial(d): " ".join(
            f"{kind}_pool{d}d{suffix}"
            for kind in ("max", "avg", "adaptive_max", "adaptive_avg", "lp")
            for suffix in ("", "_with_indices")
        )
        for d in (1, 2, 3)
    },
}
RULES = {name.replace("_", ""): rule for rule, names in NAMES.items() for name in names.split()}
"""By names without underscores, so that MaxPool2d is found as max_pool2d."""
FUNCTIONS_BY_OBJECT = {
    found: rule
    for rule, names in NAMES.items()
    for name in names.split()
    for namespace in (torch, F, operator)
    for variant in (name, f"{name}_", f"i{name}")
    if callable(found := getattr(namespace, variant, None))
} | {getattr: attribute}
