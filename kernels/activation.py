"""One forward and one backward kernel, generic in the function f.

    forward    y = alpha f(x / alpha)        reads x,              writes y    2 elements moved per element
    backward   dx = g f'(x / alpha)          reads g and x (or y), writes dx   3 elements moved per element

Tensors are processed in memory order, as one dimension. A block that lies inside the tensor is not masked, so
that its loads and stores are 128 bits wide whatever the number of elements; only the last block is masked.
The scalars arrive as the bits of float64 numbers, since Triton passes a Python float as float32.
"""

from __future__ import annotations

from ._triton import tl, triton
from .math import narrow, widen


@triton.jit
def activation(x_ptr, y_ptr, mask, alpha, inv, VALUE: tl.constexpr):
    """alpha f(x / alpha) of one block, stored; `mask` is None for a full one."""
    DTYPE: tl.constexpr = y_ptr.dtype.element_ty
    x = widen(tl.load(x_ptr, mask=mask))
    tl.store(y_ptr, narrow(VALUE(x, alpha, inv, DTYPE), DTYPE), mask=mask)


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def forward_kernel(
    x_ptr,
    y_ptr,
    n: tl.int64,
    alpha_bits: tl.int64,
    inv_bits: tl.int64,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
def gradient(g_ptr, saved_ptr, dx_ptr, mask, alpha, inv, SLOPE: tl.constexpr):
    """g f'(x / alpha) of one block, stored and returned as stored; `mask` is None for a full one."""
    DTYPE: tl.constexpr = dx_ptr.dtype.element_ty
    slope = SLOPE(widen(tl.load(saved_ptr, mask=mask)), alpha, inv, DTYPE)
    dx = narrow(widen(tl.load(g_ptr, mask=mask)) * slope, DTYPE)
    tl.store(dx_ptr, dx, mask=mask)
    return dx


@triton.jit(do_not_specialize=["n", "alpha_bits", "inv_bits"])
def backward_kernel(
    g_ptr,
    saved_ptr,
    dx_ptr,
    n: tl.int64,
    alpha_bits: tl.int64,
    inv_bits: tl.int64,
    SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
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
