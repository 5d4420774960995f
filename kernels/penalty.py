"""The gradient of the weight penalty l2 / 2 sum theta^2 + l1 sum |theta|, for many parameters in one launch.

    penalty_kernel    g += scale (l2 theta + l1 sign(theta))    reads g and theta, writes g: 3 N elements

A program takes one chunk of one parameter. Arithmetic is in fp32 (fp64 for fp64), with one rounding to the
tensors' type at the end. sign(0) and sign(NaN) are 0, as in torch.sign.
"""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor

from . import device, launcher, multi_tensor, reference_penalty
from ._triton import tl, triton
from .math import fma, narrow, widen
from .multi_tensor import chunk_at, tensor_at
from .reference_penalty import PLAIN, Tensors

NUM_WARPS = 8
BLOCK = {2: 4096, 4: 2048, 8: 1024}  # by bytes per element: two 128-bit accesses of each tensor per thread
CHUNK = 1 << 13  # small, so that a medium-sized network occupies all multiprocessors
DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
IS_CPU, DTYPE, LAYOUT = map(attrgetter, ("is_cpu", "dtype", "layout"))

Kind = tuple[int, torch.dtype | None, object]
Lists = tuple[list[Tensor], list[Tensor]]


@triton.jit
def add_tile(g_ptr, theta_ptr, mask, l2, l1, L2: tl.constexpr, L1: tl.constexpr):
    """Add the penalty's gradient to one tile; `mask` is None for a full one."""
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
    like_ptr, g_addresses_ptr, theta_addresses_ptr, sizes_ptr, chunk_tensors_ptr, chunk_numbers_ptr,
    scale_ptr,
    l2_bits: tl.int64, l1_bits: tl.int64,
    L2: tl.constexpr, L1: tl.constexpr, SCALED: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    l2 = l2_bits.to(tl.int64).to(tl.float64, bitcast=True)  # Triton's interpreter makes an int32 of 0
    l1 = l1_bits.to(tl.int64).to(tl.float64, bitcast=True)
    if SCALED:  # a gradient scaler's factor, which only the device knows
        scale = tl.load(scale_ptr).to(tl.float64)
        l2 *= scale
        l1 *= scale
    tensor, start, end = chunk_at(tl.program_id(0), chunk_tensors_ptr, chunk_numbers_ptr, sizes_ptr, CHUNK)
    g_ptr = tensor_at(g_addresses_ptr, tensor, like_ptr, ALIGNED)
    theta_ptr = tensor_at(theta_addresses_ptr, tensor, like_ptr, ALIGNED)
    offs = tl.arange(0, BLOCK)
    while start < end:
        if start + BLOCK <= end:
            add_tile(g_ptr + start + offs, theta_ptr + start + offs, None, l2, l1, L2, L1)
        else:
            add_tile(g_ptr + start + offs, theta_ptr + start + offs, offs < end - start, l2, l1, L2, L1)
        start += BLOCK


def add_penalty(
    into: Tensors,
    parameters: Tensors,
    l2: float,
    l1: float,
    scale: Tensor | None = None,
    *,
    known_plain: bool = False,
) -> None:
    """into += scale (l2 theta + l1 sign(theta)), in place; scale, of one element, is read on the device.

    PyTorch, which may round the product too, differs from the kernel by that rounding. `known_plain`: the
    caller has checked that the parameters are on a CPU and of types in PLAIN.
    """
    if parameters and not device.takes_kernel(parameters[0]) and _alike(parameters, known_plain):
        reference_penalty.add_penalty(into, parameters, l2, l1, scale)
        return
    for (_, dtype, aligned), (gradients, thetas) in _by_kind(into, parameters).items():
        factor = None if scale is None else scale.to(thetas[0].device, non_blocking=True)
        if dtype is None:
            reference_penalty.add_penalty(gradients, thetas, l2, l1, factor)
        else:
            _launch(gradients, thetas, l2, l1, factor, bool(aligned))


def _alike(parameters: Tensors, known_plain: bool) -> bool:
    """Whether all are CPU tensors of one type, as is usual where no kernel runs."""
    if not known_plain and not (all(map(IS_CPU, parameters)) and len(set(map(type, parameters))) == 1):
        return False
    return len(set(map(DTYPE, parameters))) == 1


def all_dense_on_cpu(gradients: list[Tensor]) -> bool:
    """Whether none is None or sparse and the first is on a CPU; cheap for long lists of small tensors."""
    try:
        return gradients[0].is_cpu and set(map(LAYOUT, gradients)) == {torch.strided}
    except AttributeError:  # of None, where there is no gradient
        return False


def _by_kind(into: Tensors, parameters: Tensors) -> dict[Kind, Lists]:
    """Groups computed together: by device, dtype and alignment in kernels, by device and type elsewhere."""
    groups: dict[Kind, Lists] = {}
    for gradient, theta in zip(into, parameters, strict=True):
        kind: Kind = theta.get_device(), None, (type(theta), theta.dtype)
        if device.takes_kernel(theta) and _suits_kernel(gradient, theta):
            kind = kind[0], theta.dtype, not (gradient.data_ptr() | theta.data_ptr()) % launcher.ALIGNMENT
        gradients, thetas = groups.get(kind) or groups.setdefault(kind, ([], []))
        gradients.append(gradient)
        thetas.append(theta)
    return groups


def _suits_kernel(gradient: Tensor, theta: Tensor) -> bool:
    """Whether both are plain, of one type, and lie in memory in the same order and without gaps."""
    if not (type(gradient) in PLAIN and type(theta) in PLAIN):
        return False
    if gradient.dtype != theta.dtype or theta.dtype not in DTYPES or not theta.numel():
        return False
    if theta.is_contiguous() and gradient.is_contiguous():
        return True
    return theta.stride() == gradient.stride() and launcher.dense(theta) is theta


def _launch(
    into: list[Tensor], parameters: list[Tensor], l2: float, l1: float, scale: Tensor | None, aligned: bool
) -> None:
    first = into[0]
    on, bytes_each = first.device, first.element_size()
    table = multi_tensor.chunks(tuple(t.numel() for t in parameters), (), on, CHUNK)
    where = multi_tensor.addresses(into, on), multi_tensor.addresses(parameters, on)
    constants = (l2 != 0, l1 != 0, scale is not None, aligned, CHUNK, BLOCK[bytes_each])
    launcher.launch(
        penalty_kernel,
        ("penalty", *constants, None if scale is None else scale.dtype),
        table.numbers.numel(),
        (first, *where, table.sizes, table.tensors, table.numbers, first if scale is None else scale),
        *(launcher.bits(l2), launcher.bits(l1), *constants),
        num_warps=NUM_WARPS,
    )
