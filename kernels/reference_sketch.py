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
from collections.abc import Sequence

import torch
from torch import Tensor

from .device import made_once
from .launcher import dense

MANTISSA_BITS = (2, 3, 4, 5)
CHUNK = 1 << 18  # elements counted at a time; their words fit the second-level caches of two cores
SMALL, TOGETHER = 1 << 13, 16  # elements of tensors that are counted together, and how many
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


def is_off(on: Tensor | None) -> bool:
    """Whether there is a switch, on the CPU, and on[0] is 0."""
    return on is not None and on[:1].tolist() == [0]


def count(counts: Tensor, x: Tensor, m: int, on: Tensor | None = None) -> None:
    """Add the values of x to the counts of a sketch, unless on[0] is 0."""
    if is_off(on):
        return
    for part in _flat(x).split(CHUNK):
        (found,) = _counts(_words(part, m), 1, m)
        with ADDING:
            counts += found


def count_many(
    counts: Tensor, rows: Sequence[int], tensors: Sequence[Tensor], m: int, on: Tensor | None = None
) -> None:
    """Add the values of each tensor to its row of counts (rows, bins): small tensors together."""
    if is_off(on):
        return
    small: dict[torch.dtype, list[tuple[int, Tensor]]] = {}
    for row, tensor in zip(rows, tensors, strict=True):
        if tensor.numel() > SMALL:
            count(counts[row], tensor, m)
        elif tensor.numel():
            small.setdefault(tensor.dtype, []).append((row, _flat(tensor)))
    for members in small.values():
        for start in range(0, len(members), TOGETHER):
            places, parts = zip(*members[start : start + TOGETHER], strict=True)
            first = _first_words(tuple(part.numel() for part in parts), m)
            found = _counts(_words(torch.cat(parts), m).add_(first), len(parts), m)
            with ADDING:
                counts.index_add_(0, _row_numbers(places), found)


def _flat(x: Tensor) -> Tensor:
    return dense(x.detach()).as_strided((x.numel(),), (1,))


@made_once(16)
def _first_words(sizes: tuple[int, ...], m: int) -> Tensor:
    """For each value of rows of these sizes the number of its row's first word."""
    first = torch.arange(len(sizes), dtype=torch.int32) * (1024 << m)
    return first.repeat_interleave(torch.tensor(sizes))


@made_once(16)
def _row_numbers(rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows)


def _counts(words: Tensor, rows: int, m: int) -> Tensor:
    """How many values are in each bin, (rows, bins), from their words, of which each row has 1024 2^m."""
    found = torch.bincount(words, minlength=rows * 1024 << m).view(rows, -1)
    bins = found.index_select(1, _words_of_bins(m))
    bins[:, zero_bin(m)] += found[:, _zero_word(m) + (256 << m)]  # -0
    bins[:, -1] = found[:, 512 << m :].sum(1)
    return bins


def _words(x: Tensor, m: int) -> Tensor:
    """The top 9 + m bits of each value as a number, or one that no other value has for zeros and for NaN.

    By the bits, since comparing and converting numbers may flush subnormal ones to zero, and without masks,
    which cost five times what a comparison to integers does.
    """
    if x.dtype == torch.float64:
        bits, infinity = x.view(torch.int64), 0x7FF0 << 48
        words = _words_of_doubles(x, bits, m)
    else:
        bits, infinity = x.float().view(torch.int32), 0x7F800000
        words = bits >> (23 - m)
        words &= (512 << m) - 1
    magnitude = bits & torch.iinfo(bits.dtype).max
    is_zero = torch.eq(magnitude, 0, out=torch.empty_like(magnitude))
    words.add_(is_zero, alpha=_zero_word(m))
    return words.add_(torch.gt(magnitude, infinity, out=is_zero), alpha=512 << m)


def _words_of_doubles(x: Tensor, bits: Tensor, m: int) -> Tensor:
    """The words that the values have when they are rounded towards zero to fp32."""
    words = bits >> (52 - m)
    words &= (2048 << m) - 1
    words -= 896 << m  # the bias of fp64's exponents less that of fp32's
    subnormal = (x.abs() * 2.0 ** (126 + m)).clamp_(max=1 << m).long()
    words = torch.maximum(words, subnormal).clamp_(max=255 << m)
    words.masked_fill_((words == 255 << m) & x.isfinite(), (256 << m) - 1)
    return words.add_((bits >> 63) & (256 << m)).int()


def _zero_word(m: int) -> int:
    return (255 << m) + 1


@made_once(8)
def _words_of_bins(m: int) -> Tensor:
    """The word that each bin counts, for the last one, of NaN, any that does not occur."""
    finite = torch.arange(255 << m)
    words = torch.cat([finite, torch.tensor([(256 << m) - 1, 255 << m])])
    zero, nothing = torch.tensor([[_zero_word(m)], [_zero_word(m) + 1]])
    return torch.cat([words.flip(0) + (256 << m), zero, words, nothing])
