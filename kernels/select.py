"""Exact order statistics without a sort: the wanted values are found digit by digit, the highest first.

Values are ordered by their bits (`sort_key`), NaN behind infinity. A pass reads x once and counts, for each
of J wanted ranks, the next digit of those keys that begin with the digits found so far; `narrow_kernel` then
finds the digit in which the rank lies. fp32 takes three passes (12, 10 and 10 bits), 16-bit types two, fp64
seven.

    digit_kernel     counts[j, digit] += 1 over the keys that begin like the j-th prefix     reads x
    narrow_kernel    appends a digit to each prefix; after the last, the prefix is the value's key

Ranks ascend, so that equal prefixes are neighbours; the first of them counts for all.

Nothing is decided by the host, integers alone are added: the passes can be captured in a CUDA graph, their
number does not depend on the data, and neither does the result on the order in which programs run.
"""

from __future__ import annotations

from ._triton import tl, triton
from .counters import (
    CHUNK,
    add_counted,
    barrier,
    count_portably,
    increment,
    open_counters,
    read,
    spare_word,
)

DIGIT = 10  # bits of all digits but the first
RANKS = 10  # at most, so that their counters fit the 48 KiB that a kernel may declare


def digits(width: int) -> list[tuple[int, int]]:
    """(shift, bits) of the digits of a key, the highest first: one in which infinity differs from NaN."""
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
def count_digit(
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
    """Count the digits of one tile, where `mask` (None: everywhere)."""
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
            if prefix != last:  # most are the one before: the two order statistics of a quantile
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
            count_digit(base, counts_ptr, prefix_ptr, x, None, SHIFT, BITS, J, FIRST, WORDS, SHARED)
        else:
            mask = offs < n - start
            x = tl.load(here, mask=mask)
            count_digit(base, counts_ptr, prefix_ptr, x, mask, SHIFT, BITS, J, FIRST, WORDS, SHARED)
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
    """Program j appends a digit to the j-th prefix; the last time it stores the value."""
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
