"""What the activations must give: the registry's mpmath callables, and errors in ulp.

`exact_value` and `exact_slope` call mpmath for each number and round once. For millions of numbers, `value`
and `slope` evaluate polynomials that interpolate mpmath's results, to 2^-44 of them: 1e-6 of an fp32 ulp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

import sigscale as ss

ALPHAS = (0.3, 1.0, 1.7, 2.0, 3.7)

# Significant bits and the exponent of the smallest normal number.
FORMATS = {
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float32: (24, -126),
    torch.float64: (53, -1022),
}

DEGREE = 13
NODES = np.cos(np.pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
BETWEEN = np.array([-0.97, -0.55, 0.1, 0.62, 0.99])
NEAR, FAR = (
    -46,
    64,
)  # exponents of |u| below which f is a straight line, beyond which a constant
VANISHING = 2.0**-160  # what fp32 cannot tell from 0


def exact_value(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """alpha f(x / alpha), rounded once to fp64."""
    function = ss.FUNCTIONS[name]

    def one(number: float) -> float:
        if np.isinf(number):
            return alpha * (function.upper if number > 0 else function.lower)
        return float(alpha * function.mp_value(mpmath.mpf(number) / alpha))

    with mpmath.workprec(200):
        return np.array([one(float(number)) for number in x])


def exact_slope(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """f'(x / alpha), rounded once to fp64."""
    with mpmath.workprec(200):
        return np.array([float(ss.FUNCTIONS[name].mp_slope(mpmath.mpf(float(u)) / alpha)) for u in x])


class Interpolant:
    """A function of mpmath numbers as polynomials on intervals, halved until mpmath agrees in between."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function
        edges = [sign * 2.0**power for power in range(NEAR, FAR) for sign in (-1, 1)]
        pieces: list[tuple[float, float, np.ndarray]] = []
        with mpmath.workprec(80):
            for edge in sorted(edges):
                low, high = sorted((edge, 2 * edge))
                self._fit(low, high, pieces)
        pieces.sort(key=lambda piece: piece[0])
        self.low = torch.tensor([low for low, _, _ in pieces], dtype=torch.float64)
        self.high = torch.tensor([high for _, high, _ in pieces], dtype=torch.float64)
        self.coefficients = torch.tensor(np.stack([piece for _, _, piece in pieces], 1))

    def _fit(self, low: float, high: float, pieces: list[tuple[float, float, np.ndarray]]) -> None:
        middle, half = (low + high) / 2, (high - low) / 2
        values = self._at(middle + half * NODES)
        polynomial = chebyshev.cheb2poly(chebyshev.chebfit(NODES, values, DEGREE))
        polynomial = np.pad(polynomial, (0, DEGREE + 1 - len(polynomial)))
        wanted = self._at(middle + half * BETWEEN)
        found = np.polynomial.polynomial.polyval(BETWEEN, polynomial)
        if (np.abs(found - wanted) <= np.maximum(2.0**-44 * np.abs(wanted), VANISHING)).all():
            pieces.append((low, high, polynomial))
        else:
            self._fit(low, middle, pieces)
            self._fit(middle, high, pieces)

    def _at(self, u: np.ndarray) -> np.ndarray:
        return np.array([float(self._function(mpmath.mpf(number))) for number in u])

    def __call__(self, u: Tensor) -> Tensor:
        """The function at u in fp64; NaN where |u| is not in [2^NEAR, 2^FAR)."""
        low, high, coefficients = (each.to(u.device) for each in (self.low, self.high, self.coefficients))
        piece = torch.bucketize(u, low, right=True).sub_(1).clamp_(min=0)
        start, end = low[piece], high[piece]
        t = (2 * u - start - end) / (end - start)
        result = coefficients[-1][piece]
        for row in coefficients[:-1].flip(0):
            result = result.mul_(t).add_(row[piece])
        size = u.abs()
        return torch.where((size >= 2.0**NEAR) & (size < 2.0**FAR), result, torch.nan)


@cache
def interpolants(name: str) -> tuple[Interpolant, Interpolant]:
    """f and f' of a registered function."""
    function = ss.FUNCTIONS[name]
    return Interpolant(function.mp_value), Interpolant(function.mp_slope)


def torch_value(name: str, u: Tensor) -> Tensor:
    """f(u) in fp64, on u's device."""
    function = ss.FUNCTIONS[name]
    result = interpolants(name)[0](u)
    near = function.value_at_zero + function.slope_at_zero * u
    result = torch.where(u.abs() < 2.0**NEAR, near, result)
    result = torch.where(u >= 2.0**FAR, function.upper, result)
    return torch.where(u <= -(2.0**FAR), function.lower, result)


def torch_slope(name: str, u: Tensor) -> Tensor:
    """f'(u) in fp64, on u's device."""
    result = interpolants(name)[1](u)
    result = torch.where(u.abs() < 2.0**NEAR, ss.FUNCTIONS[name].slope_at_zero, result)
    return torch.where(u.abs() >= 2.0**FAR, 0.0, result)


def value(name: str, x: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """alpha f(x / alpha) in fp64."""
    return alpha * torch_value(name, torch.from_numpy(x / alpha)).numpy()


def slope(name: str, x: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """f'(x / alpha) in fp64."""
    return torch_slope(name, torch.from_numpy(x / alpha)).numpy()


def ulps(result: torch.Tensor, exact: np.ndarray | torch.Tensor) -> torch.Tensor:
    """abs(result - exact) in units in the last place of result's type at `exact`; 0 where both are NaN."""
    precision, smallest = FORMATS[result.dtype]
    exact = torch.as_tensor(exact, dtype=torch.float64, device=result.device)
    assert torch.equal(result.isnan(), exact.isnan()), (
        "NaN where there should be none, or none where it should"
    )
    exponent = torch.where(exact == 0, smallest, torch.frexp(exact).exponent - 1).clamp_min(smallest)
    error = (result.double() - exact).abs() / torch.ldexp(torch.ones_like(exact), exponent - precision + 1)
    return error.nan_to_num(nan=0.0, posinf=torch.inf)


def every_16_bit(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 bit patterns of a 16-bit type."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def stratified_fp32(count: int) -> torch.Tensor:
    """`count` fp32 bit patterns: half spread evenly over all of them, half where the functions bend."""
    rng = np.random.default_rng(0)
    stride = 2**32 // (count // 2)
    spread = np.arange(count // 2, dtype=np.uint64) * stride + rng.integers(0, stride, count // 2)
    bends = np.exp(rng.uniform(np.log(1e-3), np.log(150.0), count - count // 2))
    bends *= rng.choice((-1.0, 1.0), bends.size)
    patterns = np.concatenate([spread.astype(np.uint32).view(np.float32), bends.astype(np.float32)])
    specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4028235e38], np.float32)
    patterns[: specials.size] = specials
    return torch.from_numpy(patterns)
