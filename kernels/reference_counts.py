"""The plain-PyTorch twins of the kernels that count: the sketch and exact selection on CPUs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .bins import zero_bin
from .constants import made_once

CHUNK = 1 << 18  # elements counted at a time; their words fit the second-level caches of two cores
SMALL, TOGETHER = 1 << 13, 16  # elements of tensors that are counted together, and how many
SORTED = 1 << 14  # elements that are sorted rather than counted
ADDING = threading.Lock()  # backward passes of several threads may share counts; a kernel adds atomically
WORD = 16  # bits of a digit of the selection
HALF = 1 << WORD - 1


def count(counts: Tensor, x: Tensor, m: int) -> None:
    """Add the values of x, whose elements fill a block of memory, to the counts of a sketch."""
    for part in _flat(x).split(CHUNK):
        (found,) = _counts(_words(part, m), 1, m)
        with ADDING:
            counts += found


def count_many(counts: Tensor, rows: Sequence[int], tensors: Sequence[Tensor], m: int) -> None:
    """Add the values of each tensor, dense, to its row of counts (rows, bins): small tensors together."""
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
    return x.detach().as_strided((x.numel(),), (1,))


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
