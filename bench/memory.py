"""What an activation takes of memory: what it keeps for the backward pass, and its peak."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from measure import Call


class Kept(NamedTuple):
    """Bytes kept for the backward pass: x and y, which other layers may keep as well, and what else."""

    x: int
    y: int
    more: int


def kept(function: Callable[[Tensor], Tensor], x: Tensor) -> Kept:
    """What function(x) keeps; memory that several tensors share counts once."""
    storages: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        y = function(x)
    of_x, of_y = (storages.pop(tensor.untyped_storage().data_ptr(), 0) for tensor in (x, y))
    return Kept(of_x, of_y, sum(storages.values()))


def peak(call: Call, device: torch.device) -> int:
    """Bytes that a call has in use at its worst, beyond what was in use before; with its result."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    used = largest = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            used += event.nbytes()
            largest = max(largest, used)
    return largest
