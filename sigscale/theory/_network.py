"""The toy network in float64, any number of draws at once, and the partial derivatives of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.functions import FUNCTIONS, Function
from ._checks import checked_count, checked_network, checked_number, checked_tensor

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
    f^(k-1) s_k prod_(i > k) theta^i s_i. Naively, alpha f(z) takes the place of f_alpha(z).
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
    return run(weights, inputs, checked_number(alpha, "alpha"), function, naive=naive)[0]


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

    The k-th is -d f^(k-1) s_k prod_(i > k) theta^i s_i + r theta^k, where f^i is layer i's output, s_i the
    activation's derivative there. The paper sets f^0 = 1, which should be x, and drops the sign of d; for
    alpha other than 1, its f^i is f^i / alpha here. By default this is the gradient of g itself.

    Returns: tensor (..., l). Below 1e-308 it vanishes, unlike in `exact`.
    Source: the formulas of Sections 2.1, 2.2 and 2.3 of arXiv 2106.02260.

    Example:
        >>> theory.gradient([1.5, 1.5], 1.5)
        tensor([0.0188, 0.1876], dtype=torch.float64)
    """
    weights, inputs, slope, penalty = checked_network(theta, x=x, d=d, r=r)
    if (penalty < 0).any():
        raise ValueError(f"r must be at least 0; got {penalty.min().item()!r}: 0 is no penalty")
    _, partials = run(weights, inputs, checked_number(alpha, "alpha"), function, naive=naive)
    return penalty.unsqueeze(-1) * weights - slope.unsqueeze(-1) * partials


def partial(
    theta: Numbers, x: Numbers, k: int, alpha: float = 1.0, function: str = "tanh", **loss: Any
) -> Tensor:
    """The derivative with respect to theta^k, k from 1, next to the input, to l; `loss` is d, r and naive.

    Returns: `gradient(...)[..., k - 1]`.
    Source: Section 2.1 of arXiv 2106.02260.

    Example:
        >>> theory.partial([1.5] * 10, 1.5, k=1), theory.partial([1.5] * 10, 1.5, k=1, alpha=8.0)
        (tensor(9.2566e-06, dtype=torch.float64), tensor(0.0157, dtype=torch.float64))
    """
    (weights,) = checked_network(theta)
    index = checked_count(k, "k", weights.shape[-1])
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
    scale, inputs = checked_number(alpha, "alpha"), checked_tensor(z, "z")
    ones = inputs.new_ones(checked_count(depth, "depth"))
    plain = scale * run(ones, inputs / scale, 1.0, function)[0]
    scaled, _ = run(ones, inputs, scale, function)
    errors = (scaled - plain).abs() / torch.maximum(scaled.abs(), plain.abs())
    return Identity(scaled, plain, float(errors.nan_to_num(0.0).max()) if errors.numel() else 0.0)
