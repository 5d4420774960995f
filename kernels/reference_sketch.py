"""The plain-PyTorch twins of the kernels that count: the sketch and exact selection on CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from .bins import bin_count, zero_bin
from .device import made_once

CHUNK = 1 << 18  # elements counted at a time; their words fit the second-level caches of two cores
SORTED = 1 << 14  # elements that are sorted rather than counted
ADDING = threading.Lock()  # backward passes of several threads may share counts; a kernel adds atomically
WORD = 16  # bits of a digit of the selection
HALF = 1 << WORD - 1


def count(counts: Tensor, x: Tensor, m: int) -> None:
    """Add the values of x, whose elements fill a block of memory, to the counts of a sketch."""
    flat = x.detach().as_strided((x.numel(),), (1,))
    for part in flat.split(CHUNK):
        words = torch.bincount(_words(part, m), minlength=512 << m)
        with ADDING:
            counts.index_add_(0, _bins_of_words(m), words)


def _words(x: Tensor, m: int) -> Tensor:
    """The top 9 + m bits of each value as a number; words that only NaN has serve what has its own bin.

    By the bits, since comparing and converting numbers may flush subnormal ones to zero.
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
    """The words that the values have when they are rounded towards zero to fp32."""
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
    """The bin that each word counts; words that do not occur stand for NaN's."""
    bins = torch.full((2, 256 << m), bin_count(m) - 1)
    zero, finite = zero_bin(m), 255 << m
    b = torch.arange(finite)
    for sign, row in zip((1, -1), bins, strict=True):
        row[:finite] = zero + sign * (1 + b)
        row[finite] = zero + sign * (finite + 2)
        row[-1] = zero + sign * (finite + 1)
    bins[0, _zero_word(m)] = zero
    return bins.flatten()


def order_statistics(x: Tensor, ranks_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The values of the ranks ranks_of(n) of n values that are not NaN, and how many are; these come last.

    By the top 16 bits of all values, then by the next ones of those that have the bits found so far.
    """
    nans = torch.count_nonzero(x != x)
    ranks = ranks_of(x.numel() - nans).contiguous()
    if x.numel() <= SORTED or ranks.numel() > 2 * WORD:
        return x.sort().values[ranks], nans
    if nans:
        x = torch.where(x == x, x, torch.nan)  # which is positive
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    shift = 8 * x.element_size() - WORD
    words, order = _word(bits, shift), _ascending_words()
    counts = torch.bincount(words, minlength=1 << WORD)
    position, ranks = _position(counts[order], ranks)
    wanted = order[position]
    only_zeros = counts[0] + counts[HALF] == x.numel() - torch.count_nonzero(x)
    unfinished = (wanted % HALF != 0) | ~only_zeros if shift else torch.zeros_like(wanted, dtype=torch.bool)
    low = torch.where(wanted == HALF, (1 << shift) - 1, 0)  # the order turns the bits of -0 about
    if unfinished.any():
        low[unfinished] = _low_digits(words, wanted[unfinished], bits, shift, ranks[unfinished])
    keys = ((position - HALF) << shift) + low
    return _flipped_if_negative(keys.to(bits.dtype)).view(x.dtype), nans


def _word(bits: Tensor, shift: int) -> Tensor:
    """The 16 bits from `shift` on, as int32."""
    words = bits >> shift if bits.dtype == torch.int32 else (bits >> shift).int()
    words &= (1 << WORD) - 1
    return words


@made_once(8)
def _ascending_words() -> Tensor:
    """The top 16 bits of floating-point numbers in ascending order of the numbers."""
    return torch.cat([torch.arange(2 * HALF - 1, HALF - 1, -1), torch.arange(HALF)])


def _position(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """In which of the counts each rank lies, and its rank among what was counted there."""
    through = counts.cumsum(0)
    position = torch.searchsorted(through, ranks, right=True)
    return position, ranks - (through - counts)[position]


def _flipped_if_negative(bits: Tensor) -> Tensor:
    """Bits of floating-point numbers to integers that order like them, and back."""
    sign = bits >> (8 * bits.element_size() - 1)
    sign &= torch.iinfo(bits.dtype).max
    return sign.bitwise_xor_(bits)


def _low_digits(words: Tensor, wanted: Tensor, bits: Tensor, shift: int, ranks: Tensor) -> Tensor:
    """The lowest `shift` bits of the keys that have the given ranks among those with the wanted words."""
    distinct = wanted.unique()
    wanted_words = torch.zeros(1 << WORD, dtype=torch.bool, device="cpu").index_fill_(0, distinct, True)
    kept = wanted_words.index_select(0, words)
    if not kept.all():
        bits = bits[kept]
        words = _word(bits, shift)
    keys = _flipped_if_negative(bits)
    low = torch.empty_like(ranks)
    for number in distinct.tolist():
        chosen = wanted == number
        same = keys if len(distinct) == 1 else keys[words == number]
        low[chosen] = _low_bits(same, shift, ranks[chosen])
    return low


def _low_bits(keys: Tensor, shift: int, ranks: Tensor) -> Tensor:
    """The lowest `shift` bits of the order statistics of keys that are alike in all others."""
    mask = (1 << shift) - 1
    if keys.numel() <= SORTED:
        return keys.sort().values[ranks].long() & mask
    least, greatest = keys.aminmax()
    if least == greatest:
        return (least.long() & mask).expand_as(ranks)
    shift -= WORD
    words = _word(keys, shift)
    position, ranks = _position(torch.bincount(words, minlength=1 << WORD), ranks)
    if shift == 0:
        return position
    low = torch.empty_like(ranks)
    for number in position.unique().tolist():
        chosen = position == number
        low[chosen] = _low_bits(keys[words == number], shift, ranks[chosen])
    return (position << shift) + low
