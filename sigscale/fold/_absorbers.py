"""Layers that can absorb a gain, the factors that rescale their weights, and the rescaling itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from ..nn.recurrent import GRU, IS_TANH, LSTM, RNN, exponents_of
from ._rules import operand
from ._scales import ONE, Scales
from ._trace import Trace
from ._tracer import describes

Factors = dict[str, Tensor]


class Absorber(NamedTuple):
    """How a layer's parameters and buffers turn y = f(x) into y / s_out from x / s_in.

    `factors(layer, s_in, s_out)` are what they are multiplied with, for scales of one element or one for
    each channel; `channels` are the numbers of these in x and y, `rank` the number of dimensions that x and y
    have where the second one holds the channels (None: any, 0: none). If `pinned_by` says why, s_in has to
    be 1.
    """

    factors: Callable[[Any, Tensor, Tensor], Factors]
    channels: Callable[[Any], tuple[int, int]] = lambda layer: (1, 1)
    rank: Callable[[Any], int | None] = lambda layer: 0
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
    found = {}
    for name, powers in zip(layer._flat_weights_names, _powers(layer), strict=True):
        blocks = s_out ** torch.tensor(powers, dtype=s_out.dtype, device="cpu")
        rows = blocks.repeat_interleave(len(getattr(layer, name)) // len(powers))
        if name.startswith("weight"):
            rows = rows[:, None]
        found[name] = rows * s_in if name.startswith("weight_ih_l0") else rows
    return found


def _powers(layer: Any) -> list[tuple[int, ...]]:
    return exponents_of(layer) if layer.mode in IS_TANH else [(0,)] * len(layer._flat_weights_names)


def _spatial_rank(layer: Any) -> int:
    return len(layer.kernel_size) + 2


LINEAR = Absorber(_linear, lambda layer: (layer.in_features, layer.out_features), lambda layer: 2)
CONV = Absorber(_conv, lambda layer: (layer.in_channels, layer.out_channels), _spatial_rank)
CONV_TRANSPOSE = CONV._replace(factors=_conv_transpose)
EVALUATED = Absorber(_batch_norm, lambda layer: (layer.num_features,) * 2, lambda layer: None)
EMBEDDING = Absorber(_scaled_output, pinned_by="reads indices")
RECURRENT = Absorber(_recurrent)
NORM = Absorber(_scaled_output, pinned_by="normalizes its input, which its eps keeps from scaling")
TRAINED = EVALUATED._replace(
    factors=_scaled_output,
    pinned_by="normalizes by the statistics of the batch, which its eps keeps from scaling (if it has "
    "running statistics, model.eval() makes it use them)",
)
GROUP_NORM = NORM._replace(channels=lambda layer: (layer.num_channels,) * 2, rank=lambda layer: None)

BATCH_NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ABSORBERS: dict[type[nn.Module], Absorber] = {
    nn.Linear: LINEAR,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), CONV),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), CONV_TRANSPOSE),
    **dict.fromkeys(
        (nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), NORM
    ),
    nn.GroupNorm: GROUP_NORM,
    **dict.fromkeys((nn.RNN, nn.LSTM, nn.GRU, RNN, LSTM, GRU), RECURRENT),
    **dict.fromkeys((nn.Embedding, nn.EmbeddingBag), EMBEDDING),
}


def absorber(layer: nn.Module) -> Absorber | None:
    """How this layer takes up a gain; None if it cannot."""
    if type(layer) in BATCH_NORMS:
        running = not layer.training and isinstance(layer.running_mean, Tensor)
        return EVALUATED if running else TRAINED
    return ABSORBERS.get(type(layer))


def obstacle(layer: nn.Module) -> str:
    """Why this layer cannot take up a gain though others of its kind can; "" for any other layer."""
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


def rescaling(trace: Trace, scales: Scales) -> dict[str, Factors]:
    """What the parameters and buffers of each layer are multiplied with, by the layer's path."""
    found: dict[str, Factors] = {}
    for node, layer in trace.layers():
        how = absorber(layer)
        if how is not None and isinstance(operand(node), fx.Node):
            channels_in, channels_out = how.channels(layer)
            s_in, s_out = scales.across(operand(node), channels_in), scales.across(node, channels_out)
            found[str(node.target)] = how.factors(layer, s_in, s_out)
    _check_shared(trace, found)
    return found


@torch.no_grad()
def rescale(model: nn.Module, rescaling: dict[str, Factors]) -> None:
    """Multiply in fp64, and round once."""
    done: set[Tensor] = set()
    for path, factors in rescaling.items():
        layer = model.get_submodule(path)
        if getattr(layer, "affine", True) is False and any((f != 1).any() for f in factors.values()):
            _make_affine(layer)
        for name, factor in factors.items():
            old = getattr(layer, name, None)
            if not isinstance(old, Tensor) or old in done or (factor == 1).all():
                continue
            new = (old.to("cpu", torch.promote_types(old.dtype, torch.float64)) * factor).to(old.dtype)
            _check_range(f"{path}.{name}", old, new, factor)
            old.copy_(new)
            done.add(old)


def _check_range(name: str, old: Tensor, new: Tensor, factor: Tensor) -> None:
    """Raise ValueError if what was a number is infinite now, or all have lost digits for being too small."""
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


def _make_affine(layer: Any) -> None:
    """Give a batch-norm layer without a weight one that changes nothing."""
    mean = layer.running_mean
    layer.weight = nn.Parameter(torch.ones_like(mean), requires_grad=False)
    layer.bias = nn.Parameter(torch.zeros_like(mean), requires_grad=False)
    layer.affine = True


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
    for node in trace.graph.nodes:
        if node.op == "get_attr" and not all(map(describes, node.users)):
            use(trace.attribute(node), f"{node.target}, as forward reads it,", ONE)
    for tensor in trace.read:
        name, _ = uses.get(tensor, ("", ONE))
        use(tensor, f"{name}, as forward reads it,", ONE)
