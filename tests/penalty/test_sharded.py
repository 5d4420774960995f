"""WeightPenalty of parameters that are sharded over processes: as that of the whole model."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim

import sigscale as ss

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

PROCESSES = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = {"init_method": f"file://{folder}/address", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", **address)
    for factors, attached in product([(0.3, 0.0), (0.0, 0.1), (0.3, 0.1)], [True, False]):
        compare(*factors, attached)
    dist.barrier()
    dist.destroy_process_group()


def compare(l2: float, l1: float, attached: bool) -> None:
    whole, sharded = network(), network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (PROCESSES,)))
    penalties = [ss.WeightPenalty(net, l2, l1) for net in (whole, sharded)]
    optimizers = [optim.AdamW(net.parameters(), lr=0.1) for net in (whole, sharded)]
    if attached:
        penalties[1].attach(optimizers[1])
    for step in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for net, penalty, optimizer in zip((whole, sharded), penalties, optimizers, strict=True):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            (loss if attached and net is sharded else loss + penalty()).backward()
            optimizer.step()
    torch.testing.assert_close(penalties[1].value(), penalties[0].value())
    for shard, parameter in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(shard.full_tensor(), parameter)


def test_sharded_parameters(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(process, args=(str(tmp_path),), nprocs=PROCESSES)
