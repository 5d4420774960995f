"""Over several processes a monitor gives each the same history, that of all data together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from tests.oracles.collected import Twin, assert_row

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

PROCESSES = 2
STEPS = 3
WAYS = ("auto", "bucket views", "world", "none", "compiled", "checkpointed", "fully sharded")


class Checkpointed(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def network(way: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 8),
        ss.nn.Tanh(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.ReLU(inplace=True),
    ]
    return (Checkpointed if way == "checkpointed" else nn.Sequential)(*layers, nn.Linear(8, 1))


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def process(rank: int, folder: str) -> None:
    """What each process does; it leaves its histories in the folder."""
    torch.set_num_threads(1)
    address = {"init_method": f"file://{folder}/address", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", **address)
    for way in WAYS:
        monitored(way, rank).save(f"{folder}/{way}-{rank}.npz")
    sharded().save(f"{folder}/sharded-{rank}.npz")
    dist.barrier()
    dist.destroy_process_group()


def monitored(way: str, rank: int) -> ss.GradientHistory:
    if way == "fully sharded":
        model = fully_shard(network(way), mesh=init_device_mesh("cpu", (PROCESSES,)))
    else:
        model = DistributedDataParallel(network(way), gradient_as_bucket_view=way == "bucket views")
    if way == "compiled":
        model = torch.compile(model, backend="eager")
    world = dist.group.WORLD
    group = {"none": None, "world": world, "fully sharded": world}.get(way, "auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, group=group, ring=2) as monitor:
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step, rank)).square().sum().backward()
            monitor.step()
            optimizer.step()
    return monitor.history()


def whole(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sharded() -> ss.GradientHistory:
    """Gradients that lie in the processes in parts, in copies, or as summands."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 7, bias=False))
    for layer, placement in zip(model, (Shard(0), Replicate()), strict=True):
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [placement]))
    with ss.GradientMonitor(model, group=dist.group.WORLD) as monitor:
        for placement in (Replicate(), Partial()):
            model[0].weight.grad = distribute_tensor(whole((3, 5), 1), mesh, [Shard(0)])
            summand = whole((7, 3), 2) / (PROCESSES if isinstance(placement, Partial) else 1)
            model[1].weight.grad = DTensor.from_local(summand, mesh, [placement], run_check=False)
            model[0].bias.grad = whole((3,), 3)
            monitor.step()
    return monitor.history()


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[ss.GradientHistory]]:
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=PROCESSES)
    return {
        way: [ss.GradientHistory.load(folder / f"{way}-{rank}.npz") for rank in range(PROCESSES)]
        for way in (*WAYS, "sharded")
    }


def truth(step: int, twins: list[Twin]) -> dict[str, np.ndarray]:
    """Activations: the coordinates of all processes; parameters: the mean over the processes."""
    found = []
    for rank, twin in enumerate(twins):
        twin.model.zero_grad()
        twin.model(batch(step, rank)).square().sum().backward()
        found.append(twin.step())
    parameters = [dict(twin.model.named_parameters()) for twin in twins]
    gradients = {name: sum(p[name].grad for p in parameters) / PROCESSES for name in parameters[0]}
    with torch.no_grad():
        for model in parameters:
            for name, parameter in model.items():
                parameter -= 0.1 * gradients[name]
    result = {name: np.concatenate([part[name] for part in found]) for name in ("1", "3", "5")}
    result |= {name: g.double().numpy().ravel() for name, g in gradients.items()}
    result["all activations"] = np.concatenate([result[name] for name in ("1", "3", "5")])
    result["all parameters"] = np.concatenate([result[name] for name in gradients])
    return result


@pytest.mark.parametrize("way", [way for way in WAYS if way != "none"])
def test_global_history_on_every_rank(way, histories):
    first, second = histories[way]
    assert first.values.tobytes() == second.values.tobytes()
    assert first.names == second.names
    assert first.names[:6] == ["all activations", "all parameters", "1", "3", "5", "0.weight"]
    assert first.steps.tolist() == list(range(STEPS))
    twins = [Twin(network("")) for _ in range(PROCESSES)]
    for step in range(STEPS):
        for name, g in truth(step, twins).items():
            assert_row(first, step, name, g)


def test_each_process_for_itself(histories):
    first, second = histories["none"]
    activation, parameter = first.names.index("1"), first.names.index("0.weight")
    assert first.count[0, activation] == second.count[0, activation] == 80
    assert not np.array_equal(first.values[:, activation], second.values[:, activation])
    assert np.array_equal(first.values[:, parameter], second.values[:, parameter])


def test_sharded_parameters_count_once(histories):
    first, second = histories["sharded"]
    assert first.values.tobytes() == second.values.tobytes()
    parts = {"0.weight": whole((3, 5), 1), "0.bias": whole((3,), 3), "1.weight": whole((7, 3), 2)}
    flat = {name: g.double().numpy().ravel() for name, g in parts.items()}
    flat["all parameters"] = np.concatenate(list(flat.values()))
    for step in range(2):
        for name, g in flat.items():
            assert_row(first, step, name, g)


def test_dtensor_activations():
    """Each process counts the part that it has; here a single one has all."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model, sketch = nn.Sequential(nn.Tanh(), nn.ReLU()), ss.QuantileSketch()
        x = distribute_tensor(whole((4, 3), 0), mesh, [Shard(0)]).requires_grad_()
        with ss.GradientMonitor(model) as monitor:
            ss.tanh(model(x), grad_sketch=sketch).sum().backward()
            monitor.step()
        first = ss.QuantileSketch().update(x.grad.to_local())
        assert type(sketch.counts) is torch.Tensor
        assert sketch.count == monitor.sketch("1").count == 12
        assert torch.equal(monitor.sketch("0").counts, first.counts)
    finally:
        dist.destroy_process_group()
