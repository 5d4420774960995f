"""Models under torch.compile are measured, also those compiled before the monitor came."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sigscale as ss
from tests.oracles.collected import Twin, assert_step

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin"),
]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), ss.nn.Tanh(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(8, 3))


def batch(step: int) -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("way", ["compiled is monitored", "model is monitored", "compiled in place"])
def test_compiled_model(way, used_before):
    torch.compiler.reset()
    model = network()
    twin = Twin(model)
    compiled = model
    if way == "compiled in place":
        model.compile(backend="aot_eager")
    else:
        compiled = torch.compile(model, backend="aot_eager")
    if used_before:
        compiled(batch(9)).sum().backward()
        model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    monitored = compiled if way == "compiled is monitored" else model
    truth = []
    with ss.GradientMonitor(monitored, every=2, scaler=scaler) as monitor:
        for step in range(4):
            twin.model.zero_grad()
            twin.model(batch(step)).square().sum().backward()
            truth.append(twin.step())
            optimizer.zero_grad()
            scaler.scale(compiled(batch(step)).square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            monitor.step()
    history = monitor.history()
    assert history.steps.tolist() == [0, 2]
    assert history.names[2:6] == ["1", "3", "5", "0.weight"]
    for place, step in enumerate((0, 2)):
        assert_step(history, place, truth[step])


def compiles_what_overwrites_its_input() -> bool:
    """Whether torch.compile does, behind a graph break: PyTorch 2.14 may keep the input overwritten."""

    def overwriting(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return nn.functional.silu(x, inplace=True)

    x = torch.ones(3, requires_grad=True)
    try:
        torch.compile(lambda x: overwriting(2 * x), backend="aot_eager")(x).sum().backward()
    except RuntimeError as error:
        return "modified by an inplace operation" not in str(error)
    return True


@pytest.mark.parametrize("layer", [nn.GELU(), nn.ReLU(inplace=True), nn.SiLU(inplace=True)], ids=str)
def test_monitored_after_compiling(layer):
    """What was compiled before counts, and no longer when the monitor is closed."""
    torch.compiler.reset()
    if isinstance(layer, nn.SiLU) and not compiles_what_overwrites_its_input():
        pytest.skip("this PyTorch does not, without a monitor either")
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 3))
    twin = Twin(model)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(batch(0)).sum().backward()
    model.zero_grad()
    with ss.GradientMonitor(model) as monitor:
        for network_ in (compiled, twin.model):
            network_(batch(1)).square().sum().backward()
        monitor.step()
    assert_step(monitor.history(), 0, twin.step())
    counts = monitor._recorder.counts
    before = counts.clone()
    compiled(batch(0)).sum().backward()
    assert torch.equal(counts, before)


def test_other_compiled_code_stays():
    """A monitor does not make torch.compile forget what has nothing to do with it."""
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    unrelated = torch.compile(lambda x: x.sin() + 1, backend=counter)
    unrelated(torch.ones(3))
    with ss.GradientMonitor(nn.Sequential(nn.Linear(3, 3), nn.ReLU())):
        unrelated(torch.ones(3))
    unrelated(torch.ones(3))
    assert counter.frame_count == 1


def test_names_without_wrappers():
    """Of compiled parts and checkpointed ones; a module that is called `module` keeps its name."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    part = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    model = nn.Sequential(
        torch.compile(part),
        checkpoint_wrapper(nn.Sequential(nn.Tanh(), torch.compile(nn.Linear(6, 6, bias=False)))),
        nn.ModuleDict({"module": nn.ReLU(), "_orig": nn.PReLU()}),
    )
    with ss.GradientMonitor(torch.compile(model)) as monitor:
        names = monitor.history().names
    assert names == [
        *("all activations", "all parameters", "0.1", "1.0", "2.module", "2._orig"),
        *("0.0.weight", "0.0.bias", "1.1.weight", "2._orig.weight"),
    ]
