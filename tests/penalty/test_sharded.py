"""WeightPenalty of parameters that are sharded over processes: as that of the whole model."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn, optim

import sigscale as ss
from tests.oracles.processes import run_two

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

PROCESSES = 2


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))


def process(rank: int, folder: str) -> None:
    address = {"init_method": f"file://{folder}/address", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", **address)
    for factors, attached in product([(0.3, 0.0), (0.0, 0.1), (0.3, 0.1)], [True, False]):
        compare(*factors, attached)
    for shape in ((1, PROCESSES), (PROCESSES, 1)):
        compare(0.3, 0.1, True, shape)
    for attached in (True, False):
        compare(0.3, 0.1, attached, ())
    made_before_sharding()
    for placement in (Shard(0), Shard(1), Replicate(), Partial()):
        compare_placement(placement)
    for use_orig_params in (False, True):
        refuse_fsdp1(use_orig_params)
    dist.barrier()
    dist.destroy_process_group()


def compare(l2: float, l1: float, attached: bool, shape: tuple[int, ...] = (PROCESSES,)) -> None:
    """Sharded over a mesh of this shape; without a shape, by DistributedDataParallel."""
    whole, sharded = network(), network()
    if shape:
        names = ("copies", "shards")[-len(shape) :]
        fully_shard(sharded, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
    else:
        sharded = DistributedDataParallel(sharded)
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
        torch.testing.assert_close(shard.full_tensor() if shape else shard, parameter)


def made_before_sharding() -> None:
    """A penalty, alone and at work in an optimizer that is then given the shards."""
    whole, sharded = network(), network()
    nets, penalties = (whole, sharded), [ss.WeightPenalty(net, 0.3, 0.1) for net in (whole, sharded)]
    optimizers = [optim.SGD(net.parameters(), lr=0.1) for net in nets]
    attachments = [penalty.attach(o) for penalty, o in zip(penalties, optimizers, strict=True)]
    fully_shard(sharded, mesh=init_device_mesh("cpu", (PROCESSES,)))
    optimizers[1].param_groups[0]["params"] = [*sharded.parameters()]
    assert attachments[1].ways == ("gradient",)
    for net, optimizer in zip(nets, optimizers, strict=True):
        net(torch.ones(4, 5)).square().mean().backward()
        optimizer.step()
    for attachment in attachments:
        attachment.remove()
    for net, optimizer, penalty in zip(nets, optimizers, penalties, strict=True):
        optimizer.zero_grad()
        (net(torch.ones(4, 5)).square().mean() + penalty()).backward()
        optimizer.step()
    torch.testing.assert_close(penalties[1].value(), penalties[0].value())
    for shard, parameter in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(shard.full_tensor(), parameter)


def compare_placement(placement: Placement) -> None:
    """Value, gradient and step of one DTensor; the parts of a Partial one are summands."""
    torch.manual_seed(1)
    mesh, whole = init_device_mesh("cpu", (PROCESSES,)), torch.randn(6, 4)
    if isinstance(placement, Partial):
        part = DTensor.from_local(whole / PROCESSES, mesh, [placement])
    else:
        part = distribute_tensor(whole.clone(), mesh, [placement])
    theta = nn.Parameter(part)
    penalty = ss.WeightPenalty([theta], 0.3, 0.1)
    expected = 0.15 * whole.square().sum() + 0.1 * whole.abs().sum()
    torch.testing.assert_close(penalty.value(), expected)
    penalty().backward()
    pull = 0.3 * whole + 0.1 * whole.sign()
    torch.testing.assert_close(theta.grad.full_tensor(), pull)
    theta.grad = torch.zeros_like(theta.grad)
    optimizer = optim.SGD([theta], lr=1.0)
    penalty.attach(optimizer)
    optimizer.step()
    torch.testing.assert_close(theta.full_tensor(), whole - pull)


def refuse_fsdp1(use_orig_params: bool) -> None:
    plain = network()
    before = ss.WeightPenalty(plain, 0.3)
    sharded = FullyShardedDataParallel(plain, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    for use in (before, before.value, lambda: ss.WeightPenalty(sharded, 0.3)):
        with pytest.raises(TypeError, match="got a shard of FullyShardedDataParallel"):
            use()


@pytest.mark.works_with("DistributedDataParallel", "penalty")
@pytest.mark.works_with("FSDP2", "penalty")
@pytest.mark.works_with("DTensor", "penalty")
@pytest.mark.works_with("FSDP1", "penalty", says="refused")
@pytest.mark.works_with("FSDP2 over a 2-D mesh", "penalty")
def test_sharded_parameters(tmp_path: Path) -> None:
    run_two(process, tmp_path)
