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
_INFINITY = {torch.int16: 0x7F80, torch.int32: 0x7F80 << 16, torch.int64: 0x7FF0 << 48}  # its bits
CHUNK = 1 << 17  # elements counted at a time; their words fit the second-level caches of two cores
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
    x = _flat(x)
    first, *others = x.split(CHUNK)
    found = _bincount(_words(first, m), 1, m)
    for part in others:
        found += _bincount(_words(part, m), 1, m)
    bins = _bins(found, [x], m)[0]
    with ADDING:
        counts += bins


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
            words = _words(torch.cat(parts), m).int()
            words += _first_words(tuple(part.numel() for part in parts), m)
            bins = _bins(_bincount(words, len(parts), m), parts, m)
            with ADDING:
                counts.index_add_(0, _row_numbers(places), bins)


def _flat(x: Tensor) -> Tensor:
    return dense(x.detach()).as_strided((x.numel(),), (1,))


@made_once(16)
def _first_words(sizes: tuple[int, ...], m: int) -> Tensor:
    """For each value of rows of these sizes the number of its row's first word."""
    first = torch.arange(len(sizes), dtype=torch.int32) * _word_count(m)
    return first.repeat_interleave(torch.tensor(sizes))


@made_once(16)
def _row_numbers(rows: tuple[int, ...]) -> Tensor:
    return torch.tensor(rows)


def _word_count(m: int) -> int:
    """Those of fp32, those of finite fp64 values from 2^128 on by their sign, and one that no value has."""
    return (512 << m) + 3


def _bincount(words: Tensor, rows: int, m: int) -> Tensor:
    """How many values have each word, (rows, words)."""
    return torch.bincount(words, minlength=rows * _word_count(m)).view(rows, -1)


def _bins(found: Tensor, tensors: Sequence[Tensor], m: int) -> Tensor:
    """How many values are in each bin, (rows, bins), from what was found in the rows' tensors.

    Zeros share a word with the smallest numbers, infinities one with NaN: where these words were found, the
    values themselves tell how many they are.
    """
    bins, zero = found.gather(1, _words_of_bins(m).expand(len(found), -1)), zero_bin(m)
    around_zero = bins[:, zero - 1 : zero + 2]
    sums = zip(around_zero[:, ::2].tolist(), bins.sum(1).tolist(), tensors, strict=True)
    for row, ((below, above), finite, x) in enumerate(sums):
        if below or above:
            zeros = len(x) - int((_bits(x) << 1).count_nonzero())
            positive, negative = (above, below) if zeros == above + below else _signed(x, 0)
            around_zero[row] += torch.tensor([-negative, positive + negative, -positive], device="cpu")
        if others := len(x) - finite:
            positive, negative = _signed(x, _INFINITY[_bits(x).dtype])
            bins[row, 0], bins[row, -2], bins[row, -1] = negative, positive, others - positive - negative
    return bins


def _signed(x: Tensor, magnitude: int) -> tuple[int, int]:
    """How many values have these bits as their magnitude, the positive and the negative ones."""
    bits = _bits(x)
    negative = bits ^ (magnitude + torch.iinfo(bits.dtype).min)
    positive = bits ^ magnitude if magnitude else bits
    return len(x) - int(positive.count_nonzero()), len(x) - int(negative.count_nonzero())


def _bits(x: Tensor) -> Tensor:
    """The bits of each value as a signed integer; those of fp16 as fp32."""
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16)
    return x.view(torch.int64) if x.dtype == torch.float64 else x.float().view(torch.int32)


def _words(x: Tensor, m: int) -> Tensor:
    """The top 9 + m bits of each value as a number: sign, exponent and the first bits of the mantissa.

    By the bits, since comparing and converting numbers may flush subnormal ones to zero.
    """
    bits = _bits(x)
    if bits.dtype == torch.int64:
        return _words_of_doubles(x, bits, m)
    words = bits >> ((7 if bits.dtype == torch.int16 else 23) - m)
    words &= (512 << m) - 1
    return words


def _words_of_doubles(x: Tensor, bits: Tensor, m: int) -> Tensor:
    """The words that the values have when they are rounded towards zero to fp32."""
    words = bits >> (52 - m)
    words &= (2048 << m) - 1
    words -= 896 << m  # the bias of fp64's exponents less that of fp32's
    subnormal = (x.abs() * 2.0 ** (126 + m)).clamp_(max=1 << m).long()
    words = torch.maximum(words, subnormal).clamp_(max=255 << m)
    is_negative = bits < 0
    is_huge = (words == 255 << m) & x.isfinite()
    words.add_(is_negative, alpha=256 << m)
    return torch.where(is_huge, is_negative + (512 << m), words).int()


@made_once(8)
def _words_of_bins(m: int) -> Tensor:
    """The word that each bin counts; of zero, infinities and NaN the one that no value has."""
    finite, none = torch.arange(255 << m), _word_count(m) - 1
    huge = [torch.tensor([(512 << m) + is_negative]) for is_negative in (0, 1)]
    nothing = torch.tensor([none])
    negative = torch.cat([nothing, huge[1], finite.flip(0) + (256 << m)])
    return torch.cat([negative, nothing, finite, huge[0], nothing, nothing])
