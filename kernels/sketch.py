"""Counting inside a kernel: the bins of `bins.py`, filled by the program that has the values in registers.

    sketch_kernel             counts += histogram of x                       reads x
    backward_sketch_kernel    the same of dx = g f'(x / alpha)               reads g and x (or y), writes dx

On NVIDIA GPUs a program counts in shared memory (inline PTX, one `red` an element) and adds what it has
counted to the int64 counts in global memory once, at its end. There a word is the top 9 + M bits of the value
as they are, which takes a shift and a mask; zeros go to words of their own, one a lane, since half of a
gradient may be zero. The portable path, for other GPUs and the interpreter, uses `tl.histogram`. Both add
integers to the same bins, so that results agree bit for bit, in whatever order programs run.
"""

from __future__ import annotations

from . import bins
from ._optional import tl, triton
from .coefficients import constant
from .elementary import widen
from .pointwise import gradient

LANES = constant(32)  # words for the zeros
SPARE = constant(32)  # words behind those, for lanes that have no element to count there
CHUNK = constant(1024)  # words cleared or flushed at a time; at least one a thread
PAGE = constant(4096)  # bins of one tl.histogram

bin_count = triton.constexpr_function(bins.bin_count)
zero_bin = triton.constexpr_function(bins.zero_bin)


@triton.constexpr_function
def sign_words(m):
    """Words of shared memory for the magnitudes of one sign.

    With 5 mantissa bits 256 exponents would pass the 48 KiB that a kernel may declare: magnitudes from 2^64
    on have no words then.
    """
    return (191 if m == 5 else 256) << m


@triton.constexpr_function
def shared_words(m):
    return 2 * sign_words(m) + 64


@triton.constexpr_function
def declaration(m):
    """PTX that reserves the counters; it may stand in a kernel only once."""
    return f".shared .align 16 .b32 sigscale_counters[{shared_words(m)}]; mov.u32 $0, sigscale_counters;"


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


@triton.jit
def open_counters(M: tl.constexpr, SHARED: tl.constexpr):
    """Zeroed counters in shared memory: their address. All threads come here, at one place of the kernel."""
    if SHARED:
        base = tl.inline_asm_elementwise(declaration(M), "=r", [], tl.int32, is_pure=False, pack=1)
        for start in range(0, shared_words(M), CHUNK):
            words = tl.minimum(start + tl.arange(0, CHUNK), shared_words(M) - 1)
            tl.inline_asm_elementwise(
                "st.shared.u32 [$1], 0; mov.u32 $0, 0;",
                "=r,r",
                [base + words * 4],
                tl.int32,
                is_pure=False,
                pack=1,
            )
        barrier()
    else:
        base = 0
    return base


@triton.jit
def barrier():
    tl.inline_asm_elementwise("bar.sync 0; mov.u32 $0, 0;", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def count(base, counts_ptr, x, mask, M: tl.constexpr, SHARED: tl.constexpr, QUIET: tl.constexpr):
    """Count the stored values x, where `mask` (None: everywhere). QUIET: no NaN is a signaling one.

    A tile must give every thread elements of its own: Triton copies smaller ones to all threads, and each
    copy would be counted.
    """
    x = widen(x)
    if SHARED:
        count_shared(base, counts_ptr, x, mask, M, QUIET)
    else:
        index = bin_index(x, M)
        for first in tl.static_range(0, bin_count(M), PAGE):
            page = (index >= first) & (index < first + PAGE)
            page = page if mask is None else page & mask
            counted = tl.histogram(index - first, PAGE, mask=page)
            page_bins = first + tl.arange(0, PAGE)
            tl.atomic_add(counts_ptr + page_bins, counted.to(tl.int64), mask=counted != 0, sem="relaxed")


@triton.jit
def count_shared(base, counts_ptr, x, mask, M: tl.constexpr, QUIET: tl.constexpr):
    lane = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", [], tl.int32, is_pure=True, pack=1)
    zeros = base + (2 * sign_words(M) + lane) * 4
    spare = zeros + LANES * 4
    if x.dtype == tl.float64 or M == 5:
        ZERO: tl.constexpr = zero_bin(M)
        index = bin_index(x, M)
        b = tl.where(index < ZERO, ZERO - 1 - index, index - ZERO - 1)
        far = b >= tl.minimum(sign_words(M), 255 << M)
        address = base + tl.where(index < ZERO, b + sign_words(M), b) * 4
        address = tl.where(far, spare, tl.where(index == ZERO, zeros, address))
        far = far if mask is None else far & mask
        tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p red.relaxed.gpu.global.add.u64 [$1], 1; }"
            "mov.u32 $0, 0;",
            "=r,l,r",
            [counts_ptr + index, far.to(tl.int32)],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        bits = x.to(tl.int32, bitcast=True)
        if not QUIET:
            bits = tl.where(x == x, bits, 0x7FC00000)
        address = base + ((bits >> (21 - M)) & ((4 << (9 + M)) - 4))
        address = tl.where((bits & 0x7FFFFFFF) == 0, zeros, address)
    if mask is not None:
        address = tl.where(mask, address, spare)
    tl.inline_asm_elementwise(
        "red.shared.add.u32 [$1], 1; mov.u32 $0, 0;", "=r,r", [address], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def close_counters(base, counts_ptr, M: tl.constexpr, SHARED: tl.constexpr):
    """Add the counters to the counts in global memory."""
    if SHARED:
        barrier()
        for start in range(0, 2 * sign_words(M), CHUNK):
            words = start + tl.arange(0, CHUNK)
            counted = read(base + tl.minimum(words, 2 * sign_words(M) - 1) * 4)
            there = (counted != 0) & (words < 2 * sign_words(M))
            where = counts_ptr + bin_of_word(words, M)
            tl.atomic_add(where, counted.to(tl.int64), mask=there, sem="relaxed")
        zeros = tl.sum(read(base + (2 * sign_words(M) + tl.arange(0, LANES)) * 4))
        tl.atomic_add(counts_ptr + zero_bin(M), zeros.to(tl.int64), mask=zeros != 0, sem="relaxed")


@triton.jit
def read(address):
    return tl.inline_asm_elementwise(
        "ld.shared.u32 $0, [$1];", "=r,r", [address], tl.int32, is_pure=False, pack=1
    )


@triton.jit(do_not_specialize=["n"])
def sketch_kernel(x_ptr, counts_ptr, n: tl.int64, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    base = open_counters(M, SHARED)
    offs = tl.arange(0, BLOCK)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * BLOCK
        here = x_ptr + start + offs
        if start + BLOCK <= n:
            count(base, counts_ptr, tl.load(here), None, M, SHARED, False)
        else:
            mask = offs < n - start
            count(base, counts_ptr, tl.load(here, mask=mask, other=0.0), mask, M, SHARED, False)
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
    base = open_counters(M, SHARED)
    offs = tl.arange(0, BLOCK)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * BLOCK
        g, saved, dx = g_ptr + start + offs, saved_ptr + start + offs, dx_ptr + start + offs
        if start + BLOCK <= n:
            stored = gradient(g, saved, dx, None, alpha, inv, SLOPE)
            count(base, counts_ptr, stored, None, M, SHARED, True)
        else:
            mask = offs < n - start
            stored = gradient(g, saved, dx, mask, alpha, inv, SLOPE)
            count(base, counts_ptr, stored, mask, M, SHARED, True)
    close_counters(base, counts_ptr, M, SHARED)
