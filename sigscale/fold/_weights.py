"""Rescaling the weights of the folded copy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ._absorbers import Factors, absorber
from ._rules import operand
from ._scales import ONE, Scales
from ._trace import Trace, constant


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
        if node.op == "get_attr" and isinstance(tensor := constant(trace, node), Tensor):
            use(tensor, f"{node.target}, as forward reads it,", ONE)
