"""The factor that a gradient scaler has put into gradients, without waiting for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.reference_sketch import zero_bin
from ..kernels.summary import distribution
from ._hooks import Hook

UNTOUCHED = "READY"  # stage of an optimizer whose gradients scaler.unscale_() has not divided


class LossScale(Hook):
    """Forward pre-hook of the model, which notes the scale that the backward pass will use.

    By the time of monitor.step(), scaler.update() may have changed it. What has happened to the parameters'
    gradients since is written in the scaler's states of its optimizers, which update() replaces by new ones.
    """

    def __init__(self, scaler: torch.amp.GradScaler, device: torch.device) -> None:
        self.scaler = scaler
        self.one = torch.ones((), device=device)
        self.scale = self.one
        self.states = self._current_states()
        self.is_new = False

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break()
        self.scale = self.scaler.scale(self.one)
        self.states = self._current_states()
        self.is_new = True

    def factors(self) -> tuple[Tensor, Tensor]:
        """What the gradients of activations and of parameters are multiplied by now, 0-d float64.

        NaN for parameters in a step that the scaler has skipped: an optimizer that divides in its own kernel
        did not get to that.

        Raises:
            RuntimeError: the scale of this step is not known.
        """
        if not self.is_new:
            if self.states is not self._current_states():
                raise RuntimeError(
                    "the loss scale of this step is not known: scaler.update() ran, and since the last "
                    "monitor.step() the model that the monitor got was not called: call it as model(...), "
                    "and monitor.step() once after its backward pass"
                )
            self.scale = self.scaler.scale(self.one)
        scale = self.scale.double()
        touched = [state for state in self.states.values() if state["stage"].name != UNTOUCHED]
        if not touched:
            return scale, scale
        stepped = [state for state in touched if state["stage"].name == "STEPPED"]
        found = [flag for state in stepped for flag in state["found_inf_per_device"].values()]
        one = self.one.double()
        if not found:
            return scale, one
        skipped = torch.stack([flag.to(one.device, non_blocking=True) for flag in found]).amax(0) > 0
        return scale, one.masked_fill(skipped, torch.nan)

    def done(self) -> None:
        """A step was measured."""
        self.is_new = False

    def _current_states(self) -> dict[int, dict[str, Any]]:
        states = getattr(self.scaler, "_per_optimizer_states", None)
        if not isinstance(states, dict):
            raise RuntimeError(
                "this version of PyTorch does not tell whether gradients are unscaled: make the monitor "
                "without scaler=, and call monitor.step() after scaler.unscale_(optimizer)"
            )
        return states


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
