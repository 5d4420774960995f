"""A program's counters: words in the shared memory of NVIDIA GPUs, through inline PTX.

Counting an element costs one `red` instruction. A program opens its counters once, counts, and finally adds
them to the counts in global memory. On other GPUs and in the interpreter there are none, and `count_portably`
adds to the counts tile by tile.

Every kernel that counts takes the address of a switch, an int64, and counts unless that is 0. It reads it
once, before it clears the counters, which hides the wait for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import device
from ._triton import tl, triton
from .math import constant

CHUNK = constant(1024)  # words flushed at a time; at least one per thread
QUADS = constant(512)  # four words each, cleared at a time; at least one per thread
PAGE = constant(4096)  # bins of one tl.histogram

# Geometry of kernels that count, by mantissa bits. Programs loop over tiles, so that each clears and flushes
# its counters once; a multiprocessor surely holds this many of them at a time.
WARPS = {2: 8, 3: 8, 4: 8, 5: 16}
PROGRAMS = {2: 4, 3: 4, 4: 4, 5: 2}  # per multiprocessor
TILES = 1  # of a tensor for a program, at least: more would clear and flush fewer counters for a small one
ELEMENTS = {2: 8, 4: 8, 8: 4}  # per thread, by bytes per element
PORTABLE_TILE = 8192  # elements; counting a tile then costs as much as clearing the histogram


@triton.constexpr_function
def declaration(words):
    """PTX that reserves the counters and a spare word per lane; a kernel may contain it only once."""
    return f".shared .align 16 .b32 sigscale_counters[{words + 32}]; mov.u32 $0, sigscale_counters;"


@triton.jit
def open_counters(WORDS: tl.constexpr, SHARED: tl.constexpr):
    """The address of zeroed counters in shared memory. Call once per kernel, from all threads."""
    if SHARED:
        base = tl.inline_asm_elementwise(declaration(WORDS), "=r", [], tl.int32, is_pure=False, pack=1)
        clear(base, WORDS)
    else:
        base = 0
    return base


@triton.jit
def clear(base, WORDS: tl.constexpr):
    """Zero counters, a multiple of four words, 16 bytes at a time."""
    for start in range(0, WORDS // 4, QUADS):
        quad = tl.minimum(start + tl.arange(0, QUADS), WORDS // 4 - 1)
        tl.inline_asm_elementwise(
            "st.shared.v4.u32 [$1], {0, 0, 0, 0}; mov.u32 $0, 0;",
            "=r,r",
            [base + quad * 16],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    barrier()


@triton.jit
def barrier():
    tl.inline_asm_elementwise("bar.sync 0; mov.u32 $0, 0;", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def lane():
    """The thread's index in its warp."""
    return tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", [], tl.int32, is_pure=True, pack=1)


@triton.jit
def spare_word(base, WORDS: tl.constexpr):
    """The address of a word that nobody reads, for elements not counted: a branch would cost more."""
    return base + (WORDS + lane()) * 4


@triton.jit
def increment(address):
    """Add one at each address.

    A tile must give every thread elements of its own: Triton replicates smaller tiles over the threads, and
    would count each copy.
    """
    tl.inline_asm_elementwise(
        "red.shared.add.u32 [$1], 1; mov.u32 $0, 0;", "=r,r", [address], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def read(address):
    return tl.inline_asm_elementwise(
        "ld.shared.u32 $0, [$1];", "=r,r", [address], tl.int32, is_pure=False, pack=1
    )


@triton.jit
def add_counted(counts_ptr, index, counted, mask):
    """counts[index] += counted; skips zeros, which most of a program's counters are."""
    tl.atomic_add(counts_ptr + index, counted.to(tl.int64), mask=mask & (counted != 0), sem="relaxed")


@triton.jit
def add_counters(base, counts_ptr, WORDS: tl.constexpr, BIN: tl.constexpr = None, M: tl.constexpr = 0):
    """Add the counters in shared memory to the counts: each to that of its number or, with BIN, its bin."""
    barrier()
    for start in range(0, WORDS, CHUNK):
        word = start + tl.arange(0, CHUNK)
        counted = read(base + tl.minimum(word, WORDS - 1) * 4)
        add_counted(counts_ptr, word if BIN is None else BIN(word, M), counted, word < WORDS)


@triton.jit
def count_portably(counts_ptr, index, mask, BINS: tl.constexpr):
    """counts[index] += 1 for each index (0 to BINS - 1) of the tile under the mask (None: everywhere)."""
    for first in tl.static_range(0, BINS, PAGE):
        page = (index >= first) & (index < first + PAGE)
        page = page if mask is None else page & mask
        counted = tl.histogram(index - first, PAGE, mask=page)
        bins = first + tl.arange(0, PAGE)
        add_counted(counts_ptr, bins, counted, bins < BINS)


@triton.jit
def append_digit(prefix, rank, counts, BITS: tl.constexpr):
    """Prefixes (R,) with the digits that their ranks fall into, by counts (R, digits); ranks in these."""
    lesser = tl.cumsum(counts, axis=1) <= rank[:, None]
    prefix = (prefix << BITS) | tl.sum(lesser.to(tl.int32), axis=1).to(tl.int64)
    return prefix, rank - tl.sum(tl.where(lesser, counts, 0), axis=1)


@device.made_once(16)
def always(target: torch.device) -> Tensor:
    """A switch that is on."""
    return device.upload((1,), torch.int64, target)


def geometry(x: Tensor, m: int, programs: int | None = None) -> tuple[int, int, bool]:
    """Grid, block, and whether to count in shared memory, for a kernel that counts x with m mantissa bits.

    `programs` are those per multiprocessor, where fewer fit than of a sketch.
    """
    shared = device.has_shared_counters(x.device)
    block = 32 * WARPS[m] * ELEMENTS[x.element_size()] if shared else PORTABLE_TILE
    most = (programs or PROGRAMS[m]) * device.multiprocessors(x.device)
    return min(-(-x.numel() // (block * TILES)), most), block, shared
