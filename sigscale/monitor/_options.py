"""The arguments of a `GradientMonitor`, checked, and the alarm that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._checks import check_mantissa_bits, check_quantiles, check_real, warn
from ._recorder import Statistics
from .history import quantile_name


def check_scaler(scaler: Any) -> None:
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(
            f"scaler must be a torch.amp.GradScaler or None; got {type(scaler).__name__}: pass the one "
            "that scales the loss, or leave it out if nothing does"
        )


def check_threshold(value: Any, name: str) -> float:
    """value as a float; ValueError unless it is finite and > 0."""
    remedy = "1e-8 is usual, and exact zeros have a count of their own"
    return check_real(value, name, "a magnitude, finite and > 0", remedy, wrong_type=ValueError)


def check_alarm(below: Any, fraction: Any, on_vanishing: Any) -> Alarm | None:
    """The alarm, if one was asked for."""
    if on_vanishing is not None and not callable(on_vanishing):
        raise TypeError(
            "on_vanishing must be called with a step and {name: share}; "
            f"got {on_vanishing!r}: pass a function of two arguments, or leave it out for a warning"
        )
    rule, remedy = "a share above 0 and up to 1", "0.9 warns when nine in ten are below warn_below"
    share = check_real(fraction, "warn_fraction", rule, remedy, high=1.0, wrong_type=ValueError)
    if below is None:
        if on_vanishing is None:
            return None
        below = 1e-8
    return Alarm(check_threshold(below, "warn_below"), share, on_vanishing)


def check_statistics(
    quantiles: Any, thresholds: Any, alarm: Alarm | None, magnitude: Any, mantissa_bits: Any
) -> Statistics:
    """The statistics to record of each gradient; ValueError or TypeError if an argument is wrong."""
    numbers = tuple(map(float, check_quantiles(quantiles)[0]))
    limits = tuple(check_threshold(value, "thresholds") for value in _listed(thresholds))
    if alarm is not None and alarm.below not in limits:
        limits = (*limits, alarm.below)
    for name, values, columns in (
        ("quantiles", numbers, {*map(quantile_name, numbers)}),
        ("thresholds", limits, {*limits}),
    ):
        if len(columns) < len(values):
            raise ValueError(f"{name} must be different from each other; got {values}: name each once")
    if not numbers:
        raise ValueError("quantiles must not be empty; got (): pass (0.5,) for the median alone")
    return Statistics(numbers, limits, bool(magnitude), check_mantissa_bits(mantissa_bits))


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) else [values]


OnVanishing = Callable[[int, Mapping[str, float]], object]


class Alarm:
    """Warns once per layer when a share of at least `fraction` is below `below`; re-arms on recovery."""

    def __init__(self, below: float, fraction: float, on_vanishing: OnVanishing | None) -> None:
        self.below, self.fraction = below, fraction
        self.on_vanishing = on_vanishing or self._warn
        self._vanished: set[str] = set()

    def look(self, step: int, names: Sequence[str], shares: npt.NDArray[np.float64]) -> None:
        """Check the share of each layer's gradient below the threshold, NaN where it had none."""
        vanished = {}
        for name, share in zip(names, shares.tolist(), strict=True):
            if share >= self.fraction and name not in self._vanished:
                vanished[name] = share
            elif share < self.fraction:
                self._vanished.discard(name)
        if vanished:
            self._vanished.update(vanished)
            self.on_vanishing(step, vanished)

    def _warn(self, step: int, vanished: Mapping[str, float]) -> None:
        layers = ", ".join(f"{share:.0%} of {name!r}" for name, share in vanished.items())
        warn(
            f"vanishing gradients: below {self.below:g} in magnitude at step {step}: {layers}. Where "
            "activations saturate, use scaled ones such as sigscale.nn.Tanh(alpha=2.0) or an L2 penalty; "
            "where weights are too small, use larger initial values"
        )
