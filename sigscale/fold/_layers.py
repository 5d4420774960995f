"""The equations between the scales of a model's values."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import fx, nn

from ..nn.activation import Scaled
from . import _rules as rules
from ._absorbers import Absorber, absorber, obstacle
from ._rules import Rule, operand, unknown
from ._scales import ONE, Scales, as_scale
from ._table import apply_rule
from ._trace import Trace, called_function, constant
from ._tracer import scaled_function


def equations(trace: Trace) -> Scales:
    """What the calls of a model demand of the scales of its values."""
    scales = Scales(trace)
    for node, name in trace.kept.items():
        scales.pin(node, ONE, node, f"is kept in '{name}', where its scale is 1")
    first_calls: dict[nn.Module, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op in ("placeholder", "get_attr"):
            scales.pin(node, ONE, node, "has the scale 1")
        elif node.op == "output":
            for value in node.all_input_nodes:
                scales.tie((value, node), node)
            scales.pin(node, ONE, node, "has the scale 1")
        elif node.op == "call_module":
            layer = trace.layer(node)
            _layer(scales, node, layer)
            first = first_calls.setdefault(layer, node)
            if first is not node and absorber(layer) is not None:
                scales.tie((operand(first), operand(node)), node)
                scales.tie((first, node), node)
        elif called_function(node.target):
            _function(scales, node)
        else:
            apply_rule(scales, node)
        if node.op.startswith("call"):
            for value in trace.writes(node):  # which other values may share memory with, all of this scale
                scales.tie((value, node), node)
            scales.pin_others(node)
    return scales


def _layer(scales: Scales, node: fx.Node, layer: nn.Module) -> None:
    why, found = obstacle(layer), absorber(layer)
    if why:
        unknown(scales, node, why)
    elif scaled_function(layer) is not None:
        assert isinstance(layer, Scaled)
        _activation(scales, node, layer.alpha)
    elif isinstance(layer, nn.RNNBase) and found is not None:
        _recurrent(scales, node, layer)
    elif found is not None:
        _absorbing(scales, node, layer, found)
    else:
        MODULES.get(type(layer), unknown)(scales, node)


def _activation(scales: Scales, node: fx.Node, alpha: Any) -> None:
    """alpha f(x / alpha) is f where its operand and its result both have the scale alpha."""
    scale = as_scale(alpha)
    rules.keep(scales, node)
    low, high = scale.aminmax()
    shown = f"{low:g}" if low == high else f"{low:g}..{high:g}"
    scales.pin(node, scale, node, f"has alpha = {shown}, which is the scale of its input and output")


def _function(scales: Scales, node: fx.Node) -> None:
    arguments = signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    arguments.apply_defaults()
    try:
        alpha = constant(scales.trace, arguments.arguments["alpha"])
    except LookupError:
        raise ValueError(
            f"cannot fold {scales.trace.named(node)}, whose alpha depends on the model's inputs: make it a "
            "number or a parameter, since the weights of a folded model are fixed"
        ) from None
    _activation(scales, node, alpha)


def _absorbing(scales: Scales, node: fx.Node, layer: nn.Module, how: Absorber) -> None:
    """The scales of operand and result are free, but for what the layer cannot do by channels."""
    x, rank = operand(node), how.rank(layer)
    scales.free((x,), node)
    if how.pinned_by:
        scales.pin(x, ONE, node, how.pinned_by)
    for value in (x, node):
        if rank == 0 or rank not in (None, len(rules.shape_of(scales, value))):
            scales.single(value, node)


def _recurrent(scales: Scales, node: fx.Node, layer: nn.RNNBase) -> None:
    """Any scale of the input, and alpha as that of the states, the initial ones as well."""
    x = operand(node)
    states = [value for value in node.all_input_nodes if value is not x]
    scales.free((x,), node)
    scales.tie((*states, node), node)
    for value in (x, node):
        scales.single(value, node)
    alpha = layer.alpha if isinstance(layer, Scaled) and layer.mode != "RNN_RELU" else 1.0
    scale = as_scale(alpha)
    why = f"has alpha = {scale.item():g}, which is the scale of its states and output"
    scales.pin(node, scale, node, why)


def _padded(scales: Scales, node: fx.Node) -> None:
    """As rules.pad, of a module."""
    layer: Any = scales.trace.layer(node)
    if getattr(layer, "value", 0) != 0:
        unknown(scales, node, f"pads with {layer.value!r}, which does not scale")
    else:
        rules.spatial(len(layer.padding) // 2)(scales, node)


def _alpha_dropout(scales: Scales, node: fx.Node) -> None:
    (unknown if scales.trace.layer(node).training else rules.keep)(scales, node)


def _modules() -> dict[type[nn.Module], Rule]:
    groups: dict[Rule, str] = {
        rules.keep: "ReLU LeakyReLU PReLU RReLU Identity Dropout Dropout1d Dropout2d Dropout3d Upsample "
        "UpsamplingNearest2d UpsamplingBilinear2d",
        rules.reshape: "Flatten Unflatten",
        rules.mix: "PixelShuffle PixelUnshuffle ChannelShuffle Fold Unfold MaxUnpool1d MaxUnpool2d "
        "MaxUnpool3d",
        _alpha_dropout: "AlphaDropout FeatureAlphaDropout",
    }
    pools = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool")
    pads = ("ZeroPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "CircularPad")
    for d in (1, 2, 3):
        groups[rules.spatial(d)] = " ".join(f"{kind}{d}d" for kind in pools)
        groups[_padded] = groups.get(_padded, "") + " ".join(f" {kind}{d}d" for kind in pads)
    return {getattr(nn, name): rule for rule, names in groups.items() for name in names.split()}


MODULES = _modules()
