"""Several processes, as `torchrun` starts them: on one machine or on several that share the output folder.

They train different seeds and need each other only to wait.  A process that dies ends them all: torchrun sees
to that, and says which.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from examples.cifar10.errors import CommandError

T = TypeVar("T")

PATIENCE = timedelta(days=30)
"""A process that is done waits for those that are not."""


@dataclass(frozen=True)
class Processes:
    """This process and how many there are."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come here."""
        if self.world > 1:
            dist.barrier()

    def told(self, something: T) -> T:
        """What the first process has, in all."""
        box = [something]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block before the others do."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


def _check_gpus(device: torch.device) -> None:
    """CommandError unless each process of this machine has a GPU of its own."""
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    if processes > gpus or device.index != local:
        raise CommandError(
            f"process {local} of {processes} has {device}; there are {gpus} GPUs, and each process needs one "
            f"of its own: start at most {gpus} with --nproc-per-node, and leave --device out."
        )


@contextmanager
def together(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun started, joined by NCCL on GPUs and gloo on CPUs; without torchrun, this one."""
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
