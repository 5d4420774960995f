"""Processes that start at once: forked from one that has imported PyTorch and what else takes seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import torch

FORKS = multiprocessing.get_context("forkserver")
SHARED = ("hypothesis", "pandas", "pytest", "sigscale", "torch._dynamo", "torch.distributed.fsdp")
SHARED += ("torch.distributed.tensor.parallel",)
FORKS.set_forkserver_preload([*SHARED])


def run_two(function: Callable[[int, str], None], folder: Path) -> None:
    """Call a module's function in two processes, with their ranks and the folder."""
    torch.multiprocessing.start_processes(function, (str(folder),), nprocs=2, start_method="forkserver")
