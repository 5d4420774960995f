"""The toy network in float64, any number of draws at once, and the partial derivatives of its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels.functions import FUNCTIONS
from ..kernels.registry import Function
from .checks import checked_count, checked_number, checked_tensor, checked_theta, checked_together

Numbers = Tensor | float | Sequence[Any]


@dataclass(frozen=True)
class Activation:
    """A function of one number and its derivative, in the arithmetic of the numbers they are given."""

    value: Callable[[Any], Any]
    slope: Callable[[Any], Any]

    def scaled(self, alpha: Any, *, naive: bool) -> Activation:
        """alpha f(z / alpha), eq. (1), or the naive alpha f(z)."""
        if naive:
            return Activation(lambda z: alpha * self.value(z), lambda z: alpha * self.slope(z))
        return Activation(lambda z: alpha * self.value(z / alpha), lambda z: self.slope(z / alpha))


def chain(theta: Sequence[Any], x: Any, activation: Activation) -> tuple[Any, list[Any]]:
    """g(x) and its l partial derivatives, in the arithmetic of theta and x.

    With f^0 = x, f^i = f[theta^i f^(i-1)] and s_i = f'[theta^i f^(i-1)] the k-th is
    f^(k-1) s_k prod_(i > k) theta^i s_i.
    """
    outputs, slopes = [x], []
    for weight in theta:
        z = weight * outputs[-1]
        slopes.append(activation.slope(z))
        outputs.append(activation.value(z))
    value = outputs.pop()
    partials, later = [], 1.0
    for weight, output, slope in zip(reversed(theta), reversed(outputs), reversed(slopes), strict=True):
        partials.append(later * slope * output)
        later = later * slope * weight
    return value, partials[::-1]


def float64(function: Function) -> Activation:
    """f and f' of the registry, on float64 tensors."""
    return Activation(function.torch_value, lambda u: function.torch_slope(u.clone()))  # it owns u


@torch.no_grad()
def run(
    theta: Tensor, x: Tensor, alpha: float | Tensor, function: str, *, naive: bool
) -> tuple[Tensor, Tensor]:
    """g(x) and its gradient (..., l) from checked float64 tensors."""
    activation = float64(FUNCTIONS[function]).scaled(alpha, naive=naive)
    value, partials = chain(theta.unbind(-1), x, activation)
    return value, torch.stack(partials, -1)


def network(
    theta: Numbers, x: Numbers, alpha: float = 1.0, function: str = "tanh", *, naive: bool = False
) -> Tensor:
    """g(x) = f_alpha[theta^l f_alpha[theta^(l-1) ... f_alpha[theta^1 x]]], the toy network, in float64.

    Args:
        theta: parameters (..., l), theta^1 first; anything that `torch.as_tensor` takes.
        x: inputs, of a shape that broadcasts with the leading dimensions of theta.
        alpha: the scale; 1 is f itself.
        function: name of f, a key of `sigscale.FUNCTIONS`.
        naive: alpha f(z) in place of f_alpha(z) = alpha f(z / alpha).

    Returns:
        float64 tensor of the common shape of x and theta's leading dimensions, on theta's device.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Sections 2.1 and 2.3, eq. (1), of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> theory.network([1.5, 1.5], 1.5, alpha=2.0)
        tensor(1.6757, dtype=torch.float64)
    """
    weights = checked_theta(theta)
    (inputs,) = checked_together(weights, x=x)
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

    The k-th is -d f^(k-1) s_k prod_(i > k) theta^i s_i + r theta^k, where f^i is the output of layer i,
    s_i the derivative of the activation there, and d = h'[y - g(x)]. The paper sets f^0 = 1, which should
    be x, and drops the sign of d; where alpha is not 1, it writes f^i for what is f^i / alpha here.

    Args:
        theta, x, alpha, function, naive: as in `network`.
        d: h'[y - g(x)]; for least squares 2 (y - g(x)). The default, -1, gives the gradient of g itself.
        r: the tuning parameter of the L2 penalty, at least 0.

    Returns:
        float64 tensor (..., l) on theta's device. What is smaller than 1e-308 vanishes in it: see `exact`.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: the formulas of Sections 2.1, 2.2 and 2.3 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> theory.gradient([1.5, 1.5], 1.5)
        tensor([0.0188, 0.1876], dtype=torch.float64)
    """
    weights = checked_theta(theta)
    inputs, slope, penalty = checked_together(weights, x=x, d=d, r=r)
    if (penalty < 0).any():
        raise ValueError(f"r must be at least 0; got {penalty.min().item()!r}: 0 is no penalty")
    _, partials = run(weights, inputs, checked_number(alpha, "alpha"), function, naive=naive)
    return penalty.unsqueeze(-1) * weights - slope.unsqueeze(-1) * partials


def partial(
    theta: Numbers,
    x: Numbers,
    k: int,
    alpha: float = 1.0,
    function: str = "tanh",
    *,
    d: Numbers = -1.0,
    r: Numbers = 0.0,
    naive: bool = False,
) -> Tensor:
    """The derivative of the loss with respect to theta^k: `gradient(...)[..., k - 1]`.

    Args:
        theta, x, alpha, function, d, r, naive: as in `gradient`.
        k: the layer, from 1, next to the input, to l.

    Returns:
        float64 tensor of the common shape of all but theta's last dimension.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Section 2.1 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> theory.partial([1.5] * 10, 1.5, k=1), theory.partial([1.5] * 10, 1.5, k=1, alpha=8.0)
        (tensor(9.2566e-06, dtype=torch.float64), tensor(0.0157, dtype=torch.float64))
    """
    weights = checked_theta(theta)
    index = checked_count(k, "k", weights.shape[-1])
    return gradient(weights, x, alpha, function, d=d, r=r, naive=naive)[..., index - 1]


class Identity(NamedTuple):
    """Both sides of the identity behind the scaling trick; the sides agree up to rounding."""

    scaled: Tensor
    plain: Tensor

    @property
    def error(self) -> float:
        """The largest difference, relative to the larger side."""
        if not self.scaled.numel():
            return 0.0
        size = torch.maximum(self.scaled.abs(), self.plain.abs())
        return float(((self.scaled - self.plain).abs() / size).nan_to_num(0.0).max())


def identity(z: Numbers, depth: int, alpha: float, function: str = "tanh") -> Identity:
    """f_alpha[f_alpha[... f_alpha[z]]] = alpha f[f[... f[z / alpha]]], both sides, f applied `depth` times.

    In between, linear layers without bias change nothing: `network(theta, x, alpha)` is
    `alpha * network(theta, x / alpha)`, and its partial derivatives are alpha times those there. So scaling
    acts on the toy network as a smaller input does, and is felt until the signal has grown back.

    Args:
        z: numbers of any shape.
        depth: how often f is applied, at least once.
        alpha, function: as in `network`.

    Returns:
        The two sides, float64 tensors of z's shape.

    Raises:
        TypeError, ValueError: an argument is not a real number, or out of its range.

    Source: Section 2.3 of arXiv 2106.02260.

    Example:
        >>> from sigscale import theory
        >>> theory.identity([-3.0, 0.1, 7.0], depth=20, alpha=2.0).error < 1e-14
        True
    """
    scale = checked_number(alpha, "alpha")
    inputs = checked_tensor(z, "z")
    ones = inputs.new_ones(checked_count(depth, "depth"))
    plain = scale * run(ones, inputs / scale, 1.0, function, naive=False)[0]
    return Identity(run(ones, inputs, scale, function, naive=False)[0], plain)
