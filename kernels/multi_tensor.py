"""Many tensors in one launch: tables on the device tell a kernel where they are; nothing waits for them.

A program takes one chunk of one tensor, so that many programs share a large tensor and small ones run side by
side. The tensor's address comes from a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ._triton import tl, triton
from .device import current_stream, is_capturing, is_gpu, kept_for_replays, made_aside, made_once, upload
from .launcher import ALIGNMENT, dense

CHUNK = 1 << 16  # elements of one tensor that one program takes


@triton.jit
def tensor_at(addresses_ptr, index, like_ptr, ALIGNED: tl.constexpr):
    """A pointer to the tensor with that index, which has the dtype of like_ptr's."""
    pointer = tl.load(addresses_ptr + index).to(tl.pointer_type(like_ptr.dtype.element_ty))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer  # 128-bit accesses


@triton.jit
def chunk_at(program, chunk_tensors_ptr, chunk_numbers_ptr, sizes_ptr, CHUNK: tl.constexpr):
    """The tensor's index, and where in the tensor the program's chunk begins and ends."""
    tensor = tl.load(chunk_tensors_ptr + program)
    start = tl.load(chunk_numbers_ptr + program).to(tl.int64) * CHUNK
    return tensor, start, tl.minimum(start + CHUNK, tl.load(sizes_ptr + tensor))


class Chunks(NamedTuple):
    """Tensors cut into chunks."""

    sizes: Tensor  # int64 (tensors,)
    rows: Tensor  # int32 (tensors,): the row of a table that each tensor belongs to
    tensors: Tensor  # int32 (chunks,): for each chunk the tensor's index
    numbers: Tensor  # int32 (chunks,): for each chunk its index within that tensor


@made_once(64)
def chunks(
    of_sizes: tuple[int, ...], rows: tuple[int, ...], device: torch.device, chunk: int = CHUNK
) -> Chunks:
    """The chunks of non-empty tensors with these sizes; `rows` may be empty."""
    pairs = [(index, number) for index, size in enumerate(of_sizes) for number in range(-(-size // chunk))]
    tensors, numbers = zip(*pairs, strict=True)
    return Chunks(
        sizes(of_sizes, device),
        upload(rows, torch.int32, device),
        upload(tensors, torch.int32, device),
        upload(numbers, torch.int32, device),
    )


@made_once(64)
def sizes(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return upload(numbers, torch.int64, device)


def addresses(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The tensors' addresses, int64 (tensors,)."""
    found = tuple(tensor.data_ptr() for tensor in tensors)
    if is_capturing(device):  # static: no replay uploads them
        return kept_for_replays(made_aside(device, lambda: upload(found, torch.int64, device)))
    if is_gpu(device):
        return _addresses(found, device, current_stream(device))
    return upload(found, torch.int64, device)


@lru_cache(maxsize=64)
def _addresses(found: tuple[int, ...], device: torch.device, stream: torch.Stream) -> Tensor:
    """Kept, since gradients mostly lie where those of the last step did; queued, since often they do not."""
    return upload(found, torch.int64, device)


def by_kind(tensors: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], list[int]]]:
    """The non-empty tensors, made dense, and their indices, grouped by dtype and alignment."""
    groups: dict[tuple[torch.dtype, bool], tuple[list[Tensor], list[int]]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            compact = dense(tensor.detach())
            group, indices = groups.setdefault((compact.dtype, is_aligned([compact])), ([], []))
            group.append(compact)
            indices.append(index)
    yield from groups.values()


def is_aligned(tensors: Sequence[Tensor]) -> bool:
    return all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)
