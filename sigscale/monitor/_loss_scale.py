"""The factor that a gradient scaler has put into gradients, without waiting for the device."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from .._overlay import class_over, is_overlaid, uncover
from ..kernels.reference_sketch import zero_bin
from ..kernels.summary import distribution
from ._rows import TOTALS, Rows

Optimizer = torch.optim.Optimizer
UNSCALED = 1.0  # a gradient that was divided
BEFORE = "call monitor.step() after the last backward pass and before scaler.unscale_() and scaler.step()"


Factors = dict[str, Tensor | float]


@dataclass
class Division:
    """What the scaler has done to the gradients of one optimizer."""

    update: int  # how many updates of the scale came before
    factor: Tensor | float  # by which the gradients are multiplied now; NaN where nobody knows
    version: int | None = None  # of the gradient when the next loss was scaled; None until then


class LossScale:
    """Follows a gradient scaler's calls: which scale losses got, and which gradients are divided by it.

    A gradient that was divided stays so until another loss is scaled. From then on its version counter tells
    whether a backward pass has added to it.
    """

    def __init__(self, scaler: torch.amp.GradScaler, device: torch.device) -> None:
        self.scaler = scaler
        self._one = torch.ones((), device=device)
        self._scale: Tensor | None = None  # of the losses since the last step(), NaN if there were several
        self._divided = WeakTensorKeyDictionary()  # Division by gradient
        self._updates = 0
        self._updated = False  # since the last step()
        FOLLOWERS.setdefault(scaler, []).append(self)
        kind: Any = type(scaler)
        if not is_overlaid(scaler):
            scaler.__class__ = followed_class(kind)

    def close(self) -> None:
        """Leave the scaler as it was."""
        followers = FOLLOWERS[self.scaler]
        followers.remove(self)
        if not followers:
            del FOLLOWERS[self.scaler]
            uncover(self.scaler)

    def loss_scaled(self, scale: Any) -> None:
        """The scaler has multiplied a loss by scale(1)."""
        new, old = scale(self._one), self._scale
        self._scale = new if old is None else new.masked_fill(new != old, torch.nan)
        for gradient, division in self._divided.items():
            if division.version is None:
                division.version = gradient._version

    def gradients_divided(self, optimizer: Optimizer, factor: Tensor | float = UNSCALED) -> None:
        """The scaler, or the optimizer for it, has divided the optimizer's gradients; the factor is left."""
        for parameter in _parameters(optimizer):
            if parameter.grad is not None:
                self._divided[parameter.grad] = Division(self._updates, factor)

    def scale_updated(self) -> None:
        self._updates += 1
        self._updated = True

    def done(self) -> None:
        """A step was made."""
        self._scale, self._updated = None, False

    def activations(self) -> Tensor:
        """What the gradients of activations are multiplied by, 0-d float64; NaN if by several scales.

        Raises:
            RuntimeError: the scale of this step is not known.
        """
        if self._scale is not None:
            return self._scale.double()
        if self._updated:
            raise RuntimeError(
                "the loss scale of this step is not known: scaler.update() ran, and since the last "
                "monitor.step() the scaler has scaled no loss: call scaler.scale(loss).backward(), and "
                "monitor.step() once after it"
            )
        return self.scaler.scale(self._one).double()

    def parameters(self, tracked: Iterable[tuple[str, nn.Parameter]]) -> Factors | None:
        """What the gradient of each parameter is multiplied by; None if all are, by the scale of the losses.

        NaN in a step that the scaler has skipped: an optimizer that divides in its own kernel did not get to
        that.

        Raises:
            RuntimeError: a gradient is divided in part, or some are and others are not.
        """
        gradients = {name: parameter.grad for name, parameter in tracked}
        found = {name: self._factor(name, g) for name, g in gradients.items() if g is not None}
        divided = {name: factor for name, factor in found.items() if factor is not None}
        if divided and len(divided) < len(found):
            other = next(name for name in found if name not in divided)
            raise RuntimeError(
                f"the scaler has divided the gradient of {next(iter(divided))!r} by its scale, and not yet "
                f"that of {other!r}: {BEFORE} of the first optimizer, or after those of the last one"
            )
        return divided or None

    def _factor(self, name: str, gradient: Tensor) -> Tensor | float | None:
        """What a divided gradient is multiplied by; None if it is not divided."""
        division: Division | None = self._divided.get(gradient)
        if division is None or division.version in (None, gradient._version):
            return None if division is None else division.factor
        if division.update == self._updates:
            raise RuntimeError(
                f"the gradient of {name!r} was divided by the scale, and changed after another loss was "
                f"scaled: {BEFORE}, or let optimizer.zero_grad(set_to_none=True) come between the two"
            )
        del self._divided[gradient]
        return None


FOLLOWERS: weakref.WeakKeyDictionary[torch.amp.GradScaler, list[LossScale]] = weakref.WeakKeyDictionary()


@cache
def followed_class(base: type[torch.amp.GradScaler]) -> type[torch.amp.GradScaler]:
    """The class of a scaler of `base` whose calls are passed on to its followers."""

    def scale(self: Any, outputs: Any) -> Any:
        result = base.scale(self, outputs)
        for follower in FOLLOWERS.get(self, ()):
            follower.loss_scaled(lambda x: base.scale(self, x))
        return result

    def unscale_(self: Any, optimizer: Optimizer) -> None:
        base.unscale_(self, optimizer)
        for follower in FOLLOWERS.get(self, ()):
            follower.gradients_divided(optimizer)

    def step(self: Any, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        factors: list[Tensor | float] = []  # empty where the scaler leaves the step out
        handle = optimizer.register_step_pre_hook(lambda *_: factors.append(_factor_after_step(optimizer)))
        try:
            result = base.step(self, optimizer, *args, **kwargs)
        finally:
            handle.remove()
        for follower in FOLLOWERS.get(self, ()):
            follower.gradients_divided(optimizer, factors[0] if factors else math.nan)
        return result

    def update(self: Any, *args: Any, **kwargs: Any) -> None:
        base.update(self, *args, **kwargs)
        for follower in FOLLOWERS.get(self, ()):
            follower.scale_updated()

    return class_over(base, {"scale": scale, "unscale_": unscale_, "step": step, "update": update})


def _factor_after_step(optimizer: Optimizer) -> Tensor | float:
    """What gradients are multiplied by after the step that begins; NaN if it finds an overflow."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return UNSCALED
    overflow: Tensor | None = getattr(optimizer, "found_inf", None)
    return math.nan if overflow is None else torch.ones_like(overflow).masked_fill(overflow > 0, torch.nan)


def _parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def factors_of_rows(
    rows: Rows, are_parameters: Tensor, activations: Tensor, parameters: Factors | None
) -> Tensor:
    """What the counted values of each row were multiplied by, (rows,) float64."""
    if parameters is None:
        return activations.expand(len(rows))
    one = torch.ones_like(activations)
    odd = {name: one * factor for name, factor in parameters.items() if factor is not UNSCALED}
    if not odd:
        return torch.where(are_parameters, one, activations)
    odd[TOTALS["parameter"]] = torch.stack([*odd.values()]).prod()
    of_activations = {name for name, kind in zip(rows.names, rows.kinds, strict=True) if kind == "activation"}
    of_activations.add(TOTALS["activation"])
    return torch.stack([activations if name in of_activations else odd.get(name, one) for name in rows.names])


def unscaled(counts: Tensor, scale: float, m: int) -> Tensor:
    """Counts (bins,) of values times `scale`, as counts of the values.

    Exact for a power of two as long as the results are normal fp32 numbers; otherwise a value may end up in
    the bin next to its own.
    """
    if scale == 1:
        return counts.clone()
    _, lower, upper = distribution(counts, m, magnitude=True)
    middle = torch.where(upper < torch.inf, lower + (upper - lower) / 2, lower) / scale
    moved = torch.searchsorted(lower, middle, right=True) - 1
    moved[0] = 0
    zero = zero_bin(m)
    result = torch.zeros_like(counts)
    result.index_add_(0, zero + moved, counts[zero:-1])
    result.index_add_(0, zero - moved[1:], counts[:zero].flip(0))
    result[-1] = counts[-1]
    return result
