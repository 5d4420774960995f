"""What a bin of the sketch is: which values it holds, as plain integers and as edges.

A bin holds the values that share sign, exponent (as fp32) and the top m bits of the mantissa: 2^m bins an
octave. Bins are numbered in ascending order of their values, zero in a bin of its own in the middle:

    zero_bin(m) - 1 - b             negative values whose magnitude is in magnitude bin b
    zero_bin(m)                     +0 and -0
    zero_bin(m) + 1 + b             positive values
    bin_count(m) - 1                NaN

    b = 0 .. 255 2^m - 1            the top 8 + m bits of an fp32 magnitude
    b = 255 2^m                     finite fp64 magnitudes from 2^128 on
    b = 255 2^m + 1                 infinity

A bin's values are at most 2^-m apart relative to the smaller one, below 2^-126 at most 2^(-126-m).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .device import made_once

MANTISSA_BITS = (2, 3, 4, 5)


def zero_bin(m: int) -> int:
    """The bin of the exact zeros."""
    return (255 << m) + 2


def bin_count(m: int) -> int:
    return (510 << m) + 6


@made_once(64)
def edges(m: int, *, magnitude: bool) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each bin but NaN's, float64, ascending.

    Of magnitudes, entry 0 is zero's and entry 1 + b that of magnitude bin b. The greatest is the edge to the
    next bin, that of finite fp64 numbers their largest.
    """
    b = torch.arange((255 << m) + 1)
    least = (b << (23 - m)).to(torch.int32).view(torch.float32).double()
    least[: 1 << m] = b[: 1 << m].double() * 2.0 ** (-126 - m)  # where conversion may flush to zero
    least[-1] = 2.0**128
    tops = torch.cat(
        [least[1:], torch.tensor([torch.finfo(torch.float64).max, torch.inf], dtype=torch.float64)]
    )
    zero, infinity = least.new_zeros(1), least.new_full((1,), torch.inf)
    lower, upper = torch.cat([zero, least, infinity]), torch.cat([zero, tops])
    if not magnitude:
        lower, upper = torch.cat([-upper[1:].flip(0), lower]), torch.cat([-lower[1:].flip(0), upper])
    return lower, upper
