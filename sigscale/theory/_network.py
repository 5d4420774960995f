"""The toy network in float64, any number of draws at once, and the partial derivatives of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_integer, check_real
from ..kernels.functions import FUNCTIONS, Function

Numbers = Tensor | float | Sequence[Any]


class Activation(NamedTuple):  # f and f', in the arithmetic of their argument
    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def float64(function: Function) -> Activation:
    """f and f' of the registry, on float64 tensors."""
    return Activation(function.torch_value, lambda u: function.torch_slope(u.clone()))  # it owns u


def chain(theta: Sequence[Any], x: Any, f: Activation, alpha: Any, *, naive: bool) -> tuple[Any, list[Any]]:
    """g(x) and its l partial derivatives, in the arithmetic of theta and x.

    With f^0 = x, f^i = f_alpha[theta^i f^(i-1)] and s_i its derivative there, the k-th is
    f^(k-1) s_k prod_(i > k) theta^i s_i. If `naive`, alpha f(z) takes the place of f_alpha(z).
    """
    inner, outer = (1.0, alpha) if naive else (alpha, 1.0)
    outputs, slopes = [x], []
    for weight in theta:
        u = weight * outputs[-1] / inner
        slopes.append(outer * f.slope(u))
        outputs.append(alpha * f.value(u))
    value = outputs.pop()
    partials, later = [], 1.0
    for weight, output, slope in zip(reversed(theta), reversed(outputs), reversed(slopes), strict=True):
        partials.append(later * slope * output)
        later = later * slope * weight
    return value, partials[::-1]


@torch.no_grad()
def run(
    theta: Tensor, x: Tensor, alpha: float | Tensor, function: str, *, naive: bool = False
) -> tuple[Tensor, Tensor]:
    """g(x) and its gradient (..., l) from checked float64 tensors."""
    value, partials = chain(theta.unbind(-1), x, float64(FUNCTIONS[function]), alpha, naive=naive)
    return value, torch.stack(partials, -1)


def network(
    theta: Numbers, x: Numbers, alpha: float = 1.0, function: str = "tanh", *, naive: bool = False
) -> Tensor:
    """g(x) = f_alpha[theta^l f_alpha[theta^(l-1) ... f_alpha[theta^1 x]]], the toy network, in float64.

    Returns: tensor of the common shape of x and theta's leading dimensions.
    Source: Sections 2.1 and 2.3, eq. (1), of arXiv 2106.02260.

    Example:
        >>> theory.network([1.5, 1.5], 1.5, alpha=2.0)
        tensor(1.6757, dtype=torch.float64)
    """
    weights, inputs = checked_network(theta, x=x)
    return run(weights, inputs, checked_scale(alpha), function, naive=naive)[0]


def gradient(
    theta: Numbers,
    x: Numbers,
    alpha: float = 1.0,
    function: str = "tanh",
    *,
    d: Numbers = -1.0,
    r: Numbers = 0.0,
    naive: bool = False,
) -> Tensor:
    """All partial derivatives of the loss h[y - g(x)] + r/2 sum_i (theta^i)^2, in float64.

    The k-th is -d f^(k-1) s_k prod_(i > k) theta^i s_i + r theta^k, where f^i is layer i's output and s_i the
    activation's derivative there. (The paper sets f^0 = 1, which should be x, drops the sign of d, and writes
    f^i for f^i / alpha.) By default this is the gradient of g itself. Below 1e-308 it vanishes, unlike in
    `exact`.

    Returns: tensor (..., l).
    Source: Sections 2.1, 2.2 and 2.3 of arXiv 2106.02260.

    Example:
        >>> theory.gradient([1.5, 1.5], 1.5)
        tensor([0.0188, 0.1876], dtype=torch.float64)
    """
    weights, inputs, slope, penalty = checked_network(theta, x=x, d=d, r=r)
    if (penalty < 0).any():
        raise ValueError(f"r must be at least 0; got {penalty.min().item()!r}: 0 is no penalty")
    _, partials = run(weights, inputs, checked_scale(alpha), function, naive=naive)
    return penalty.unsqueeze(-1) * weights - slope.unsqueeze(-1) * partials


def partial(
    theta: Numbers, x: Numbers, k: int, alpha: float = 1.0, function: str = "tanh", **loss: Any
) -> Tensor:
    """The derivative with respect to theta^k, for k from 1 (next to the input) to l; `loss` is d, r, naive.

    Returns: `gradient(...)[..., k - 1]`.
    Source: Section 2.1 of arXiv 2106.02260.

    Example:
        >>> theory.partial([1.5] * 10, 1.5, k=1), theory.partial([1.5] * 10, 1.5, k=1, alpha=8.0)
        (tensor(9.2566e-06, dtype=torch.float64), tensor(0.0157, dtype=torch.float64))
    """
    (weights,) = checked_network(theta)
    index = check_integer(k, "k", "it counts layers from the input", last=weights.shape[-1])
    return gradient(weights, x, alpha, function, **loss)[..., index - 1]


class Identity(NamedTuple):
    """Both sides of the identity behind the scaling trick, and their largest relative difference."""

    scaled: Tensor
    plain: Tensor
    error: float


def identity(z: Numbers, depth: int, alpha: float, function: str = "tanh") -> Identity:
    """Both sides of f_alpha[f_alpha[... f_alpha[z]]] = alpha f[f[... f[z / alpha]]], f applied `depth` times.

    Linear layers without bias in between change nothing: `network(theta, x, alpha)` is
    `alpha * network(theta, x / alpha)`, and likewise its gradient. So scaling acts on the toy network as a
    smaller input does, until the signal has grown back.

    Returns: the two sides, tensors of z's shape, and their difference.
    Source: Section 2.3 of arXiv 2106.02260.

    Example:
        >>> theory.identity([-3.0, 0.1, 7.0], depth=20, alpha=2.0).error < 1e-14
        True
    """
    scale, inputs = checked_scale(alpha), checked_tensor(z, "z")
    ones = inputs.new_ones(check_integer(depth, "depth", "it counts applications of f"))
    plain = scale * run(ones, inputs / scale, 1.0, function)[0]
    scaled, _ = run(ones, inputs, scale, function)
    errors = (scaled - plain).abs() / torch.maximum(scaled.abs(), plain.abs())
    return Identity(scaled, plain, float(errors.nan_to_num(0.0).max()) if errors.numel() else 0.0)


def checked_scale(alpha: Any) -> float:
    return check_real(alpha, "alpha", "a real number, finite and > 0", "1.0 is the plain function")


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
