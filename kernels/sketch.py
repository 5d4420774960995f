"""The sketch: a histogram over the bits of the stored values; `reference_sketch` defines its bins.

    sketch_kernel          counts += histogram of x                              reads x
    multi_sketch_kernel    counts[row] += histogram of each of many tensors      reads every tensor

A word of the counters in shared memory is indexed by the value's top 9 + M bits, which takes a shift and a
mask. Zeros go to words of their own, one per lane, since half of a gradient may be zero. Without shared
counters, `tl.histogram` counts bins. The masked tile stands outside each loop: inside, every element would
keep an address of its own. Both add integers to the same bins, so that results agree bit for bit,
in whatever order programs run.

What else a pass over all gradients can do, such as adding a penalty's gradient, belongs between the load and
the count of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import counters, device, launcher, multi_tensor, reference_sketch
from ._triton import tl, triton
from .counters import add_counters, count_portably, increment, lane, open_counters, read, spare_word
from .math import widen
from .multi_tensor import chunk_at, tensor_at

constexpr_bin_count = triton.constexpr_function(reference_sketch.bin_count)
constexpr_zero_bin = triton.constexpr_function(reference_sketch.zero_bin)


@triton.constexpr_function
def sign_words(m):
    """Words of shared memory for the magnitudes of one sign.

    With 5 mantissa bits, 256 exponents would exceed the 48 KiB that a kernel may declare: magnitudes from
    2^64 on then have no words.
    """
    return (191 if m == 5 else 256) << m


@triton.jit
def bin_index(x, M: tl.constexpr):
    """The bin of each stored value, widened to fp32 or fp64."""
    ZERO: tl.constexpr = constexpr_zero_bin(M)
    if x.dtype == tl.float64:
        y = x.to(tl.float32)
        bits = y.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        bits -= (tl.abs(y.to(tl.float64)) > tl.abs(x)).to(tl.int32)  # toward zero
        b = tl.where(tl.abs(x) < 2.0**128, bits >> (23 - M), 255 << M)
    else:
        b = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >> (23 - M)
    b = tl.where(tl.abs(x) == float("inf"), (255 << M) + 1, b)
    index = tl.where(x < 0, ZERO - 1 - b, ZERO + 1 + b)
    index = tl.where(x == 0, ZERO, index)
    return tl.where(x == x, index, 2 * ZERO + 1)


@triton.jit
def bin_of_word(word, M: tl.constexpr):
    """The bin of a word of shared memory."""
    ZERO: tl.constexpr = constexpr_zero_bin(M)
    negative = word >= sign_words(M)
    b = tl.where(negative, word - sign_words(M), word)
    is_nan = b > (255 << M)
    b = tl.where(b == (255 << M), b + 1, b)
    index = tl.where(negative, ZERO - 1 - b, ZERO + 1 + b)
    return tl.where(is_nan, 2 * ZERO + 1, index)


@triton.constexpr_function
def words(m):
    """Words of a program's counters: both signs', and one per lane for zeros."""
    return 2 * sign_words(m) + 32


@triton.jit
def count_values(base, counts_ptr, x, mask, M: tl.constexpr, SHARED: tl.constexpr, QUIET: tl.constexpr):
    """Count the stored values x under the mask (None: everywhere). QUIET: no NaN is a signaling one."""
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
        count_portably(counts_ptr, bin_index(x, M), mask, constexpr_bin_count(M))


@triton.jit
def count_far(base, counts_ptr, x, mask, zeros, spare, M: tl.constexpr):
    """The addresses of the values' words; those without one count in global memory and get `spare`."""
    ZERO: tl.constexpr = constexpr_zero_bin(M)
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
        WORDS: tl.constexpr = 2 * sign_words(M)
        add_counters(base, counts_ptr, WORDS, bin_of_word, M)
        zeros = tl.sum(read(base + (WORDS + tl.arange(0, 32)) * 4))
        tl.atomic_add(counts_ptr + constexpr_zero_bin(M), zeros.to(tl.int64), mask=zeros != 0, sem="relaxed")


@triton.jit
def count_tiles(
    base, counts_ptr, x_ptr, start, end, step, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr
):
    """Count the tiles of x[:end] that begin at start, start + step, ..."""
    offs = tl.arange(0, BLOCK)
    while start + BLOCK <= end:
        count_values(base, counts_ptr, tl.load(x_ptr + start + offs), None, M, SHARED, False)
        start += step
    if start < end:
        mask = offs < end - start
        x = tl.load(x_ptr + start + offs, mask=mask, other=0.0)
        count_values(base, counts_ptr, x, mask, M, SHARED, False)


@triton.jit(do_not_specialize=["n"])
def sketch_kernel(
    x_ptr, on_ptr, counts_ptr, n: tl.int64, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr
):
    on = tl.load(on_ptr)
    base = open_counters(words(M), SHARED)
    if on != 0:
        start = tl.program_id(0).to(tl.int64) * BLOCK
        count_tiles(base, counts_ptr, x_ptr, start, n, tl.num_programs(0) * BLOCK, M, SHARED, BLOCK)
        close_counters(base, counts_ptr, M, SHARED)


@triton.jit
def multi_sketch_kernel(
    like_ptr, addresses_ptr, sizes_ptr, rows_ptr, chunk_tensors_ptr, chunk_numbers_ptr, on_ptr, counts_ptr,
    M: tl.constexpr, SHARED: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    on = tl.load(on_ptr)
    base = open_counters(words(M), SHARED)
    if on != 0:
        tensor, start, end = chunk_at(
            tl.program_id(0), chunk_tensors_ptr, chunk_numbers_ptr, sizes_ptr, CHUNK
        )
        x_ptr = tensor_at(addresses_ptr, tensor, like_ptr, ALIGNED)
        counts_ptr += tl.load(rows_ptr + tensor).to(tl.int64) * constexpr_bin_count(M)
        count_tiles(base, counts_ptr, x_ptr, start, end, BLOCK, M, SHARED, BLOCK)
        close_counters(base, counts_ptr, M, SHARED)


def count(counts: Tensor, x: Tensor, m: int, on: Tensor | None = None) -> None:
    """Add the values of x to the counts of a sketch with m mantissa bits, unless on[0] is 0."""
    if not device.takes_kernel(x):
        return reference_sketch.count(counts, x, m, on)
    x = launcher.dense(x)
    grid, block, shared = counters.geometry(x, m)
    return launcher.launch(
        sketch_kernel,
        ("count", m),
        grid,
        (x, counters.always(x.device) if on is None else on, counts),
        *(x.numel(), m, shared, block),
        num_warps=counters.WARPS[m],
    )


def count_many(
    counts: Tensor, rows: Sequence[int], tensors: Sequence[Tensor], m: int, on: Tensor | None = None
) -> None:
    """Add the values of each tensor to its row of counts (rows, bins), unless on[0] is 0.

    One launch for each dtype.
    """
    if not device.takes_kernel(counts):
        reference_sketch.count_many(counts, rows, tensors, m, on)
        return
    switch = counters.always(counts.device) if on is None else on
    for group, indices in multi_tensor.by_kind(tensors):
        first = group[0]
        _, block, shared = counters.geometry(first, m)
        sizes = tuple(tensor.numel() for tensor in group)
        table = multi_tensor.chunks(sizes, tuple(rows[index] for index in indices), first.device)
        addresses = multi_tensor.addresses(group, first.device)
        constants = (m, shared, multi_tensor.is_aligned(group), multi_tensor.CHUNK, block)
        launcher.launch(
            multi_sketch_kernel,
            ("count many", *constants),
            table.numbers.numel(),
            (first, addresses, table.sizes, table.rows, table.tensors, table.numbers, switch, counts),
            *constants,
            num_warps=counters.WARPS[m],
        )
