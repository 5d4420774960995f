"""Counting inside a kernel: the bins of `bins.py`, filled by the program that has the values in registers.

    sketch_kernel             counts += histogram of x                       reads x
    backward_sketch_kernel    the same of dx = g f'(x / alpha)               reads g and x (or y), writes dx

A word of the counters in shared memory is the top 9 + M bits of the value as they are, which takes a shift
and a mask. Zeros go to words of their own, one a lane, since half of a gradient may be zero. Where there are
no counters, `tl.histogram` counts bins. Both add integers to the same bins, so that results agree bit for
bit, in whatever order programs run.
"""

from __future__ import annotations

from . import bins
from ._triton import tl, triton
from .activation import gradient
from .counters import (
    CHUNK,
    add_counted,
    barrier,
    count_portably,
    increment,
    lane,
    open_counters,
    read,
    spare_word,
)
from .math import widen

bin_count = triton.constexpr_function(bins.bin_count)
zero_bin = triton.constexpr_function(bins.zero_bin)


@triton.constexpr_function
def sign_words(m):
    """Words of shared memory for the magnitudes of one sign.

    With 5 mantissa bits 256 exponents would pass the 48 KiB that a kernel may declare: magnitudes from 2^64
    on have no words then.
    """
    return (191 if m == 5 else 256) << m


@triton.jit
def bin_index(x, M: tl.constexpr):
    """The bin of each stored value, widened to fp32 or fp64."""
    ZERO: tl.constexpr = zero_bin(M)
    if x.dtype == tl.float64:
        y = x.to(tl.float32)
        bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bits -= (tl.abs(y.to(tl.float64)) > tl.abs(x)).to(tl.int32)  # towards zero
        b = tl.where(tl.abs(x) < 2.0**128, bits >> (23 - M), 255 << M)
    else:
        b = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> (23 - M)
    b = tl.where(tl.abs(x) == float("inf"), (255 << M) + 1, b)
    index = tl.where(x < 0, ZERO - 1 - b, ZERO + 1 + b)
    index = tl.where(x == 0, ZERO, index)
    return tl.where(x == x, index, 2 * ZERO + 1)


@triton.jit
def bin_of_word(word, M: tl.constexpr):
    """The bin that a word of shared memory counts."""
    ZERO: tl.constexpr = zero_bin(M)
    negative = word >= sign_words(M)
    b = tl.where(negative, word - sign_words(M), word)
    is_nan = b > (255 << M)
    b = tl.where(b == (255 << M), b + 1, b)
    index = tl.where(negative, ZERO - 1 - b, ZERO + 1 + b)
    return tl.where(is_nan, 2 * ZERO + 1, index)


@triton.constexpr_function
def words(m):
    """Words of a program's counters: both signs', and one a lane for zeros."""
    return 2 * sign_words(m) + 32


@triton.jit
def count(base, counts_ptr, x, mask, M: tl.constexpr, SHARED: tl.constexpr, QUIET: tl.constexpr):
    """Count the stored values x, where `mask` (None: everywhere). QUIET: no NaN is a signaling one."""
    x = widen(x)
    if SHARED:
        spare = spare_word(base, words(M))
        zeros = base + (2 * sign_words(M) + lane()) * 4
        if x.dtype == tl.float64 or M == 5:
            address = count_far(base, counts_ptr, x, mask, zeros, spare, M)
        else:
            bits = x.to(tl.int32, bitcast=True)
            if not QUIET:
                bits = tl.where(x == x, bits, 0x7FC00000)
            address = base + ((bits >> (21 - M)) & ((4 << (9 + M)) - 4))
            address = tl.where((bits & 0x7FFFFFFF) == 0, zeros, address)
        increment(address if mask is None else tl.where(mask, address, spare))
    else:
        count_portably(counts_ptr, bin_index(x, M), mask, bin_count(M))


@triton.jit
def count_far(base, counts_ptr, x, mask, zeros, spare, M: tl.constexpr):
    """The words of values that have one, and `spare` for the others, which are counted in global memory."""
    ZERO: tl.constexpr = zero_bin(M)
    index = bin_index(x, M)
    b = tl.where(index < ZERO, ZERO - 1 - index, index - ZERO - 1)
    far = b >= tl.minimum(sign_words(M), 255 << M)
    counted = far if mask is None else far & mask
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p red.relaxed.gpu.global.add.u64 [$1], 1; }mov.u32 $0, 0;",
        "=r,l,r",
        [counts_ptr + index, counted.to(tl.int32)],
        tl.int32,
        is_pure=False,
        pack=1,
    )
    address = base + tl.where(index < ZERO, b + sign_words(M), b) * 4
    return tl.where(far, spare, tl.where(index == ZERO, zeros, address))


@triton.jit
def close_counters(base, counts_ptr, M: tl.constexpr, SHARED: tl.constexpr):
    """Add the counters to the counts in global memory."""
    if SHARED:
        barrier()
        WORDS: tl.constexpr = 2 * sign_words(M)
        for start in range(0, WORDS, CHUNK):
            word = start + tl.arange(0, CHUNK)
            counted = read(base + tl.minimum(word, WORDS - 1) * 4)
            add_counted(counts_ptr, bin_of_word(word, M), counted, word < WORDS)
        zeros = tl.sum(read(base + (WORDS + tl.arange(0, 32)) * 4))
        tl.atomic_add(counts_ptr + zero_bin(M), zeros.to(tl.int64), mask=zeros != 0, sem="relaxed")


@triton.jit
def count_tile(
    base, counts_ptr, x_ptr, offs, left, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr
):
    """Count a tile of a tensor that has `left` elements from there on."""
    if left >= BLOCK:
        count(base, counts_ptr, tl.load(x_ptr), None, M, SHARED, False)
    else:
        mask = offs < left
        count(base, counts_ptr, tl.load(x_ptr, mask=mask, other=0.0), mask, M, SHARED, False)


@triton.jit(do_not_specialize=["n"])
def sketch_kernel(x_ptr, counts_ptr, n: tl.int64, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    base = open_counters(words(M), SHARED)
    offs = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < n:
        count_tile(base, counts_ptr, x_ptr + start + offs, offs, n - start, M, SHARED, BLOCK)
        start += tl.num_programs(0) * BLOCK
    close_counters(base, counts_ptr, M, SHARED)


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def backward_sketch_kernel(
    g_ptr,
    saved_ptr,
    dx_ptr,
    counts_ptr,
    n: tl.int64,
    alpha_bits: tl.int64,
    inv_bits: tl.int64,
    SLOPE: tl.constexpr,
    M: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    alpha = alpha_bits.to(tl.float64, bitcast=True)
    inv = inv_bits.to(tl.float64, bitcast=True)
    base = open_counters(words(M), SHARED)
    offs = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < n:
        g, saved, dx = g_ptr + start + offs, saved_ptr + start + offs, dx_ptr + start + offs
        if start + BLOCK <= n:
            stored = gradient(g, saved, dx, None, alpha, inv, SLOPE)
            count(base, counts_ptr, stored, None, M, SHARED, True)
        else:
            mask = offs < n - start
            stored = gradient(g, saved, dx, mask, alpha, inv, SLOPE)
            count(base, counts_ptr, stored, mask, M, SHARED, True)
        start += tl.num_programs(0) * BLOCK
    close_counters(base, counts_ptr, M, SHARED)
