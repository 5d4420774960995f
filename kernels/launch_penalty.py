"""Where a weight penalty's gradient is added: one launch for each device and dtype, see `penalty.py`."""

from __future__ import annotations

import struct
from functools import lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from . import reference_penalty, tables
from .launch import dense, takes_kernel
from .launcher import ALIGNMENT, launch
from .penalty import penalty_kernel
from .reference_penalty import PLAIN, Tensors

NUM_WARPS = 8
BLOCK = {2: 4096, 4: 2048, 8: 1024}  # by bytes an element: two 128-bit accesses of each tensor for a thread
CHUNK = 1 << 13  # small, so that a middling network occupies all multiprocessors
DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
IS_CPU, DTYPE, LAYOUT = map(attrgetter, ("is_cpu", "dtype", "layout"))

Way = tuple[int, torch.dtype | None, object]
Lists = tuple[list[Tensor], list[Tensor]]


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

    Arithmetic is in fp32 (fp64 for fp64), with one rounding to the tensors' type. From PyTorch's, which may
    round the product as well, kernels differ by that rounding. `known_plain`: the parameters are on a CPU
    and of types in PLAIN, which the caller has found out.
    """
    if parameters and not takes_kernel(parameters[0]) and _alike(parameters, known_plain):
        reference_penalty.add_penalty(into, parameters, l2, l1, scale)
        return
    for (_, dtype, aligned), (gradients, thetas) in _by_way(into, parameters).items():
        factor = None if scale is None else scale.to(thetas[0].device, non_blocking=True)
        if dtype is None:
            reference_penalty.add_penalty(gradients, thetas, l2, l1, factor)
        else:
            _launch(gradients, thetas, l2, l1, factor, bool(aligned))


def _alike(parameters: Tensors, known_plain: bool) -> bool:
    """Whether all are CPU tensors of one type, as nearly always where no kernel runs."""
    if not known_plain and not (all(map(IS_CPU, parameters)) and len(set(map(type, parameters))) == 1):
        return False
    return len(set(map(DTYPE, parameters))) == 1


def all_dense_on_cpu(gradients: list[Tensor]) -> bool:
    """Whether all are there and dense, the first one on a CPU; in one pass, for lists of small tensors."""
    try:
        return gradients[0].is_cpu and set(map(LAYOUT, gradients)) == {torch.strided}
    except AttributeError:  # of None, where there is no gradient
        return False


def _by_way(into: Tensors, parameters: Tensors) -> dict[Way, Lists]:
    """What is computed together: by device, dtype and alignment in kernels, by device and type elsewhere."""
    groups: dict[Way, Lists] = {}
    for gradient, theta in zip(into, parameters, strict=True):
        way: Way = theta.get_device(), None, (type(theta), theta.dtype)
        if takes_kernel(theta) and _suits_kernel(gradient, theta):
            way = way[0], theta.dtype, not (gradient.data_ptr() | theta.data_ptr()) % ALIGNMENT
        gradients, thetas = groups.get(way) or groups.setdefault(way, ([], []))
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
    return theta.stride() == gradient.stride() and dense(theta) is theta


def _launch(
    into: list[Tensor], parameters: list[Tensor], l2: float, l1: float, scale: Tensor | None, aligned: bool
) -> None:
    first = into[0]
    device, bytes_each = first.device, first.element_size()
    table = tables.chunks(tuple(t.numel() for t in parameters), (), device, CHUNK)
    where = tables.addresses(into, device), tables.addresses(parameters, device)
    constants = (l2 != 0, l1 != 0, scale is not None, aligned, CHUNK, BLOCK[bytes_each])
    launch(
        penalty_kernel,
        ("penalty", *constants, None if scale is None else scale.dtype),
        table.numbers.numel(),
        (first, *where, table.sizes, table.tensors, table.numbers, first if scale is None else scale),
        *(bits(l2), bits(l1), *constants),
        num_warps=NUM_WARPS,
    )


@lru_cache(maxsize=1024)
def bits(number: float) -> int:
    """Of a number as float64, which is how kernels receive it."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])
