"""The gradient of a weight penalty, added to the gradients of many parameters in one launch.

    g += scale (l2 theta + l1 sign(theta))      reads g and theta, writes g    3 elements moved per element

A program takes a chunk of one parameter, see `multi_tensor.py`. Arithmetic is in fp32 (fp64 for fp64), with
one rounding to the type of the tensors at the end. sign(0) and sign(NaN) are 0, as torch.sign has them.
"""

from __future__ import annotations

from ._triton import tl, triton
from .math import fma, narrow, widen
from .multi_tensor import tensor_at


@triton.jit
def add_tile(g_ptr, theta_ptr, mask, l2, l1, L2: tl.constexpr, L1: tl.constexpr):
    """Add to one tile; `mask` is None for a full one."""
    g = widen(tl.load(g_ptr, mask=mask))
    theta = widen(tl.load(theta_ptr, mask=mask))
    if L2:
        g = fma(theta, l2.to(theta.dtype), g)
    if L1:
        l1 = l1.to(theta.dtype)
        g += tl.where(theta > 0, l1, tl.where(theta < 0, -l1, 0.0))
    tl.store(g_ptr, narrow(g, g_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["l2_bits", "l1_bits"])
def penalty_kernel(
    like_ptr,
    g_addresses_ptr,
    theta_addresses_ptr,
    sizes_ptr,
    chunk_tensors_ptr,
    chunk_numbers_ptr,
    scale_ptr,
    l2_bits: tl.int64,
    l1_bits: tl.int64,
    L2: tl.constexpr,
    L1: tl.constexpr,
    SCALED: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    l2 = l2_bits.to(tl.int64).to(tl.float64, bitcast=True)  # Triton's interpreter takes 0 for an int32
    l1 = l1_bits.to(tl.int64).to(tl.float64, bitcast=True)
    if SCALED:  # the factor of a gradient scaler, which is known to the device alone
        scale = tl.load(scale_ptr).to(tl.float64)
        l2 *= scale
        l1 *= scale
    chunk = tl.program_id(0)
    tensor = tl.load(chunk_tensors_ptr + chunk)
    start = tl.load(chunk_numbers_ptr + chunk).to(tl.int64) * CHUNK
    end = tl.minimum(start + CHUNK, tl.load(sizes_ptr + tensor))
    g_ptr = tensor_at(g_addresses_ptr, tensor, like_ptr, ALIGNED)
    theta_ptr = tensor_at(theta_addresses_ptr, tensor, like_ptr, ALIGNED)
    offs = tl.arange(0, BLOCK)
    while start < end:
        if start + BLOCK <= end:
            add_tile(g_ptr + start + offs, theta_ptr + start + offs, None, l2, l1, L2, L1)
        else:
            add_tile(g_ptr + start + offs, theta_ptr + start + offs, offs < end - start, l2, l1, L2, L1)
        start += BLOCK
