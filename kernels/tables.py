"""Tables on the device that tell a kernel where many tensors are, made without waiting for the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .device import made_once

CHUNK = 1 << 16  # elements of one tensor that one program takes
_captured: list[Tensor] = []  # what CUDA graphs copy from, for as long as they may be replayed


class Chunks(NamedTuple):
    """Tensors of given sizes in chunks: of which tensor each chunk is, and the how manieth of it."""

    sizes: Tensor  # int64 (tensors,)
    rows: Tensor  # int32 (tensors,)
    tensors: Tensor  # int32 (chunks,)
    numbers: Tensor  # int32 (chunks,)


@made_once(64)
def chunks(
    of_sizes: tuple[int, ...], rows: tuple[int, ...], device: torch.device, chunk: int = CHUNK
) -> Chunks:
    """The chunks of tensors, none of them empty, and to which row of a table, if any, each tensor belongs."""
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
    """Where the tensors' memory is, int64 (tensors,)."""
    found = tuple(tensor.data_ptr() for tensor in tensors)
    if device.type == "cpu" or torch.cuda.is_current_stream_capturing():
        return upload(found, torch.int64, device)
    return _addresses(found, device)


@made_once(64)
def _addresses(found: tuple[int, ...], device: torch.device) -> Tensor:
    """Gradients mostly lie where those of the last step were."""
    return upload(found, torch.int64, device)


def upload(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor on the device."""
    return to_device(torch.tensor(numbers, dtype=dtype, device="cpu"), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; the copy is queued, not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = tensor.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)
