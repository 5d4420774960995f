"""Tensors that a sketch could get wrong, and its truth: bins by frexp and quantiles by sorting, in fp64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tests.oracles.truth import FORMATS

DTYPES = list(FORMATS)
MANTISSA_BITS = (2, 3, 4, 5)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
QUANTILES = (0, 1e-9, 1e-3, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1 - 1e-9, 1)
SIZE = 2000


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(INTEGERS[x.dtype.itemsize])


def from_bits(patterns: list[int] | np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The numbers with these bit patterns, followed by the same with the sign bit set."""
    patterns = np.asarray(patterns, f"i{dtype.itemsize}")
    signed = patterns | np.iinfo(patterns.dtype).min
    return torch.from_numpy(np.concatenate([patterns, signed])).view(dtype)


def infinity_bits(dtype: torch.dtype) -> int:
    """The bit pattern of infinity; those above it are NaN."""
    return int(bits(torch.tensor(torch.inf, dtype=dtype)))


def significand_bits(dtype: torch.dtype) -> int:
    return FORMATS[dtype][0] - 1


def _random(dtype: torch.dtype, n: int = SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(n)).to(dtype)


def _distinct(dtype: torch.dtype) -> torch.Tensor:
    """Finite numbers of all magnitudes, no two alike."""
    infinity = infinity_bits(dtype)
    return from_bits(np.arange(1, infinity, infinity // (SIZE // 2)), dtype)


def _heavy_tails(dtype: torch.dtype) -> torch.Tensor:
    """Exponents from one end of the dtype's range to the other, a few of them beyond."""
    least = FORMATS[dtype][1] - FORMATS[dtype][0]
    exponents = torch.linspace(least, 2 - FORMATS[dtype][1], SIZE, dtype=torch.float64)
    return (_random(torch.float64).sign() * torch.exp2(exponents)).to(dtype)


def _subnormals(dtype: torch.dtype) -> torch.Tensor:
    """The smallest ones, one by one, others up to the smallest normal numbers, and a few zeros."""
    least_normal = 1 << significand_bits(dtype)
    spread = np.linspace(4, least_normal + 3, 200).astype(np.int64)
    return from_bits([0, 0, 1, 2, 3, *spread], dtype)


def _nans(dtype: torch.dtype) -> torch.Tensor:
    """Signaling and quiet ones of both signs, with the least and the greatest payload, between numbers."""
    infinity, quiet = infinity_bits(dtype), 1 << (significand_bits(dtype) - 1)
    payloads = [1, 2, quiet - 1, quiet, quiet + 1, 2 * quiet - 1]
    nans = from_bits([infinity + payload for payload in payloads], dtype)
    return torch.cat([nans, torch.tensor([1, -2, 0, torch.inf, -torch.inf], dtype=dtype), nans[:3]])


def _edges(dtype: torch.dtype) -> torch.Tensor:
    """Numbers at the edges of bins with 5 mantissa bits, and the next ones on both sides."""
    step = 1 << (significand_bits(dtype) - 5)
    one = int(bits(torch.ones((), dtype=dtype)))
    at = np.concatenate(
        [np.arange(64) * step + start for start in (step, one, infinity_bits(dtype) - 64 * step)]
    )
    return from_bits(np.concatenate([at - 1, at, at + 1]), dtype)


def _beyond_fp32(dtype: torch.dtype) -> torch.Tensor:
    """fp64 numbers around both ends of fp32: its largest and smallest ones, the midpoints next to them."""
    top, least = 2.0**128, 2.0**-149
    ends = [top, 2 * top, 1e300, np.finfo(float).max, top - 2.0**103, top - 2.0**104, least, 1.5 * least]
    ends += [least / 2, 2.0**-126, 1e-310, 5e-324, 2.0**-1022]
    ends = np.array(ends)
    ends = np.concatenate(
        [ends, np.nextafter(ends, 0), np.nextafter(ends[ends < 1e308], np.inf), [0.0, np.inf]]
    )
    return torch.from_numpy(np.concatenate([ends, -ends])).to(dtype)


def _rounding_up(dtype: torch.dtype) -> torch.Tensor:
    """fp64 numbers just below an edge of bins, which they would pass if rounded to fp32."""
    edges = np.ldexp(np.linspace(1, 2, 33), np.arange(-149, 128, 4)[:, None]).flatten()
    below = np.nextafter(edges, 0)
    return torch.from_numpy(np.concatenate([below, -below, edges * (1 - 2.0**-30)])).to(dtype)


CASES: dict[str, Callable[[torch.dtype], torch.Tensor]] = {
    "constant": lambda dtype: torch.full((SIZE,), 0.7, dtype=dtype),
    "zeros": lambda dtype: torch.zeros(SIZE, dtype=dtype),
    "half zeros": lambda dtype: _random(dtype).relu(),
    "distinct": _distinct,
    "two values": lambda dtype: torch.where(_random(dtype) > 0.5, -0.75, 3.0).to(dtype),
    "normal": _random,
    "heavy tails": _heavy_tails,
    "subnormals": _subnormals,
    "nans": _nans,
    "only nans": lambda dtype: torch.full((3,), torch.nan, dtype=dtype),
    "infinities": lambda dtype: torch.tensor([torch.inf, -torch.inf, 1, torch.inf, 0, -3], dtype=dtype),
    "signed zeros": lambda dtype: torch.tensor([0.0, -0.0, -0.0, 1.0, -1.0], dtype=dtype),
    "sorted": lambda dtype: _random(dtype).sort().values,
    "one element": lambda dtype: torch.tensor([-0.3], dtype=dtype),
    "empty": lambda dtype: torch.empty(0, dtype=dtype),
    "edges": _edges,
    "beyond fp32": _beyond_fp32,
    "rounding up": _rounding_up,
}
OF_FP64_ONLY = ("beyond fp32", "rounding up")
TABLE = [
    (case, dtype) for case in CASES for dtype in DTYPES if dtype is torch.float64 or case not in OF_FP64_ONLY
]
IDS = [f"{case}-{dtype}".replace("torch.", "") for case, dtype in TABLE]


def bin_of(values: np.ndarray, m: int) -> np.ndarray:
    """The number of the bin of each value, the bins being in ascending order and the last one of NaN."""
    size = np.abs(values)
    finite = np.isfinite(size) & (size < 2.0**128)
    significand, exponent = np.frexp(np.where(finite, size, 1.0))  # from 0.5 to 1
    normal = (exponent.astype(np.int64) + 126) * 2**m + ((2 * significand - 1) * 2**m).astype(np.int64)
    below = np.floor(np.where(size < 2.0**-126, size, 0.0) * 2.0 ** (126 + m)).astype(np.int64)
    b = np.where(size < 2.0**-126, below, normal)
    b = np.where(finite, b, 255 * 2**m + np.isinf(size))
    zero = 255 * 2**m + 2
    index = np.where(values == 0, zero, np.where(values < 0, zero - 1 - b, zero + 1 + b))
    return np.where(np.isnan(values), 2 * zero + 1, index)


def edges_of(index: np.ndarray, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers the values of these bins, other than that of NaN, lie."""
    zero = 255 * 2**m + 2
    b = np.abs(index - zero) - 1

    def edge(b: np.ndarray) -> np.ndarray:
        octave, part = np.divmod(b, 2**m)
        normal = np.ldexp(1 + part / 2**m, octave.astype(int) - 127)
        return np.where(octave > 0, normal, part * 2.0 ** (-126 - m))

    near, far = edge(b), edge(b + 1)
    far = np.where(b == 255 * 2**m, np.finfo(float).max, far)
    near, far = (np.where(b > 255 * 2**m, np.inf, edge) for edge in (near, far))
    near, far = (np.where(index == zero, 0.0, edge) for edge in (near, far))
    return np.where(index < zero, -far, near), np.where(index < zero, -near, far)


def counts(x: torch.Tensor, m: int) -> np.ndarray:
    """The counts of the sketch of x."""
    return np.bincount(bin_of(x.double().cpu().numpy().flatten(), m), minlength=510 * 2**m + 6)


def order_statistics(x: torch.Tensor, q: np.ndarray, magnitude: bool) -> tuple[np.ndarray, np.ndarray]:
    """The values between which the quantiles q of x lie, NaN being left out."""
    values = x.double().cpu().numpy().flatten()
    values = np.sort(np.abs(values) if magnitude else values)
    values = values[~np.isnan(values)]
    if not len(values):
        return np.full(len(q), np.nan), np.full(len(q), np.nan)
    h = q * (len(values) - 1)
    return values[np.floor(h).astype(int)], values[np.ceil(h).astype(int)]
