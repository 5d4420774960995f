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
    """The values of the ranks ranks_of(n) of n values that are not NaN, and how many are; these come last."""
    nans = torch.count_nonzero(x != x)
    ranks = ranks_of(x.numel() - nans)
    if x.numel() <= SORTED:
        return x.sort().values[ranks], nans
    integer, width = _integers(x.dtype)
    found = _find(_sort_keys(x, integer, bool(nans)), width - WORD, ranks, top=True)
    bits = torch.where(found < 0, found ^ torch.iinfo(integer).max, found)
    return bits.to(integer).view(x.dtype), nans


def _integers(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    width = 8 * dtype.itemsize
    return {16: torch.int16, 32: torch.int32, 64: torch.int64}[width], width


def _sort_keys(x: Tensor, integer: torch.dtype, has_nan: bool) -> Tensor:
    """Signed integers that order like x, NaN last."""
    bits = x.view(integer)
    keys = bits >> (8 * x.element_size() - 1)
    keys &= torch.iinfo(integer).max
    keys ^= bits
    if has_nan:
        keys.masked_fill_(x != x, torch.iinfo(integer).max)
    return keys


def _find(keys: Tensor, shift: int, ranks: Tensor, *, top: bool = False) -> Tensor:
    """The keys of the ranks, int64, digit by digit; those below the top digit as numbers from 0 on."""
    if top:
        words = (keys >> shift).int() + (1 << WORD - 1)
    else:
        words = ((keys >> shift) & ((1 << WORD) - 1)).int()
    counts = torch.bincount(words, minlength=1 << WORD)
    through = counts.cumsum(0)
    word = torch.searchsorted(through, ranks, right=True)
    high = (word - (1 << WORD - 1) if top else word) << shift
    if shift == 0:
        return high
    wanted = torch.zeros(1 << WORD, dtype=torch.bool).index_fill_(0, word, True)
    kept = wanted.index_select(0, words)
    keys, words = keys[kept], words[kept]
    inner = ranks - (through - counts)[word]
    distinct = word.unique().tolist()
    if keys.numel() <= SORTED or len(distinct) > WORD:
        counts.masked_fill_(~wanted, 0)
        before = (counts.cumsum(0) - counts)[word]
        low = keys.sort().values[before + inner] & ((1 << shift) - 1)
        return high + low
    low = torch.empty_like(ranks)
    for number in distinct:
        chosen = word == number
        low[chosen] = _find(keys[words == number], shift - WORD, inner[chosen])
    return high + low
