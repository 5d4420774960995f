"""What the activations must give: fp64 formulas that share nothing with the package, and errors in ulp."""

from __future__ import annotations

import numpy as np
import torch

ALPHAS = (0.3, 1.0, 1.7, 2.0, 3.7)

# Significant bits and the exponent of the smallest normal number.
FORMATS = {torch.float16: (11, -14), torch.bfloat16: (8, -126), torch.float32: (24, -126), torch.float64: (53, -1022)}


def _tanh(u):
    return np.tanh(u)


def _sigmoid(u):
    e = np.exp(-np.abs(u))
    return np.where(u < 0, e, 1.0) / (1.0 + e)


def _softsign(u):
    return np.where(np.isinf(u), np.sign(u), u / (1.0 + np.abs(np.where(np.isinf(u), 0.0, u))))


def _tanh_slope(u):
    e = np.exp(-2.0 * np.abs(u))
    return 4.0 * e / (1.0 + e) ** 2


def _sigmoid_slope(u):
    e = np.exp(-np.abs(u))
    return e / (1.0 + e) ** 2


VALUES = {"tanh": _tanh, "sigmoid": _sigmoid, "arctan": np.arctan, "softsign": _softsign}
SLOPES = {
    "tanh": _tanh_slope,
    "sigmoid": _sigmoid_slope,
    "arctan": lambda u: 1.0 / (1.0 + u * u),
    "softsign": lambda u: (1.0 + np.abs(u)) ** -2.0,
}


def value(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """alpha f(x / alpha) in fp64."""
    with np.errstate(all="ignore"):
        return alpha * VALUES[name](x / alpha)


def slope(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """f'(x / alpha) in fp64."""
    with np.errstate(all="ignore"):
        return SLOPES[name](x / alpha)


def ulps(result: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """abs(result - exact) in units in the last place of result's type at `exact`; 0 where both are NaN."""
    precision, smallest = FORMATS[result.dtype]
    got = result.double().numpy()
    with np.errstate(all="ignore"):
        exponent = np.maximum(np.frexp(np.abs(exact))[1] - 1, smallest)
        error = np.abs(got - exact) / np.ldexp(1.0, exponent - precision + 1)
    assert np.array_equal(np.isnan(got), np.isnan(exact)), "NaN where there should be none, or none where it should"
    return np.where(np.isnan(exact), 0.0, error)


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
