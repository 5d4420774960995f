"""The plain-PyTorch twins of the kernels that count: the sketch and exact selection on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .bins import bin_count, zero_bin

CHUNK = 1 << 18  # elements counted at a time; their words fit the second-level caches of two cores
SORTED = 1 << 13  # elements that are sorted rather than counted
WORD = 16  # bits of a digit of the selection


def count(counts: Tensor, x: Tensor, m: int) -> None:
    """Add the values of x, whose elements fill a block of memory, to the counts of a sketch."""
    flat = x.detach().as_strided((x.numel(),), (1,))
    for part in flat.split(CHUNK):
        words = torch.bincount(_words(part, m), minlength=512 << m)
        counts.index_add_(0, _bins_of_words(m), words)


def _words(x: Tensor, m: int) -> Tensor:
    """The top 9 + m bits of each value as a number; words that only NaN has serve what has its own bin."""
    y = x.float()
    words = y.view(torch.int32) >> (23 - m)
    if x.dtype == torch.float64:
        away = (y.double().abs() > x.abs()) & x.isfinite()
        words = (y.view(torch.int32) - away.int()) >> (23 - m)
    words &= (512 << m) - 1
    words.masked_fill_(x == 0, _zero_word(m))
    words.masked_fill_(x != x, _zero_word(m) + 1)
    if x.dtype == torch.float64:
        words.masked_fill_((x >= 2.0**128) & (x < torch.inf), (256 << m) - 1)
        words.masked_fill_((x <= -(2.0**128)) & (x > -torch.inf), (512 << m) - 1)
    return words


def _zero_word(m: int) -> int:
    return (255 << m) + 1


@lru_cache
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
    ranks = ranks_of(x.numel() - nans)
    if x.numel() <= SORTED:
        return x.sort().values[ranks], nans
    if nans:
        x = torch.where(x == x, x, torch.nan)  # which is positive
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    bits = x.view(integer)
    shift = 8 * x.element_size() - WORD
    words = (bits >> shift).int() if integer != torch.int32 else bits >> shift
    words &= (1 << WORD) - 1
    counts = torch.bincount(words, minlength=1 << WORD)
    order = _ascending_words()
    position, low = _next_digit(counts[order], order, words, bits, shift, ranks)
    keys = ((position - (1 << WORD - 1)) << shift) + low
    return _flipped_if_negative(keys.to(integer)).view(x.dtype), nans


@lru_cache
def _ascending_words() -> Tensor:
    """The top 16 bits of floating-point numbers in ascending order of the numbers."""
    half = 1 << WORD - 1
    return torch.cat([torch.arange(2 * half - 1, half - 1, -1), torch.arange(half)])


def _flipped_if_negative(bits: Tensor) -> Tensor:
    """Bits of floating-point numbers to integers that order like them, and back."""
    sign = bits >> (8 * bits.element_size() - 1)
    sign &= torch.iinfo(bits.dtype).max
    return sign.bitwise_xor_(bits)


def _next_digit(
    counts: Tensor, word_at: Tensor | None, words: Tensor, bits: Tensor, shift: int, ranks: Tensor
) -> tuple[Tensor, Tensor]:
    """In which of `counts` each rank lies, and the `shift` bits that follow, from those elements' bits.

    An element was counted in counts[its word]; with `word_at`, in counts[i] if its word is word_at[i].
    """
    through = counts.cumsum(0)
    position = torch.searchsorted(through, ranks, right=True)
    if shift == 0:
        return position, torch.zeros_like(position)
    word = position if word_at is None else word_at[position]
    before, inside = (through - counts)[position], counts[position]
    distinct = word.unique()
    if len(distinct) > 1 or inside[0] < len(words):
        wanted = torch.zeros(1 << WORD, dtype=torch.bool).index_fill_(0, distinct, True)
        kept = wanted.index_select(0, words)
        bits, words = bits[kept], words[kept]
    keys = bits if word_at is None else _flipped_if_negative(bits)
    low = torch.empty_like(ranks)
    if len(distinct) > WORD:  # one sort of all is faster
        low_keys = torch.where(wanted if word_at is None else wanted[word_at], counts, 0)
        before = before - (low_keys.cumsum(0) - low_keys)[position]
        return position, keys.sort().values[ranks - before] & ((1 << shift) - 1)
    for number in distinct.tolist():
        chosen = word == number
        same = keys if len(distinct) == 1 else keys[words == number]
        low[chosen] = _low_bits(same, shift, (ranks - before)[chosen])
    return position, low


def _low_bits(keys: Tensor, shift: int, ranks: Tensor) -> Tensor:
    """The lowest `shift` bits of the order statistics of keys that are alike in all others."""
    mask = (1 << shift) - 1
    if keys.numel() <= SORTED:
        return keys.sort().values[ranks].long() & mask
    least, greatest = keys.aminmax()
    if least == greatest:
        return (least.long() & mask).expand_as(ranks)
    shift -= WORD
    words = ((keys >> shift) & ((1 << WORD) - 1)).int()
    counts = torch.bincount(words, minlength=1 << WORD)
    position, low = _next_digit(counts, None, words, keys, shift, ranks)
    return (position << shift) + low
