"""A sharded and compiled model, monitored: `torchrun --nproc-per-node 2 -m examples.distributed`.

Twelve layers with a learned alpha, sharded by `fully_shard` and compiled one by one, learn a function. Every
10th step is measured, and rank 0 writes it to TensorBoard. The checkpoint holds the history, and the same
command with more `--steps` resumes from it. On one process, `python -m examples.distributed --eager` trains
the same model with neither; the histories are equal, since each process's loss is its share of the batch's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.tensorboard import SummaryWriter

import sigscale as ss
from examples.common import count, parser
from sigscale.integrations.tensorboard import TensorBoardLogger

LAYERS, WIDTH, INPUTS, BATCH = 12, 32, 8, 64  # BATCH is divided among the processes


def network() -> nn.Sequential:
    """Layers that are alike, so that they are compiled once."""
    torch.manual_seed(0)
    layers = (nn.Sequential(nn.Linear(WIDTH, WIDTH), ss.nn.Tanh(learnable=True)) for _ in range(LAYERS))
    return nn.Sequential(nn.Linear(INPUTS, WIDTH), *layers, nn.Linear(WIDTH, 1))


def compile_and_shard(model: nn.Sequential, device: str) -> None:
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for number in range(1, 1 + LAYERS):
        compiled: Any = torch.compile(model[number], fullgraph=True)
        model[number] = fully_shard(compiled, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the losses of the processes are summands


def batch(step: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """This process's part of a batch."""
    x = torch.randn(BATCH, INPUTS, generator=torch.Generator().manual_seed(step), dtype=dtype)
    y = torch.sin(x.sum(1, keepdim=True))
    rank, processes = place()
    return x.chunk(processes)[rank].to(device), y.chunk(processes)[rank].to(device)


def place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def train(args: argparse.Namespace, device: torch.device) -> ss.GradientHistory:
    dtype = torch.float64 if args.double else torch.float32
    model = network().to(device, dtype)
    if not args.eager:
        compile_and_shard(model, device.type)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = ss.GradientMonitor(model, every=10, ring=8)
    checkpoint = args.out / "checkpoint"
    if checkpoint.exists():
        state = state_of(model, optimizer, monitor)
        load(state, checkpoint_id=checkpoint)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        monitor.load_state_dict(state["monitor"])
    first = monitor.last().step_count
    events: Any = None if place()[0] else SummaryWriter(args.out / "events", purge_step=first)
    with TensorBoardLogger(monitor, events, histogram_every=100) as log:
        for step in range(first, args.steps):
            x, y = batch(step, device, dtype)
            optimizer.zero_grad()
            ((model(x) - y).square().sum() / BATCH).backward()
            monitor.step()
            log.step()
            optimizer.step()
    files = FileSystemWriter(checkpoint, overwrite=True)
    save(state_of(model, optimizer, monitor), storage_writer=files)
    monitor.close()
    if events is not None:
        events.close()
    return monitor.history()


def state_of(model: nn.Module, optimizer: Any, monitor: ss.GradientMonitor) -> dict[str, Any]:
    parameters, moments = get_state_dict(model, optimizer)
    return {"model": parameters, "optimizer": moments, "monitor": monitor.state_dict()}


def main(argv: Sequence[str] | None = None) -> None:
    options = parser("distributed", __doc__)
    options.add_argument("--steps", type=count, default=200, help="with those of the checkpoint")
    options.add_argument("--eager", action="store_true", help="neither compile nor shard")
    options.add_argument("--double", action="store_true", help="compute in float64")
    args = options.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if not (args.eager or dist.is_initialized()):
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    history = train(args, device)
    if place()[0] == 0:
        history.save(args.out / "gradients.npz")
        print(history, f"median gradient {history.quantile(0.5)[-1, 0]:.2e}")


if __name__ == "__main__":
    main()
    if dist.is_initialized():
        dist.destroy_process_group()
