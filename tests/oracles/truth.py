"""What the activations must give: fp64 formulas that share nothing with the package, and errors in ulp."""

from __future__ import annotations

import numpy as np
import torch

ALPHAS = (0.3, 1.0, 1.7, 2.0, 3.7)

# Significant bits and the exponent of the smallest normal number.
FORMATS = {
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float32: (24, -126),
    torch.float64: (53, -1022),
}


def _sigmoid(u, xp):
    e = xp.exp(-xp.abs(u))
    return xp.where(u < 0, e, 1.0) / (1.0 + e)


def _softsign(u, xp):
    finite = xp.where(xp.isinf(u), 0.0, u)
    return xp.where(xp.isinf(u), xp.sign(u), finite / (1.0 + xp.abs(finite)))


def _logistic_slope(u, xp):
    e = xp.exp(-xp.abs(u))
    return e / (1.0 + e) ** 2


# Of u and of the array module, NumPy or (on a GPU) torch.
VALUES = {
    "tanh": lambda u, xp: xp.tanh(u),
    "sigmoid": _sigmoid,
    "arctan": lambda u, xp: xp.arctan(u),
    "softsign": _softsign,
}
SLOPES = {
    "tanh": lambda u, xp: 4.0 * _logistic_slope(2.0 * u, xp),
    "sigmoid": _logistic_slope,
    "arctan": lambda u, xp: 1.0 / (1.0 + u * u),
    "softsign": lambda u, xp: 1.0 / (1.0 + xp.abs(u)) ** 2,
}


def value(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """alpha f(x / alpha) in fp64."""
    with np.errstate(all="ignore"):
        return alpha * VALUES[name](x / alpha, np)


def slope(name: str, x: np.ndarray, alpha: float) -> np.ndarray:
    """f'(x / alpha) in fp64."""
    with np.errstate(all="ignore"):
        return SLOPES[name](x / alpha, np)


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
