"""A sketch in plain PyTorch: which values a bin holds, and the twin of the kernels that count.

A bin holds the values that share sign, exponent (as fp32) and the top m bits of the mantissa: 2^m bins per
octave. Bins are numbered in ascending order of their values; zero has a bin of its own in the middle:

    zero_bin(m) - 1 - b             negative values whose magnitude is in magnitude bin b
    zero_bin(m)                     +0 and -0
    zero_bin(m) + 1 + b             positive values
    bin_count(m) - 1                NaN

    b = 0 .. 255 2^m - 1            the top 8 + m bits of an fp32 magnitude
    b = 255 2^m                     finite fp64 magnitudes from 2^128 on
    b = 255 2^m + 1                 infinity

The values of a bin differ by at most 2^-m relative to the smaller one, below 2^-126 by at most 2^(-126-m).
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .device import made_once

MANTISSA_BITS = (2, 3, 4, 5)
CHUNK = 1 << 18  # elements counted at a time; their words fit the second-level caches of two cores
ADDING = threading.Lock()  # backward passes of several threads may share counts; a kernel adds atomically


def zero_bin(m: int) -> int:
    """The bin of the exact zeros."""
    return (255 << m) + 2


def bin_count(m: int) -> int:
    return (510 << m) + 6


@made_once(64)
def edges(m: int, *, magnitude: bool) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of each bin but NaN's, float64, ascending.

    Of magnitudes, entry 0 belongs to zero and entry 1 + b to magnitude bin b. The greatest value is the edge
    to the next bin; that of finite fp64 numbers is the largest of these.
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


def count(counts: Tensor, x: Tensor, m: int) -> None:
    """Add the values of a dense x to the counts of a sketch with m mantissa bits."""
    flat = x.detach().as_strided((x.numel(),), (1,))
    for part in flat.split(CHUNK):
        words = torch.bincount(_words(part, m), minlength=512 << m)
        with ADDING:
            counts.index_add_(0, _bins_of_words(m), words)


def _words(x: Tensor, m: int) -> Tensor:
    """The top 9 + m bits of each value as an integer; two words that only NaN has stand for zero and NaN.

    Integer arithmetic throughout, since comparing and converting may flush subnormal numbers to zero.
    """
    if x.dtype == torch.float64:
        bits = x.view(torch.int64)
        words = _words_of_doubles(x, bits, m)
    else:
        bits = x.float().view(torch.int32)
        words = bits >> (23 - m)
        words &= (512 << m) - 1
    words.masked_fill_(bits << 1 == 0, _zero_word(m))
    return words.masked_fill_(x != x, _zero_word(m) + 1)


def _words_of_doubles(x: Tensor, bits: Tensor, m: int) -> Tensor:
    """The words of the values rounded toward zero to fp32."""
    words = bits >> (52 - m)
    words &= (2048 << m) - 1
    words -= 896 << m  # the bias of fp64's exponents less that of fp32's
    subnormal = (x.abs() * 2.0 ** (126 + m)).clamp_(max=1 << m).long()
    words = torch.maximum(words, subnormal).clamp_(max=255 << m)
    words.masked_fill_((words == 255 << m) & x.isfinite(), (256 << m) - 1)
    return words.add_((bits >> 63) & (256 << m))


def _zero_word(m: int) -> int:
    return (255 << m) + 1


@made_once(8)
def _bins_of_words(m: int) -> Tensor:
    """The bin of each word; words that do not occur get NaN's."""
    bins = torch.full((2, 256 << m), bin_count(m) - 1)
    zero, finite = zero_bin(m), 255 << m
    b = torch.arange(finite)
    for sign, row in zip((1, -1), bins, strict=True):
        row[:finite] = zero + sign * (1 + b)
        row[finite] = zero + sign * (finite + 2)
        row[-1] = zero + sign * (finite + 1)
    bins[0, _zero_word(m)] = zero
    return bins.flatten()
