"""Checks of what a `GradientMonitor` is given."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from numbers import Real
from typing import Any

import torch

from .._checks import check_quantiles
from ..kernels.reference_sketch import MANTISSA_BITS
from ._alarm import Alarm
from ._recorder import Statistics
from .history import quantile_name


def check_scaler(scaler: Any) -> None:
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        raise TypeError(
            f"scaler must be a torch.amp.GradScaler or None; got {type(scaler).__name__}: pass the one "
            "that scales the loss, or leave it out if nothing does"
        )


def check_integer(value: Any, name: str, meaning: str) -> int:
    """value as an int; ValueError unless it is an integer from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer from 1 on; got {value!r}: {meaning}")
    return value


def check_threshold(value: Any, name: str) -> float:
    """value as a float; ValueError unless it is finite and > 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= sys.float_info.max:  # type: ignore[operator]
        raise ValueError(
            f"{name} must be a magnitude, finite and > 0; got {value!r}: 1e-8 is usual, and exact zeros "
            "have a count of their own"
        )
    return float(value)


def check_alarm(below: Any, fraction: Any, on_vanishing: Any) -> Alarm | None:
    """The alarm that is wanted, if any."""
    if on_vanishing is not None and not callable(on_vanishing):
        raise TypeError(
            "on_vanishing must be called with a step and {name: share}; "
            f"got {on_vanishing!r}: pass a function of two arguments, or leave it out for a warning"
        )
    share = check_fraction(fraction)
    if below is None:
        if on_vanishing is None:
            return None
        below = 1e-8
    return Alarm(check_threshold(below, "warn_below"), share, on_vanishing)


def check_fraction(value: Any) -> float:
    """value as a float; ValueError unless it is a share above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:  # type: ignore[operator]
        raise ValueError(
            f"warn_fraction must be a share of coordinates, above 0 and up to 1; got {value!r}: "
            "0.9 warns when nine in ten are below warn_below"
        )
    return float(value)


def check_statistics(
    quantiles: Any, thresholds: Any, alarm: Alarm | None, magnitude: Any, mantissa_bits: Any
) -> Statistics:
    """What is recorded of each gradient; ValueError or TypeError if it cannot be."""
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
    if type(mantissa_bits) is not int or mantissa_bits not in MANTISSA_BITS:
        raise ValueError(
            f"mantissa_bits must be one of {', '.join(map(str, MANTISSA_BITS))}; got {mantissa_bits!r}: "
            "3 bounds a quantile to 12.5 %, each bit more halves that"
        )
    return Statistics(numbers, limits, bool(magnitude), mantissa_bits)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, Iterable) else [values]
