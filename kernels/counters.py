"""Counters of one program: words in the shared memory of NVIDIA GPUs, by inline PTX; elsewhere none.

Shared counters cost an element one `red` instruction. A program opens them once, counts, and adds them to the
counts in global memory at its end. Elsewhere, and in the interpreter, `count_portably` adds tile by tile.
"""

from __future__ import annotations

from ._triton import tl, triton
from .coefficients import constant

CHUNK = constant(1024)  # words cleared or flushed at a time; at least one a thread
PAGE = constant(4096)  # bins of one tl.histogram


@triton.constexpr_function
def declaration(words):
    """PTX that reserves the counters and a spare word a lane; it may stand in a kernel only once."""
    return f".shared .align 16 .b32 sigscale_counters[{words + 32}]; mov.u32 $0, sigscale_counters;"


@triton.jit
def open_counters(WORDS: tl.constexpr, SHARED: tl.constexpr):
    """Zeroed counters in shared memory: their address. All threads come here, at one place of the kernel."""
    if SHARED:
        base = tl.inline_asm_elementwise(declaration(WORDS), "=r", [], tl.int32, is_pure=False, pack=1)
        for start in range(0, WORDS, CHUNK):
            words = tl.minimum(start + tl.arange(0, CHUNK), WORDS - 1)
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
def lane():
    """The number of the thread in its warp."""
    return tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", [], tl.int32, is_pure=True, pack=1)


@triton.jit
def spare_word(base, WORDS: tl.constexpr):
    """The address of a word that is never read, for elements that do not count: a branch would cost more."""
    return base + (WORDS + lane()) * 4


@triton.jit
def increment(address):
    """Count one at each address.

    A tile must give every thread elements of its own: Triton copies smaller ones to all threads, and each
    copy would be counted.
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
    """counts[index] += counted; most of a program's counters are zero, and cost nothing more."""
    tl.atomic_add(counts_ptr + index, counted.to(tl.int64), mask=mask & (counted != 0), sem="relaxed")


@triton.jit
def count_portably(counts_ptr, index, mask, BINS: tl.constexpr):
    """counts[index] += 1 for each index (0 to BINS - 1) of the tile where the mask is (None: everywhere)."""
    for first in tl.static_range(0, BINS, PAGE):
        page = (index >= first) & (index < first + PAGE)
        page = page if mask is None else page & mask
        counted = tl.histogram(index - first, PAGE, mask=page)
        bins = first + tl.arange(0, PAGE)
        add_counted(counts_ptr, bins, counted, bins < BINS)
