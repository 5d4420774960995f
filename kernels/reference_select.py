"""The plain-PyTorch twin of exact selection: order statistics on a CPU, without a sort.

The values' top 16 bits are counted; then, among the values with the bits found so far, the next 16. Few
values are partitioned, by NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .device import made_once

SORTED = 1 << 11  # values that are sorted
FEW = {2: 1 << 14, 4: 1 << 17, 8: 1 << 17}  # values of so many bytes that are partitioned
WORD = 16  # bits of a digit
HALF = 1 << WORD - 1


def order_statistics(x: Tensor, ranks: Tensor, nans: Tensor) -> Tensor:
    """The values of x (n,) with these ranks in ascending order, `nans` NaN last."""
    if x.numel() <= SORTED or ranks.numel() > 2 * WORD:
        return x.sort().values[ranks]
    if nans:
        x = torch.where(x == x, x, torch.nan)  # which is positive
    bits = x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])
    if x.numel() <= FEW[x.element_size()]:
        return _flipped_if_negative(_partitioned(_flipped_if_negative(bits), ranks)).view(x.dtype)
    shift = 8 * x.element_size() - WORD
    words, order = _word(bits, shift), _ascending_words()
    counts = torch.bincount(words, minlength=1 << WORD)
    position, ranks = _position(counts[order], ranks)
    wanted = order[position]
    only_zeros = counts[0] + counts[HALF] == x.numel() - torch.count_nonzero(x)
    unfinished = (wanted % HALF != 0) | ~only_zeros if shift else torch.zeros_like(wanted, dtype=torch.bool)
    low = torch.where(wanted == HALF, (1 << shift) - 1, 0)  # the order reverses the bits of -0
    if unfinished.any():
        low[unfinished] = _low_digits(words, wanted[unfinished], bits, shift, ranks[unfinished])
    keys = ((position - HALF) << shift) + low
    return _flipped_if_negative(keys.to(bits.dtype)).view(x.dtype)


def _partitioned(keys: Tensor, ranks: Tensor) -> Tensor:
    """keys.sort().values[ranks], which reorders the keys."""
    keys.numpy().partition(sorted({*ranks.tolist()}))
    return keys[ranks]


def _word(bits: Tensor, shift: int) -> Tensor:
    """The 16 bits above the lowest `shift`, as int32."""
    words = bits >> shift if bits.dtype == torch.int32 else (bits >> shift).int()
    words &= (1 << WORD) - 1
    return words


@made_once(8)
def _ascending_words() -> Tensor:
    """The top 16 bits of floating-point numbers in ascending order of the numbers."""
    return torch.cat([torch.arange(2 * HALF - 1, HALF - 1, -1), torch.arange(HALF)])


def _position(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the count that each rank falls into, and its rank within that count."""
    through = counts.cumsum(0)
    position = torch.searchsorted(through, ranks, right=True)
    return position, ranks - (through - counts)[position]


def _flipped_if_negative(bits: Tensor) -> Tensor:
    """Convert floating-point bits to integers that order like the numbers, or back."""
    sign = bits >> (8 * bits.element_size() - 1)
    sign &= torch.iinfo(bits.dtype).max
    return sign.bitwise_xor_(bits)


def _low_digits(words: Tensor, wanted: Tensor, bits: Tensor, shift: int, ranks: Tensor) -> Tensor:
    """The lowest `shift` bits of the keys with the given ranks among those with the wanted words."""
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
    """The lowest `shift` bits of order statistics of keys that agree in all higher bits; may reorder them."""
    mask = (1 << shift) - 1
    if keys.numel() <= FEW[keys.element_size()]:
        return _partitioned(keys, ranks).long() & mask
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
