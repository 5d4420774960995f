"""Layers that can absorb a gain: how their weights are rescaled, and the equations between scales."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..nn.activation import Scaled
from ..nn.recurrent import GRU, IS_TANH, LSTM, RNN, exponents_of
from ._rules import apply_rule, keep, operand, shape_of, unknown
from ._scales import ONE, Scales, as_scale
from ._trace import Trace
from ._tracer import called_function, reads_metadata, scaled_function

Factors = dict[str, Tensor]


class Absorber(NamedTuple):
    """How a layer's parameters and buffers turn y = f(x) into y / s_out from x / s_in.

    `factors(layer, s_in, s_out)` multiply them, for scales with one element or one for each channel.
    `channels` are the attributes with the numbers of channels of x and y; "" if they take one scale. `rank`
    is the number of dimensions of x and y in which the second holds the channels, None if any. If
    `pinned_by` says why, s_in has to be 1.
    """

    factors: Callable[[Any, Tensor, Tensor], Factors]
    channels: tuple[str, str] = ("", "")
    rank: Callable[[Any], int] | None = None
    pinned_by: str = ""


def _linear(layer: nn.Linear, s_in: Tensor, s_out: Tensor) -> Factors:
    return {"weight": s_in / s_out[:, None], "bias": 1 / s_out}


def _conv(layer: Any, s_in: Tensor, s_out: Tensor) -> Factors:
    # The weight has the shape (out, in / groups, *kernel).
    weight = _by_group(s_in, layer.groups, layer.out_channels) / s_out[:, None]
    return {"weight": _per_tap(weight, layer), "bias": 1 / s_out}


def _conv_transpose(layer: Any, s_in: Tensor, s_out: Tensor) -> Factors:
    # The weight has the shape (in, out / groups, *kernel).
    weight = s_in[:, None] / _by_group(s_out, layer.groups, layer.in_channels)
    return {"weight": _per_tap(weight, layer), "bias": 1 / s_out}


def _per_tap(weight: Tensor, layer: Any) -> Tensor:
    return weight.reshape(*weight.shape, *[1] * len(layer.kernel_size))


def _by_group(scale: Tensor, groups: int, rows: int) -> Tensor:
    """For each row of a grouped weight, the scales of the channels of its group."""
    if scale.numel() == 1:
        return scale[:, None]
    return scale.view(groups, -1).repeat_interleave(rows // groups, dim=0)


def _batch_norm(layer: Any, s_in: Tensor, s_out: Tensor) -> Factors:
    # running_var and eps stay: with mean / s_in, the normalized x is 1 / s_in of what it was.
    return {"running_mean": 1 / s_in, "weight": s_in / s_out, "bias": 1 / s_out}


def _scaled_output(layer: Any, s_in: Tensor, s_out: Tensor) -> Factors:
    return {"weight": 1 / s_out, "bias": 1 / s_out}


def _recurrent(layer: Any, s_in: Tensor, s_out: Tensor) -> Factors:
    # s_out is the scale of the states, and so the alpha of every tanh inside.
    names = layer._flat_weights_names
    found = {}
    for name, powers in zip(
        names, exponents_of(layer) if layer.mode in IS_TANH else [(0,)] * len(names), strict=True
    ):
        blocks = s_out ** torch.tensor(powers, dtype=s_out.dtype, device="cpu")
        rows = blocks.repeat_interleave(len(getattr(layer, name)) // len(powers))
        if name.startswith("weight"):
            rows = rows[:, None]
        found[name] = rows * s_in if name.startswith("weight_ih_l0") else rows
    return found


LINEAR = Absorber(_linear, ("in_features", "out_features"), lambda layer: 2)
CONV = Absorber(_conv, ("in_channels", "out_channels"), lambda layer: len(layer.kernel_size) + 2)
BATCH_NORM = Absorber(_batch_norm, ("num_features", "num_features"))
TRAINED_BATCH_NORM = BATCH_NORM._replace(
    factors=_scaled_output,
    pinned_by="normalizes by the statistics of the batch, which its eps keeps from scaling (if it has "
    "running statistics, model.eval() makes it use them)",
)
NORM = Absorber(_scaled_output, pinned_by="normalizes its input, which its eps keeps from scaling")
ABSORBERS: dict[str, Absorber] = {
    "Linear": LINEAR,
    **dict.fromkeys(("Conv1d", "Conv2d", "Conv3d"), CONV),
    **dict.fromkeys(
        ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), CONV._replace(factors=_conv_transpose)
    ),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), BATCH_NORM),
    **dict.fromkeys(("LayerNorm", "RMSNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), NORM),
    "GroupNorm": NORM._replace(channels=("num_channels", "num_channels")),
    **dict.fromkeys(("RNN", "LSTM", "GRU"), Absorber(_recurrent)),
    **dict.fromkeys(("Embedding", "EmbeddingBag"), Absorber(_scaled_output, pinned_by="reads indices")),
}


def absorber(layer: nn.Module) -> Absorber | None:
    """How this layer absorbs a gain; None if it cannot."""
    name = type(layer).__name__
    if type(layer) not in (getattr(nn, name, None), RNN, LSTM, GRU):
        return None
    found = ABSORBERS.get(name)
    if found is BATCH_NORM and (layer.training or not isinstance(layer.running_mean, Tensor)):
        return TRAINED_BATCH_NORM
    return found


def _obstacle(layer: nn.Module) -> str:
    """Why this layer cannot absorb a gain though others of its kind can; "" for any other layer."""
    if is_parametrized(layer):
        return (
            "is parametrized, so that its scale stays 1 (torch.nn.utils.parametrize.remove_parametrizations "
            "makes it a layer that absorbs gains)"
        )
    if getattr(layer, "max_norm", None) is not None:
        return "has a max_norm, which does not scale"
    found = absorber(layer)
    if found is not None and found.pinned_by and getattr(layer, "weight", None) is None:
        return f"{found.pinned_by}, and has no weight"
    return ""


def equations(trace: Trace) -> Scales:
    """What the calls of a model demand of the scales of its values."""
    scales = Scales(trace)
    for node, name in trace.kept.items():
        scales.pin(node, ONE, node, f"is kept in '{name}', where its scale is 1")
    first_calls: dict[nn.Module, fx.Node] = {}
    for node in trace.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            for value in node.all_input_nodes:
                scales.tie((value, node), node)
            scales.pin(node, ONE, node, "has the scale 1")
            continue
        if node.op == "call_module":
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
        for value in trace.writes(node):  # all values that share its memory have one scale
            scales.tie((value, node), node)
        scales.pin_others(node)
    return scales


def _layer(scales: Scales, node: fx.Node, layer: nn.Module) -> None:
    why, found, x = _obstacle(layer), absorber(layer), operand(node)
    if why:
        unknown(scales, node, why)
    elif scaled_function(layer) is not None:
        assert isinstance(layer, Scaled)
        _activation(scales, node, layer.alpha)
    elif found is None:
        apply_rule(scales, node)
    else:
        scales.free((x,), node)
        if found.pinned_by:
            scales.pin(x, ONE, node, found.pinned_by)
        if isinstance(layer, nn.RNNBase):
            _states(scales, node, layer)
        for value in (x, node):
            rank = len(shape_of(scales, value))
            if found.channels == ("", "") or (found.rank is not None and rank != found.rank(layer)):
                scales.single(value, node)


def _activation(scales: Scales, node: fx.Node, alpha: Any) -> None:
    """alpha f(x / alpha) is f where its operand and its result both have the scale alpha."""
    scale = as_scale(alpha)
    keep(scales, node)
    low, high = scale.aminmax()
    shown = f"{low:g}" if low == high else f"{low:g}..{high:g}"
    scales.pin(node, scale, node, f"has alpha = {shown}, which is the scale of its input and output")


def _function(scales: Scales, node: fx.Node) -> None:
    arguments = signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    arguments.apply_defaults()
    try:
        alpha = scales.trace.constant(arguments.arguments["alpha"])
    except LookupError:
        raise ValueError(
            f"cannot fold {scales.trace.named(node)}, whose alpha depends on the model's inputs: make it a "
            "number or a parameter, since the weights of a folded model are fixed"
        ) from None
    _activation(scales, node, alpha)


def _states(scales: Scales, node: fx.Node, layer: nn.RNNBase) -> None:
    """The states of a recurrent layer, the initial ones as well, have the scale alpha."""
    scales.tie((*(value for value in node.all_input_nodes if value is not operand(node)), node), node)
    scale = as_scale(layer.alpha if isinstance(layer, Scaled) and layer.mode in IS_TANH else 1.0)
    why = f"has alpha = {scale.item():g}, which is the scale of its states and output"
    scales.pin(node, scale, node, why)


def rescaling(trace: Trace, scales: Scales) -> dict[str, Factors]:
    """What to multiply the parameters and buffers of each layer by, keyed by the layer's path."""
    found: dict[str, Factors] = {}
    for node, layer in trace.layers():
        how = absorber(layer)
        if how is not None and isinstance(operand(node), fx.Node):
            channels = [getattr(layer, name) if name else 1 for name in how.channels]
            s_in, s_out = map(scales.across, (operand(node), node), channels)
            found[str(node.target)] = how.factors(layer, s_in, s_out)
    _check_shared(trace, found)
    return found


def _check_shared(trace: Trace, rescaling: dict[str, Factors]) -> None:
    """Raise ValueError if a tensor that has several names would need several factors."""
    uses: dict[Tensor, tuple[str, Tensor]] = {}

    def use(tensor: Tensor, name: str, factor: Tensor) -> None:
        other, known = uses.setdefault(tensor, (name, factor))
        if (known != factor).any():
            raise ValueError(
                f"cannot fold: '{other}' and '{name}' are one tensor, which would have to be multiplied by "
                f"different factors: give the layers parameters of their own, such as a clone, before folding"
            )

    for path, layer in trace.root.named_modules():
        factors = rescaling.get(path, {})
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is not None:
                use(tensor, f"{path}.{name}".removeprefix("."), factors.get(name, ONE))
    for node in trace.graph.find_nodes(op="get_attr"):
        if not all(map(reads_metadata, node.users)):
            use(trace.attribute(node), f"{node.target}, as forward reads it,", ONE)
    for tensor in trace.read:
        name, _ = uses.get(tensor, ("", ONE))
        use(tensor, f"{name}, as forward reads it,", ONE)


@torch.no_grad()
def rescale(model: nn.Module, rescaling: dict[str, Factors]) -> None:
    """Multiply in fp64, and round once."""
    done: set[Tensor] = set()
    for path, factors in rescaling.items():
        layer: Any = model.get_submodule(path)
        if getattr(layer, "affine", True) is False and any((f != 1).any() for f in factors.values()):
            mean = layer.running_mean  # a batch norm without a weight gets one
            layer.weight = nn.Parameter(torch.ones_like(mean), requires_grad=False)
            layer.bias = nn.Parameter(torch.zeros_like(mean), requires_grad=False)
            layer.affine = True
        for name, factor in factors.items():
            old = getattr(layer, name, None)
            if not isinstance(old, Tensor) or old in done or (factor == 1).all():
                continue
            new = (old.to("cpu", torch.promote_types(old.dtype, torch.float64)) * factor).to(old.dtype)
            _check_range(f"{path}.{name}", old, new, factor)
            old.copy_(new)
            done.add(old)


def _check_range(name: str, old: Tensor, new: Tensor, factor: Tensor) -> None:
    """Raise ValueError if finite values became infinite, or all became too small for full precision."""
    tiny = torch.finfo(old.dtype).tiny
    if not new.isfinite().all() and old.isfinite().all():
        what, gain = "overflows", factor.max()
    elif old.numel() and new.abs().max() < tiny <= old.abs().max():
        what, gain = "vanishes in", factor.min()
    else:
        return
    raise ValueError(
        f"cannot fold: '{name}' {what} {old.dtype} when it absorbs a gain of {gain:g}: fold a model of a "
        "wider type, as in sigscale.fold(model.float())"
    )
