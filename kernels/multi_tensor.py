"""Many tensors in one launch: sketches of all gradients of a network, or their exact order statistics.

Kernels read the tensors' addresses from a table on the device. In `multi_sketch_kernel` a program takes a
chunk of one tensor, so that a large one is shared by many programs and small ones run side by side; in
`multi_select_kernel` a program finds one order statistic of one small tensor, bit by bit, from the cache.

    multi_sketch_kernel    counts[row of the tensor] += histogram of the tensor     reads every tensor
    multi_select_kernel    values[tensor, j] = its order statistic ranks[tensor, j]

What else a pass over all gradients can do, such as adding a penalty's gradient, belongs between the load and
the count of a tile.
"""

from __future__ import annotations

from ._triton import tl, triton
from .counters import open_counters
from .select import sort_key, value_of_key
from .sketch import bin_count, close_counters, count_tile, words


@triton.jit
def tensor_at(addresses_ptr, index, like_ptr, ALIGNED: tl.constexpr):
    """A pointer to the tensor with that index, which has the dtype of like_ptr's."""
    pointer = tl.load(addresses_ptr + index).to(tl.pointer_type(like_ptr.dtype.element_ty))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer  # 128-bit accesses


@triton.jit
def multi_sketch_kernel(
    like_ptr,
    addresses_ptr,
    sizes_ptr,
    rows_ptr,
    chunk_tensors_ptr,
    chunk_numbers_ptr,
    counts_ptr,
    M: tl.constexpr,
    SHARED: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0)
    tensor = tl.load(chunk_tensors_ptr + chunk)
    start = tl.load(chunk_numbers_ptr + chunk).to(tl.int64) * CHUNK
    end = tl.minimum(start + CHUNK, tl.load(sizes_ptr + tensor))
    x_ptr = tensor_at(addresses_ptr, tensor, like_ptr, ALIGNED)
    counts_ptr += tl.load(rows_ptr + tensor).to(tl.int64) * bin_count(M)
    base = open_counters(words(M), SHARED)
    offs = tl.arange(0, BLOCK)
    while start < end:
        count_tile(base, counts_ptr, x_ptr + start + offs, offs, end - start, M, SHARED, BLOCK)
        start += BLOCK
    close_counters(base, counts_ptr, M, SHARED)


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


@triton.jit
def number_below(x_ptr, n, key, BLOCK: tl.constexpr):
    """How many of n values have a sort key below `key`, an int64 that holds the key's bits."""
    offs = tl.arange(0, BLOCK)
    below = tl.zeros([BLOCK], tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < n:
        mask = offs < n - start
        keys = sort_key(tl.load(x_ptr + start + offs, mask=mask))
        below += ((keys < key.to(keys.dtype, bitcast=keys.dtype == tl.uint64)) & mask).to(tl.int64)
        start += BLOCK
    return tl.sum(below)
