"""The activation, eq. (1) of the paper, and its gradient: one kernel for each direction, generic in f.

    forward_kernel            y = alpha f(x / alpha)       reads x, writes y                2 N elements moved
    backward_kernel           dx = g f'(x / alpha)         reads g and x (or y), writes dx  3 N elements moved
    backward_sketch_kernel    the same, and counts dx      the same, and the counts of a sketch
                              if a switch is on

Tensors are processed in memory order, as one dimension of N elements. Blocks inside the tensor are not
masked, so that their loads and stores are 128 bits wide whatever N is; only the last block is masked. Scalars
arrive as the bits of float64 numbers, since Triton passes a Python float as float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import counters, device, launcher, reference, reference_sketch
from ._triton import tl, triton
from .counters import open_counters
from .functions import Function
from .math import narrow, widen
from .sketch import close_counters, count_values, words

NUM_WARPS = 4
THREADS = 32 * NUM_WARPS
# By bytes per element. A thread takes 32 bytes of a forward's input, and half as much of each input of a
# 16-bit backward, which holds both in fp32. Chosen without a GPU at hand.
FORWARD_BLOCK = {2: 16 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}
# A small tensor's forward takes a quarter of that, so that its programs outnumber the multiprocessors: the
# paper's 98,304 elements make 192 or 384 programs, where full blocks of fp32 would leave 36 of 132 idle.
SMALL = 1 << 18
SMALL_WARPS = 2
SMALL_BLOCK = {size: block // 4 for size, block in FORWARD_BLOCK.items()}
BACKWARD_BLOCK = {2: 8 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}


@triton.jit
def activation(x_ptr, y_ptr, mask, alpha, inv, VALUE: tl.constexpr):
    """Store alpha f(x / alpha) of one block; `mask` is None for a full one."""
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    x = widen(tl.load(x_ptr, mask=mask))
    tl.store(y_ptr, narrow(VALUE(x, alpha, inv, DTYPE), DTYPE), mask=mask)


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def forward_kernel(
    x_ptr, y_ptr,
    n: tl.int64, alpha_bits: tl.int64, inv_bits: tl.int64,
    VALUE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    alpha = alpha_bits.to(tl.float64, bitcast=True)
    inv = inv_bits.to(tl.float64, bitcast=True)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    x_ptr += start
    y_ptr += start
    offs = tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        activation(x_ptr + offs, y_ptr + offs, None, alpha, inv, VALUE)
    else:
        activation(x_ptr + offs, y_ptr + offs, offs < n - start, alpha, inv, VALUE)


@triton.jit
def gradient(g_ptr, saved_ptr, dx_ptr, mask, alpha, inv, SLOPE: tl.constexpr, PTX: tl.constexpr = False):
    """Store g f'(x / alpha) of one block and return it as stored; `mask` is None for a full one."""
    DTYPE: tl.constexpr = dx_ptr.dtype.element_ty
    slope = SLOPE(widen(tl.load(saved_ptr, mask=mask)), alpha, inv, DTYPE)
    dx = narrow(widen(tl.load(g_ptr, mask=mask)) * slope, DTYPE, PTX)
    tl.store(dx_ptr, dx, mask=mask)
    return dx


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def backward_kernel(
    g_ptr, saved_ptr, dx_ptr,
    n: tl.int64, alpha_bits: tl.int64, inv_bits: tl.int64,
    SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    alpha = alpha_bits.to(tl.float64, bitcast=True)
    inv = inv_bits.to(tl.float64, bitcast=True)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    g_ptr += start
    saved_ptr += start
    dx_ptr += start
    offs = tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        gradient(g_ptr + offs, saved_ptr + offs, dx_ptr + offs, None, alpha, inv, SLOPE)
    else:
        gradient(g_ptr + offs, saved_ptr + offs, dx_ptr + offs, offs < n - start, alpha, inv, SLOPE)


@triton.jit
def gradient_tiles(
    g_ptr, saved_ptr, dx_ptr, n, alpha, inv, base, counts_ptr,
    SLOPE: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the gradient of the program's tiles; count it unless M is 0."""
    offs = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start + BLOCK <= n:
        g, saved, dx = g_ptr + start + offs, saved_ptr + start + offs, dx_ptr + start + offs
        stored = gradient(g, saved, dx, None, alpha, inv, SLOPE, SHARED)
        if M:
            count_values(base, counts_ptr, stored, None, M, SHARED, True)
        start += tl.num_programs(0) * BLOCK
    if start < n:
        g, saved, dx = g_ptr + start + offs, saved_ptr + start + offs, dx_ptr + start + offs
        mask = offs < n - start
        stored = gradient(g, saved, dx, mask, alpha, inv, SLOPE, SHARED)
        if M:
            count_values(base, counts_ptr, stored, mask, M, SHARED, True)


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def backward_sketch_kernel(
    g_ptr, saved_ptr, dx_ptr, on_ptr, counts_ptr,
    n: tl.int64, alpha_bits: tl.int64, inv_bits: tl.int64,
    SLOPE: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    alpha = alpha_bits.to(tl.float64, bitcast=True)
    inv = inv_bits.to(tl.float64, bitcast=True)
    on = tl.load(on_ptr)
    base = open_counters(words(M), SHARED)
    rest = tl.where(on == 0, n, 0)  # one loop behind the other; as branches, they cost registers
    gradient_tiles(g_ptr, saved_ptr, dx_ptr, rest, alpha, inv, base, counts_ptr, SLOPE, 0, SHARED, BLOCK)
    gradient_tiles(g_ptr, saved_ptr, dx_ptr, n - rest, alpha, inv, base, counts_ptr, SLOPE, M, SHARED, BLOCK)
    if on != 0:
        close_counters(base, counts_ptr, M, SHARED)


def forward(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha), with the strides that torch.tanh(x) would have."""
    if not device.takes_kernel(x):
        return reference.forward(function, x, alpha)
    x = x if x.is_contiguous() else launcher.dense(x)
    y = torch.empty_like(x)
    n, size = x.numel(), x.element_size()
    small = n <= SMALL
    block, warps = (SMALL_BLOCK[size], SMALL_WARPS) if small else (FORWARD_BLOCK[size], NUM_WARPS)
    arguments = (n, *launcher.scalar_bits(alpha), function.value, block)
    launcher.launch(
        forward_kernel, (function, "forward", small), -(-n // block), (x, y), *arguments, num_warps=warps
    )
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
    on: Tensor | None = None,
) -> Tensor:
    """g f'(x / alpha), from saved = x or, if `from_output`, from saved = alpha f(x / alpha).

    Also adds the result to `counts`, if given, those of a sketch with m mantissa bits, unless on[0] is 0.
    """
    if not device.takes_kernel(saved):
        dx = reference.backward(function, g, saved, alpha, from_output=from_output)
        if counts is not None:
            reference_sketch.count(counts, dx, m, on)
        return dx
    if not (g.is_contiguous() and saved.is_contiguous()):
        saved = launcher.dense(saved)
        g = g if g.stride() == saved.stride() else torch.empty_like(saved).copy_(g)
    dx = torch.empty_like(saved)
    slope = function.slope_from_output if from_output else function.slope
    n, scalars = dx.numel(), launcher.scalar_bits(alpha)
    if counts is None:
        block = BACKWARD_BLOCK[dx.element_size()]
        launcher.launch(
            backward_kernel,
            (function, from_output),
            -(-n // block),
            (g, saved, dx),
            *(n, *scalars, slope, block),
            num_warps=NUM_WARPS,
        )
    else:
        grid, block, shared = counters.geometry(dx, m)
        launcher.launch(
            backward_sketch_kernel,
            (function, from_output, m),
            grid,
            (g, saved, dx, counters.always(dx.device) if on is None else on, counts),
            *(n, *scalars, slope, m, shared, block),
            num_warps=counters.WARPS[m],
        )
    return dx
