"""Checks of what the theory is given: each error names the value received, the rule and the remedy."""

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
        raise ValueError(f"{name} must be finite; got {_shown(numbers)}: leave infinities and NaN out")
    return exact


def checked_theta(theta: Any) -> Tensor:
    """The parameters, at least one of them, as a float64 tensor (..., l)."""
    tensor = checked_tensor(theta, "theta")
    if tensor.dim() == 0 or tensor.shape[-1] == 0:
        raise ValueError(
            f"theta must have a last dimension with a parameter for each layer; got shape "
            f"{tuple(tensor.shape)}: pass [1.5] for a single layer"
        )
    return tensor


def checked_number(number: Any, name: str) -> float:
    """A real number, finite and > 0."""
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(
            f"{name} must be a real number > 0; got {number!r} of type {type(number).__name__}: pass a float"
        )
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and > 0; got {number!r}: pass a number such as 2.0")
    return value


def checked_count(count: Any, name: str, last: int | None = None) -> int:
    """An integer from 1 on, up to `last` if there is one."""
    rule = f"{name} must be an integer from 1 " + (
        "on" if last is None else f"to {last}, the number of layers"
    )
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{rule}; got {count!r} of type {type(count).__name__}: pass an int")
    number = int(count)
    if number < 1 or (last is not None and number > last):
        raise ValueError(f"{rule}; got {count!r}: the smallest is 1")
    return number


def checked_together(theta: Tensor, **others: Any) -> list[Tensor]:
    """Real numbers on theta's device, whose shapes broadcast with theta's leading dimensions."""
    tensors = {name: checked_tensor(given, name, theta.device) for name, given in others.items()}
    try:
        torch.broadcast_shapes(theta.shape[:-1], *(tensor.shape for tensor in tensors.values()))
    except RuntimeError as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(
            f"shapes must broadcast with theta's leading dimensions {tuple(theta.shape[:-1])}; got {shapes}: "
            "give each draw its own number, or all the same one"
        ) from error
    return list(tensors.values())


def _shown(numbers: Any) -> str:
    return f"shape {tuple(numbers.shape)}" if isinstance(numbers, Tensor) else repr(numbers)
