"""Over several processes a monitor gives each the same history, that of all data together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from sigscale.integrations.files import FileLogger
from tests.oracles.collected import Twin, assert_row
from tests.oracles.processes import run_two

if not dist.is_available():
    pytest.skip("torch was built without torch.distributed", allow_module_level=True)

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

PROCESSES = 2
STEPS = 3
MESHES = {
    "fully sharded": (2,),
    "sharded, by group": (2,),
    "hybrid 1 x 2": (1, 2),
    "hybrid 2 x 1": (2, 1),
}
WAYS = ("auto", "bucket views", "world", "none", "compiled", "checkpointed", *MESHES)
PLACEMENTS = {"shard": Shard(0), "copies": Replicate(), "summands": Partial()}
SEQUENCE = {"input_layouts": Shard(1)}
PLANS = {
    "columns and rows": {
        "0": ColwiseParallel(use_local_output=False),
        "2": RowwiseParallel(use_local_output=False),
        "4": ColwiseParallel(use_local_output=False),
        "6": RowwiseParallel(),
    },
    "alpha between local parts": {
        "0": ColwiseParallel(),
        "1": SequenceParallel(sequence_dim=-1, use_local_output=True),
        "2": RowwiseParallel(use_local_output=False),
        "4": ColwiseParallel(use_local_output=False),
        "6": RowwiseParallel(),
    },
    "sequence": {
        "0": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        "1": SequenceParallel(),
        "2": ColwiseParallel(**SEQUENCE, output_layouts=Shard(1), use_local_output=False),
        "3": SequenceParallel(),
        "4": ColwiseParallel(**SEQUENCE, output_layouts=Shard(1), use_local_output=False),
        "5": SequenceParallel(),
        "6": ColwiseParallel(**SEQUENCE, output_layouts=Replicate()),
    },
}


class Checkpointed(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


BOTH = "columns and rows, fully sharded"
COMPILED = "columns and rows, compiled"


def network(way: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 8),
        ss.nn.Tanh(learnable=True),
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
    address = {"init_method": f"file://{folder}/address", "rank": rank, "world_size": PROCESSES}
    dist.init_process_group("gloo", **address)
    for way in WAYS:
        monitored(way, rank, f"{folder}/{way}-{rank}").save(f"{folder}/{way}-{rank}.npz")
    sharded().save(f"{folder}/sharded-{rank}.npz")
    for plan in (*PLANS, BOTH, COMPILED):
        torch.save(parallel(plan), f"{folder}/{plan}-{rank}.pt")
    for name, placement in PLACEMENTS.items():
        torch.save(placed(placement), f"{folder}/{name}-{rank}.pt")
    refusals()
    torch.save(True, f"{folder}/refused-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def monitored(way: str, rank: int, file: str) -> ss.GradientHistory:
    if way in MESHES:
        names = ("copies", "shards")[-len(MESHES[way]) :]
        model = fully_shard(network(way), mesh=init_device_mesh("cpu", MESHES[way], mesh_dim_names=names))
    else:
        model = DistributedDataParallel(network(way), gradient_as_bucket_view=way == "bucket views")
    if way == "compiled":
        model = torch.compile(model, backend="eager")
    world = dist.group.WORLD
    group = {"none": None, "world": world, "sharded, by group": world}.get(way, "auto")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        ss.GradientMonitor(model, group=group, ring=2) as monitor,
        FileLogger(monitor, f"{file}.csv") as log,
    ):
        for step in range(STEPS):
            optimizer.zero_grad()
            model(batch(step, rank)).square().sum().backward()
            monitor.step()
            log.step()
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


def scaled_network() -> nn.Sequential:
    """Scaled layers: one fixed, one that learns an alpha, one that learns one for each channel."""
    torch.manual_seed(0)
    layers = [ss.nn.Tanh(learnable=True), ss.nn.Sigmoid(), ss.nn.Arctan(learnable=True, num_parameters=8)]
    widths = (6, 8, 8)
    hidden = (
        part for width, layer in zip(widths, layers, strict=True) for part in (nn.Linear(width, 8), layer)
    )
    return nn.Sequential(*hidden, nn.Linear(8, 2))


def inputs(plan: str) -> torch.Tensor:
    return whole((4, 8, 6) if plan == "sequence" else (10, 6), 7)


def parallel(plan: str) -> tuple[ss.GradientHistory, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The history of a tensor-parallel model's step, its gradients, and its parameters after it."""
    mesh = init_device_mesh("cpu", (1, PROCESSES), mesh_dim_names=("data", "tensor"))
    model = parallelize_module(scaled_network(), mesh["tensor"], dict(PLANS[plan.partition(",")[0]]))
    if plan == BOTH:
        fully_shard(model, mesh=mesh["data"])
    call = torch.compile(model, fullgraph=True, backend="aot_eager") if plan == COMPILED else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model) as monitor:
        call(inputs(plan)).square().sum().backward()
        monitor.step()
    gradients = {name: gathered(parameter.grad) for name, parameter in model.named_parameters()}
    optimizer.step()
    return monitor.history(), gradients, {name: gathered(p) for name, p in model.named_parameters()}


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def placed(placement) -> dict[str, torch.Tensor]:
    """Value, gradients and counts of an activation of one DTensor."""
    mesh, x = init_device_mesh("cpu", (PROCESSES,)), whole((6, 4), 5)
    if placement.is_partial():
        x = DTensor.from_local(x / PROCESSES, mesh, [placement])
    else:
        x = distribute_tensor(x, mesh, [placement])
    x.requires_grad_()
    alpha = torch.tensor(1.5, requires_grad=True)
    in_backward, model = ss.QuantileSketch(), nn.Sequential(nn.Tanh(), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh, [Shard(0)]))
    with ss.GradientMonitor(model, parameters=False) as monitor:
        y = ss.tanh(model[0](x), alpha, grad_sketch=in_backward)
        y.square().sum().backward()
        monitor.step()
    return {
        "value": gathered(y),
        "gradient": gathered(x.grad),
        "gradient of alpha": alpha.grad,
        "monitored": monitor.sketch("0").counts,
        "in backward": in_backward.all_reduce().counts,
        "updated": ss.QuantileSketch().update(x).all_reduce().counts,
    }


def refusals() -> None:
    for use_orig_params in (False, True):
        flat = FullyShardedDataParallel(
            network(""), use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
        with pytest.raises(TypeError, match="got FullyShardedDataParallel, which flattens them: shard with"):
            ss.GradientMonitor(flat)
    model, mesh = network(""), init_device_mesh("cpu", (PROCESSES,))
    with ss.GradientMonitor(model) as monitor:
        fully_shard(model, mesh=mesh)(batch(0, 0)).sum().backward()
        with pytest.raises(RuntimeError, match="sharded after its monitor was made"):
            monitor.step()
    model = parallelize_module(network(""), mesh, {"2": ColwiseParallel(), "4": RowwiseParallel()})
    with ss.GradientMonitor(model), pytest.raises(TypeError, match="the input of '1' is a plain tensor in a"):
        model(batch(0, 0))
    with (
        ss.GradientMonitor(model, exclude="1"),
        pytest.raises(TypeError, match="the input of '3' is a plain"),
    ):
        model(batch(0, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left."""
    folder: Path = tmp_path_factory.mktemp("processes")
    run_two(process, folder)
    return folder


@pytest.fixture(scope="module")
def histories(folder: Path) -> dict[str, list[ss.GradientHistory]]:
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


SHOWN = {
    "auto": pytest.mark.works_with("DistributedDataParallel", "activation", "learned alpha", "monitor"),
    "fully sharded": pytest.mark.works_with("FSDP2", "activation", "learned alpha", "monitor"),
    "hybrid 2 x 1": pytest.mark.works_with("FSDP2 over a 2-D mesh", "activation", "learned alpha", "monitor"),
    COMPILED: pytest.mark.works_with("tensor parallel, compiled", "activation", "learned alpha", "monitor"),
}


@pytest.mark.parametrize("way", [pytest.param(w, marks=SHOWN.get(w, ())) for w in WAYS if w != "none"])
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


@pytest.mark.parametrize("way", ["auto", "fully sharded"])
def test_first_process_logs(way, histories, folder):
    assert not (folder / f"{way}-1.csv").exists()
    logged, expected = pd.read_csv(folder / f"{way}-0.csv"), pd.DataFrame(histories[way][0].table())
    pd.testing.assert_frame_equal(logged, expected, check_dtype=False, rtol=1e-14)


def test_each_process_for_itself(histories):
    first, second = histories["none"]
    activation, parameter = first.names.index("1"), first.names.index("0.weight")
    assert first.count[0, activation] == second.count[0, activation] == 80
    assert not np.array_equal(first.values[:, activation], second.values[:, activation])
    assert np.array_equal(first.values[:, parameter], second.values[:, parameter])


@pytest.mark.works_with("DTensor", "monitor")
def test_sharded_parameters_count_once(histories):
    first, second = histories["sharded"]
    assert first.values.tobytes() == second.values.tobytes()
    parts = {"0.weight": whole((3, 5), 1), "0.bias": whole((3,), 3), "1.weight": whole((7, 3), 2)}
    flat = {name: g.double().numpy().ravel() for name, g in parts.items()}
    flat["all parameters"] = np.concatenate(list(flat.values()))
    for step in range(2):
        for name, g in flat.items():
            assert_row(first, step, name, g)


@pytest.mark.parametrize("plan", [*PLANS, BOTH, pytest.param(COMPILED, marks=SHOWN[COMPILED])])
@pytest.mark.works_with("tensor parallel", "activation", "learned alpha", "monitor")
def test_tensor_parallel(plan, folder):
    """The history, alpha's gradient and the step are those of one process."""
    (first, gradients, after), (second, others, _) = (
        torch.load(folder / f"{plan}-{rank}.pt") for rank in range(PROCESSES)
    )
    assert first.values.tobytes() == second.values.tobytes()
    twin = Twin(scaled_network())
    twin.model(inputs(plan)).square().sum().backward()
    expected = {name: parameter.grad for name, parameter in twin.model.named_parameters()}
    torch.testing.assert_close(gradients, expected)
    assert all(torch.equal(gradients[name], other) for name, other in others.items())
    torch.testing.assert_close(
        after, {name: (p - 0.1 * p.grad).detach() for name, p in twin.model.named_parameters()}
    )
    for name, g in twin.step().items():
        assert_row(first, 0, name, g)


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.works_with("DTensor", "activation", "learned alpha", "grad_sketch")
def test_dtensor(name, folder):
    """Value, gradients and counts of an activation: copies count once, and summands as their sum."""
    x, alpha = whole((6, 4), 5).requires_grad_(), torch.tensor(1.5, requires_grad=True)
    h = x.tanh()
    h.retain_grad()
    y = ss.tanh(h, alpha)
    y.square().sum().backward()
    counted = {"monitored": x.grad, "in backward": h.grad, "updated": x}
    expected = {"value": y.detach(), "gradient": x.grad, "gradient of alpha": alpha.grad}
    for rank in range(PROCESSES):
        found = torch.load(folder / f"{name}-{rank}.pt")
        torch.testing.assert_close({key: found[key] for key in expected}, expected)
        for key, values in counted.items():
            assert torch.equal(found[key], ss.QuantileSketch().update(values).counts), key


@pytest.mark.works_with("FSDP1", "monitor", says="refused")
def test_refusals(folder):
    assert all(torch.load(folder / f"refused-{rank}.pt") for rank in range(PROCESSES))
