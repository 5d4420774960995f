"""What training runs on: errors, torchrun's processes, the images' order, CUDA graphs, and CPU memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""How long a finished process waits for the others."""
GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
EAGER = 3
"""Calls before a capture: they load kernels and make the allocations that happen once."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30


class CommandError(ValueError):
    """A mistake the user can fix; the message names the value or file, the rule and the remedy."""


class DataError(CommandError):
    """CIFAR-10 is missing, incomplete or damaged, or cannot be saved."""


class DownloadError(DataError):
    """The server was out of reach, or the connection broke off."""


class FolderError(CommandError):
    """The output folder does not suit the run."""


@dataclass(frozen=True)
class Processes:
    """This process's rank and the number of processes, which train different seeds."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have arrived."""
        if self.world > 1:
            dist.barrier()

    def broadcast(self, something: T) -> T:
        """The main process's object, in all processes."""
        box = [something]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()


def _check_gpus(device: torch.device) -> None:
    """Raise CommandError unless each process on this machine has its own GPU."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if processes > gpus or device.index != local:
        rule = f"there are {gpus} GPUs, and each process needs one of its own"
        rest = f"Start at most {gpus} with --nproc-per-node, and leave --device out."
        raise CommandError(f"process {local} of {processes} has {device}; {rule}. {rest}")


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """The processes torchrun started, joined by NCCL on GPUs and gloo on CPUs; without torchrun, this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE", "1") == "1":
        yield Processes()
        return
    if device.type == "cuda":
        _check_gpus(device)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def generator(seed: int, epoch: int = 0) -> torch.Generator:
    """The generator of the initial parameters (epoch 0), on the CPU."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]  # the CPU's generator uses 32 bits
    return torch.Generator().manual_seed(int(mixed))


def orders(seeds: Sequence[int], epoch: int, images: int, device: torch.device) -> Tensor:
    """For each seed a permutation of the images, (seeds, images) int64: a function of seed and epoch alone.

    Sorts the images by 64 random bits each, the outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)
    started from seed and epoch, so that every device and every group of seeds gets the same order.
    """
    starts = [int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]) for seed in seeds]
    start = torch.tensor([_signed(number) for number in starts], device=device)
    z = start[:, None] + torch.arange(1, images + 1, device=device) * _signed(GOLDEN)
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return (z ^ _shifted(z, 31)).argsort(dim=1, stable=True)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """An unsigned shift to the right."""
    return (z >> bits) & ((1 << 64 - bits) - 1)


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


class Captured:
    """A function of tensors at fixed addresses, without arguments or result.

    On a GPU, calls are captured in a graph after the first few and replayed from then on; elsewhere each
    calls the function itself.  Make all calls on one stream.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.function, self.graphs = function, device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self) -> None:
        self._calls += 1
        if not (self.graphs and self._calls > EAGER):
            return self.function()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Relaxed, since tables of addresses are made in pinned memory while the graph is captured.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
                self.function()
            self._graph = graph
        return self._graph.replay()


def keep_freed_memory() -> bool:
    """Have the C library keep up to 1 GiB of freed memory for this process; return whether it does.

    By default glibc returns tensors above 32 MiB to the system, which zeroes them page by page on the next
    allocation: on a CPU that took longer than the convolutions.
    """
    with suppress(AttributeError, OSError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(M_MMAP_THRESHOLD, KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))
    return False
