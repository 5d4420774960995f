"""Where a tensor is computed: device choice, layout, blocks and grids.

CUDA and HIP tensors go through the Triton kernels, CPU tensors through the plain-PyTorch twin or, where
TRITON_INTERPRET=1 was set before the import, through the kernels in Triton's interpreter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import reference, reference_counts, select, summary, tables
from ._optional import INTERPRETED
from .cached import ALIGNMENT, launch
from .multi_tensor import multi_select_kernel, multi_sketch_kernel
from .pointwise import backward_kernel, forward_kernel
from .registry import Function
from .select import digit_kernel, narrow_kernel
from .sketch import backward_sketch_kernel, sketch_kernel
from .summarize import summarize_kernel

NUM_WARPS = 4
THREADS = 32 * NUM_WARPS
# By bytes an element. A thread takes 32 bytes of a forward's input, and half of that of each input of a
# 16-bit backward, which holds both in fp32. Chosen without a GPU at hand.
FORWARD_BLOCK = {2: 16 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}
BACKWARD_BLOCK = {2: 8 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}

# Kernels that count, by mantissa bits: programs stay until all tiles are done, so that each clears and adds
# up its counters once, and as many run as a multiprocessor surely holds at a time.
SKETCH_WARPS = {2: 8, 3: 8, 4: 8, 5: 16}
SKETCH_PROGRAMS = {2: 4, 3: 4, 4: 4, 5: 2}  # for each multiprocessor
SKETCH_ELEMENTS = {2: 8, 4: 8, 8: 4}  # for each thread, by bytes an element
SELECT_WARPS, SELECT_TILE = 8, 2048
PORTABLE_TILE = 8192  # elements, where counting a tile costs as much as clearing the histogram


def forward(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha), with the strides that torch.tanh(x) would have."""
    if not takes_kernel(x):
        return reference.forward(function, x, alpha)
    x = dense(x)
    y = torch.empty_like(x)
    n, block = x.numel(), FORWARD_BLOCK[x.element_size()]
    arguments = (n, *scalar_bits(alpha), function.value, block)
    launch(forward_kernel, (function, "forward"), -(-n // block), (x, y), *arguments, num_warps=NUM_WARPS)
    return y


def backward(
    function: Function,
    g: Tensor,
    saved: Tensor,
    alpha: float,
    *,
    from_output: bool,
    counts: Tensor | None = None,
    m: int = 3,
) -> Tensor:
    """g f'(x / alpha), from saved = x or, if `from_output`, from saved = alpha f(x / alpha).

    With `counts`, those of a sketch with m mantissa bits, the result is counted as well.
    """
    if not takes_kernel(saved):
        dx = reference.backward(function, g, saved, alpha, from_output=from_output)
        if counts is not None:
            reference_counts.count(counts, dx, m)
        return dx
    saved = dense(saved)
    dx = torch.empty_like(saved)
    if g.stride() != saved.stride():
        g = torch.empty_like(saved).copy_(g)
    slope = function.slope_from_output if from_output else function.slope
    n, scalars = dx.numel(), scalar_bits(alpha)
    if counts is None:
        block = BACKWARD_BLOCK[dx.element_size()]
        launch(
            backward_kernel,
            (function, from_output),
            -(-n // block),
            (g, saved, dx),
            *(n, *scalars, slope, block),
            num_warps=NUM_WARPS,
        )
    else:
        grid, block, shared = counting(dx, m)
        launch(
            backward_sketch_kernel,
            (function, from_output, m),
            grid,
            (g, saved, dx, counts),
            *(n, *scalars, slope, m, shared, block),
            num_warps=SKETCH_WARPS[m],
        )
    return dx


def count(counts: Tensor, x: Tensor, m: int) -> None:
    """Add the values of x, on the same device, to the counts of a sketch with m mantissa bits."""
    x = dense(x)
    if not takes_kernel(x):
        return reference_counts.count(counts, x, m)
    grid, block, shared = counting(x, m)
    arguments = (x.numel(), m, shared, block)
    return launch(sketch_kernel, ("count", m), grid, (x, counts), *arguments, num_warps=SKETCH_WARPS[m])


def count_many(counts: Tensor, rows: Sequence[int], tensors: Sequence[Tensor], m: int) -> None:
    """Add the values of each tensor to its row of counts (rows, bins): one launch for each dtype."""
    if not takes_kernel(counts):
        reference_counts.count_many(counts, rows, [dense(tensor) for tensor in tensors], m)
        return
    for group, places in by_kind(tensors):
        first = group[0]
        _, block, shared = counting(first, m)
        table = tables.chunks(
            tuple(t.numel() for t in group), tuple(rows[place] for place in places), first.device
        )
        where = tables.addresses(group, first.device)
        constants = (m, shared, is_aligned(group), tables.CHUNK, block)
        launch(
            multi_sketch_kernel,
            ("count many", *constants),
            table.numbers.numel(),
            (first, where, table.sizes, table.rows, table.tensors, table.numbers, counts),
            *constants,
            num_warps=SKETCH_WARPS[m],
        )


def order_statistics_of_many(tensors: Sequence[Tensor], ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Order statistics ranks (tensors, j) of tensors of one dtype, and how many values of each are NaN.

    The tensors are on a device with kernels, dense and not empty. For small ones: each is read once a bit.
    """
    first = tensors[0]
    values = torch.empty(ranks.shape, dtype=first.dtype, device=first.device)
    nans = torch.empty(len(tensors), dtype=torch.int64, device=first.device)
    sizes = tables.sizes(tuple(t.numel() for t in tensors), first.device)
    constants = (ranks.shape[1], 8 * first.element_size(), SELECT_TILE)
    launch(
        multi_select_kernel,
        ("select many", *constants),
        ranks.numel(),
        (values, tables.addresses(tensors, first.device), sizes, ranks, nans),
        *constants,
        num_warps=SELECT_WARPS,
    )
    return values, nans


def by_kind(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[int]]]:
    """The tensors that are not empty, made dense, by dtype and alignment, and their places."""
    groups: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[int]]] = {}
    for place, tensor in enumerate(tensors):
        if tensor.numel():
            compact = dense(tensor.detach())
            group, places = groups.setdefault((compact.dtype, is_aligned([compact])), ([], []))
            group.append(compact)
            places.append(place)
    yield from groups.values()


def is_aligned(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)


def summarize(
    counts: Tensor, scale: Tensor, q: Tensor, thresholds: Tensor, m: int, *, magnitude: bool
) -> Tensor:
    """What is worth keeping of sketches: see `summary.summary`."""
    if not takes_kernel(counts):
        return summary.summary(counts, scale, q, thresholds, m, magnitude=magnitude)
    lower, upper = summary.edges_on(counts.device, m, magnitude=magnitude)
    k, t, width = q.numel(), thresholds.numel(), 1 << (lower.numel() - 1).bit_length()
    out = torch.empty(len(counts), 5 + k + t, dtype=torch.float64, device=counts.device)
    launch(
        summarize_kernel,
        ("summarize", m, magnitude, k, t),
        len(counts),
        (out, scale, q, thresholds, lower, upper, counts),
        *(m, magnitude, k, t, width),
        num_warps=min(width // 256, 32),
    )
    return out


def order_statistics(x: Tensor, ranks_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Order statistics of all values of x, which is not empty, and how many of them are NaN.

    ranks_of(n) gives the wanted ranks, at most `select.RANKS`, int64 from 0 on, of n values that are not NaN;
    NaN comes behind infinity. n is a 0-d tensor on x's device.
    """
    x = dense(x)
    x = x.as_strided((x.numel(),), (1,))
    if not takes_kernel(x):
        return reference_counts.order_statistics(x, ranks_of)
    passes = select.digits(8 * x.element_size())
    counted = torch.zeros(1 << passes[0][1], dtype=torch.int64, device=x.device)
    _count_digit(x, counted, counted, 1, *passes[0], first=True)
    nans = counted[-1]
    ranks = ranks_of(x.numel() - nans).contiguous()
    j = ranks.numel()
    values, prefixes = torch.empty_like(x[:1]).expand(j).contiguous(), torch.empty_like(ranks)
    for shift, bits in passes:
        first = shift == passes[0][0]
        if not first:
            counted = torch.zeros(j << bits, dtype=torch.int64, device=x.device)
            _count_digit(x, counted, prefixes, j, shift, bits, first=False)
        state = values, counted, prefixes, ranks
        prefixes, ranks = torch.empty_like(ranks), torch.empty_like(ranks)
        arguments = (bits, j, first, shift == 0)
        launch(narrow_kernel, ("narrow", *arguments), j, (*state, prefixes, ranks), *arguments, num_warps=4)
    return values, nans


def _count_digit(
    x: Tensor, counts: Tensor, prefixes: Tensor, j: int, shift: int, bits: int, *, first: bool
) -> None:
    grid, block, shared = counting(x, 4)  # which has as many counters
    arguments = (shift, bits, j, first, shared, block)
    tensors, n = (x, counts, prefixes), x.numel()
    launch(digit_kernel, ("digit", *arguments), grid, tensors, n, *arguments, num_warps=SKETCH_WARPS[4])


def counting(x: Tensor, m: int) -> tuple[int, int, bool]:
    """Grid, block and way of a kernel that counts x: in shared memory or portably."""
    shared = x.is_cuda and torch.version.hip is None
    block = 32 * SKETCH_WARPS[m] * SKETCH_ELEMENTS[x.element_size()] if shared else PORTABLE_TILE
    return min(-(-x.numel() // block), SKETCH_PROGRAMS[m] * multiprocessors(x.device)), block, shared


@lru_cache
def multiprocessors(device: torch.device) -> int:
    if device.type == "cpu":  # in the interpreter, where a program more only costs time
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def takes_kernel(x: Tensor) -> bool:
    """Whether x is computed by a Triton kernel, not by its twin."""
    return x.is_cuda or (INTERPRETED and x.is_cpu)


def dense(x: Tensor) -> Tensor:
    """x itself if its elements fill a block of memory in some order of dimensions, else a copy that does."""
    if x.is_contiguous():
        return x
    like = torch.empty_like(x)  # keeps the strides of a dense tensor, and only of a dense one
    return x if like.stride() == x.stride() else like.copy_(x)


@lru_cache(maxsize=1024)
def scalar_bits(alpha: float) -> tuple[int, int]:
    """The bits of alpha and of 1 / alpha as float64, which is how kernels receive them."""
    return struct.unpack("<2q", struct.pack("<2d", alpha, 1.0 / alpha))
