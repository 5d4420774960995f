"""Exact order statistics without a sort: wanted values are found digit by digit, the highest first.

Values order like the unsigned integers that `sort_key` makes of their bits, NaN behind infinity. A pass reads
x once and counts, for each of J wanted ranks, the next digit of the keys that begin with the digits found so
far; `narrow_kernel` then finds the digit into which the rank falls. fp32 takes three passes (12, 10 and 10
bits), 16-bit types two, fp64 seven.

    digit_kernel           counts[j, digit] += 1 over the keys that begin like the j-th prefix      reads x
    narrow_kernel          appends a digit to each prefix; the last makes the prefix the value's key
    multi_select_kernel    values[tensor, j] = order statistic ranks[tensor, j] of many small tensors: each
                           program finds one, bit by bit, reading its tensor from the cache once per bit

Ranks ascend, so that equal prefixes are neighbors; the first of them counts for all.

The host decides nothing and only integers are added: the passes can be captured in a CUDA graph, their number
does not depend on the data, and the result does not depend on the order in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import counters, device, launcher, multi_tensor, reference_select
from ._triton import tl, triton
from .counters import CHUNK, add_counted, barrier, count_portably, increment, open_counters, read, spare_word
from .multi_tensor import tensor_at

DIGIT = 10  # bits of each digit after the first
RANKS = 10  # found at a time, so that their counters fit the 48 KiB that a kernel may declare
AS_MANY_COUNTERS = 4  # mantissa bits of a sketch, for the geometry of programs
WARPS, TILE = 8, 2048  # of `multi_select_kernel`


def digits(width: int) -> list[tuple[int, int]]:
    """(shift, bits) of a key's digits, the highest first, which tells infinity from NaN."""
    first = 13 if width == 64 else 12
    shift = width - first
    found = [(shift, first)]
    while shift:
        bits = min(DIGIT, shift)
        shift -= bits
        found.append((shift, bits))
    return found


@triton.jit
def sort_key(x):
    """An unsigned integer (uint64 for fp64, else uint32) that orders like x, NaN last; -0 comes before +0."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        is_nan = (bits & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
        key = tl.where(is_nan, -1, bits ^ ((bits >> 63) | -0x8000000000000000)).to(tl.uint64, bitcast=True)
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        is_nan = (bits & 0x7FFFFFFF) > 0x7F800000
        key = tl.where(is_nan, -1, bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    else:
        INFINITY: tl.constexpr = 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        is_nan = (bits & 0x7FFF) > INFINITY
        key = tl.where(is_nan, 0xFFFF, (bits ^ ((bits >> 31) | -0x8000)) & 0xFFFF).to(tl.uint32, bitcast=True)
    return key


@triton.jit
def value_of_key(key, DTYPE: tl.constexpr):
    """The value with the sort key `key`, an int64."""
    if DTYPE == tl.float64:
        bits = tl.where(key < 0, key ^ -0x8000000000000000, ~key)
        value = bits.to(tl.float64, bitcast=True)
    elif DTYPE == tl.float32:
        bits = tl.where(key >= 0x80000000, key - 0x80000000, ~key & 0xFFFFFFFF)
        value = bits.to(tl.int32).to(tl.float32, bitcast=True)
    else:
        bits = tl.where(key >= 0x8000, key - 0x8000, ~key & 0xFFFF)
        value = bits.to(tl.int16).to(DTYPE, bitcast=True)
    return value


@triton.jit
def count_digits(
    base,
    counts_ptr,
    prefix_ptr,
    x,
    mask,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    WORDS: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Count the digits of one tile under the mask (None: everywhere)."""
    key = sort_key(x)
    digit = ((key >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
    if FIRST:
        word = digit
        counted = mask
    else:
        above = key >> (SHIFT + BITS)
        row = tl.full(key.shape, -1, tl.int32)
        last = tl.full((), -1, tl.int64)
        for j in range(J):
            prefix = tl.load(prefix_ptr + j)
            if prefix != last:  # most repeat the one before: a quantile's two order statistics
                row = tl.where(above == prefix.to(key.dtype), j, row)
            last = prefix
        word = (row << BITS) + digit
        counted = row >= 0
        if mask is not None:
            counted = counted & mask
    if SHARED:
        address = base + word * 4
        if counted is not None:
            address = tl.where(counted, address, spare_word(base, WORDS))
        increment(address)
    else:
        count_portably(counts_ptr, word, counted, WORDS)


@triton.jit(do_not_specialize=["n"])
def digit_kernel(
    x_ptr,
    counts_ptr,
    prefix_ptr,
    n: tl.int64,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    WORDS: tl.constexpr = (1 if FIRST else J) << BITS
    base = open_counters(WORDS, SHARED)
    offs = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < n:
        here = x_ptr + start + offs
        if start + BLOCK <= n:
            x = tl.load(here)
            count_digits(base, counts_ptr, prefix_ptr, x, None, SHIFT, BITS, J, FIRST, WORDS, SHARED)
        else:
            mask = offs < n - start
            x = tl.load(here, mask=mask)
            count_digits(base, counts_ptr, prefix_ptr, x, mask, SHIFT, BITS, J, FIRST, WORDS, SHARED)
        start += tl.num_programs(0) * BLOCK
    if SHARED:
        barrier()
        for first in range(0, WORDS, CHUNK):
            word = first + tl.arange(0, CHUNK)
            counted = read(base + tl.minimum(word, WORDS - 1) * 4)
            add_counted(counts_ptr, word, counted, word < WORDS)


@triton.jit
def narrow_kernel(
    values_ptr,
    counts_ptr,
    prefix_ptr,
    rank_ptr,
    next_prefix_ptr,
    next_rank_ptr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Program j appends a digit to the j-th prefix; after the last digit it stores the value."""
    j = tl.program_id(0)
    prefix = tl.full((), 0, tl.int64)
    row = tl.full((), 0, tl.int32)
    if not FIRST:
        prefix = tl.load(prefix_ptr + j)
        for i in tl.static_range(J):
            row = tl.where(tl.load(prefix_ptr + (J - 1 - i)) == prefix, J - 1 - i, row)
    digit = tl.arange(0, 1 << BITS)
    counts = tl.load(counts_ptr + (row << BITS) + digit)
    rank = tl.load(rank_ptr + j)
    found = tl.sum((tl.cumsum(counts) <= rank).to(tl.int32))
    prefix = (prefix << BITS) | found.to(tl.int64)
    if LAST:
        tl.store(values_ptr + j, value_of_key(prefix, values_ptr.dtype.element_ty))
    else:
        before = tl.sum(tl.where(digit < found, counts, 0))
        tl.store(next_prefix_ptr + j, prefix)
        tl.store(next_rank_ptr + j, rank - before)


@triton.jit
def number_below(x_ptr, n, key, BLOCK: tl.constexpr):
    """The number of n values whose sort key is below `key`, an int64 that holds the key's bits."""
    offs = tl.arange(0, BLOCK)
    below = tl.zeros([BLOCK], tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < n:
        mask = offs < n - start
        keys = sort_key(tl.load(x_ptr + start + offs, mask=mask))
        below += ((keys < key.to(keys.dtype, bitcast=keys.dtype == tl.uint64)) & mask).to(tl.int64)
        start += BLOCK
    return tl.sum(below)


@triton.jit
def multi_select_kernel(
    values_ptr,
    addresses_ptr,
    sizes_ptr,
    ranks_ptr,
    nans_ptr,
    J: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = values_ptr.dtype.element_ty
    wanted = tl.program_id(0)
    tensor = wanted // J
    x_ptr = tensor_at(addresses_ptr, tensor, values_ptr, False)
    n = tl.load(sizes_ptr + tensor)
    rank = tl.load(ranks_ptr + wanted)
    found = tl.full((), 0, tl.int64)
    bit = tl.full((), 1, tl.int64) << (WIDTH - 1)
    for _ in range(WIDTH):
        candidate = found | bit
        if number_below(x_ptr, n, candidate, BLOCK) <= rank:
            found = candidate
        bit = (bit >> 1) & 0x7FFFFFFFFFFFFFFF
    tl.store(values_ptr + wanted, value_of_key(found, DTYPE))
    if wanted % J == 0:
        of_nan = tl.full((), -1 if WIDTH == 64 else (1 << WIDTH) - 1, tl.int64)
        tl.store(nans_ptr + tensor, n - number_below(x_ptr, n, of_nan, BLOCK))


class Selection:
    """Order statistics of all values of x, which is not empty; NaN ranks behind infinity.

    Two steps, since ranks may depend on how many values are not NaN, which only the device knows: making the
    selection takes the first pass over x, which counts NaN; `order_statistics(ranks)` takes the others.
    """

    def __init__(self, x: Tensor) -> None:
        x = launcher.dense(x)
        self.x = x.as_strided((x.numel(),), (1,))
        if device.takes_kernel(x):
            self._passes = digits(8 * x.element_size())
            self._first = torch.zeros(1 << self._passes[0][1], dtype=torch.int64, device=x.device)
            _count_digit(self.x, self._first, self._first, 1, *self._passes[0], first=True)
            self.nans = self._first[-1]
        else:
            self.nans = torch.count_nonzero(self.x != self.x)

    @property
    def valid(self) -> Tensor:
        """The number of values that are not NaN, 0-d on x's device."""
        return self.x.numel() - self.nans

    def order_statistics(self, ranks: Tensor) -> Tensor:
        """The values of these ranks, at most RANKS: int64, ascending, from 0 on."""
        x, ranks = self.x, ranks.contiguous()
        if not device.takes_kernel(x):
            return reference_select.order_statistics(x, ranks, self.nans)
        j, counted = ranks.numel(), self._first
        values, prefixes = torch.empty_like(x[:1]).expand(j).contiguous(), torch.empty_like(ranks)
        for shift, bits in self._passes:
            first = shift == self._passes[0][0]
            if not first:
                counted = torch.zeros(j << bits, dtype=torch.int64, device=x.device)
                _count_digit(x, counted, prefixes, j, shift, bits, first=False)
            state = values, counted, prefixes, ranks
            prefixes, ranks = torch.empty_like(ranks), torch.empty_like(ranks)
            constants = (bits, j, first, shift == 0)
            tensors = (*state, prefixes, ranks)
            launcher.launch(narrow_kernel, ("narrow", *constants), j, tensors, *constants, num_warps=4)
        return values


def _count_digit(
    x: Tensor, counts: Tensor, prefixes: Tensor, j: int, shift: int, bits: int, *, first: bool
) -> None:
    grid, block, shared = counters.geometry(x, AS_MANY_COUNTERS)
    constants = (shift, bits, j, first, shared, block)
    launcher.launch(
        digit_kernel,
        ("digit", *constants),
        grid,
        (x, counts, prefixes),
        *(x.numel(), *constants),
        num_warps=counters.WARPS[AS_MANY_COUNTERS],
    )


def order_statistics_of_many(tensors: Sequence[Tensor], ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Order statistics ranks (tensors, j) of tensors of one dtype, and each tensor's number of NaN.

    The tensors are on a device with kernels, dense, not empty, and small.
    """
    first = tensors[0]
    values = torch.empty(ranks.shape, dtype=first.dtype, device=first.device)
    nans = torch.empty(len(tensors), dtype=torch.int64, device=first.device)
    sizes = multi_tensor.sizes(tuple(tensor.numel() for tensor in tensors), first.device)
    addresses = multi_tensor.addresses(tensors, first.device)
    constants = (ranks.shape[1], 8 * first.element_size(), TILE)
    launcher.launch(
        multi_select_kernel,
        ("select many", *constants),
        ranks.numel(),
        (values, addresses, sizes, ranks, nans),
        *constants,
        num_warps=WARPS,
    )
    return values, nans
