"""Checks of the theory's arguments: each error names the rule, the value received and the remedy."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def checked_tensor(numbers: Any, name: str, device: torch.device | None = None) -> Tensor:
    """Real, finite numbers as a float64 tensor that requires no gradient."""
    try:
        tensor = torch.as_tensor(numbers, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a real number or a rectangle of them; got {numbers!r}") from error
    if tensor.is_complex() or tensor.dtype is torch.bool:
        raise TypeError(f"{name} must be made of real numbers; got {tensor.dtype}: pass its real part")
    exact = torch.as_tensor(numbers, dtype=torch.float64, device=device).detach()  # not by way of float32
    if not exact.isfinite().all():
        shown = f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else repr(numbers)
        raise ValueError(f"{name} must be finite; got {shown}: leave infinities and NaN out")
    return exact


def checked_network(theta: Any, **others: Any) -> list[Tensor]:
    """Parameters (..., l), and numbers on their device that broadcast with theta's leading dimensions."""
    weights = checked_tensor(theta, "theta")
    if 0 in weights.shape[-1:] or not weights.dim():
        rule = "theta must have a last dimension with a parameter for each layer"
        raise ValueError(f"{rule}; got shape {tuple(weights.shape)}: pass [1.5] for a single layer")
    tensors = {name: checked_tensor(given, name, weights.device) for name, given in others.items()}
    try:
        torch.broadcast_shapes(weights.shape[:-1], *(tensor.shape for tensor in tensors.values()))
    except RuntimeError as error:
        rule = f"shapes must broadcast with theta's leading dimensions {tuple(weights.shape[:-1])}"
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"{rule}; got {shapes}: pass one number per draw, or a single one") from error
    return [weights, *tensors.values()]


def checked_number(number: Any, name: str) -> float:
    """A real number, finite and > 0."""
    if isinstance(number, bool) or not isinstance(number, Real):
        kind = type(number).__name__
        raise TypeError(f"{name} must be a real number > 0; got {number!r} of type {kind}: pass a float")
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and > 0; got {number!r}: pass a number such as 2.0")
    return value


def checked_count(count: Any, name: str, last: float = math.inf) -> int:
    """An integer from 1 up, to `last` if given."""
    rule = f"{name} must be an integer from 1 " + (
        f"to {last}, the number of layers" if last < math.inf else "on"
    )
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{rule}; got {count!r} of type {type(count).__name__}: pass an int")
    if not 1 <= int(count) <= last:
        raise ValueError(f"{rule}; got {count!r}: the smallest is 1")
    return int(count)
