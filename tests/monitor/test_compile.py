"""Models under torch.compile are measured, also those compiled before the monitor came."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from tests.oracles.collected import Twin, assert_step

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()


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
    counters.clear()
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
    assert not counters["graph_break"]


@pytest.mark.parametrize("layer", [nn.GELU(), nn.ReLU(inplace=True), nn.SiLU(inplace=True)], ids=str)
def test_monitored_after_compiling(layer):
    """What was compiled before counts, and no longer when the monitor is closed."""
    torch.compiler.reset()
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
    counts = monitor._recorder.records.counts
    before = counts.clone()
    compiled(batch(0)).sum().backward()
    assert torch.equal(counts, before)


def assert_measured(train, model, monitor, steps, measured):
    """Steps of changing batch size through `train` record the truth of those measured, and no others."""
    twin, truth = Twin(model), []
    for step in range(steps):
        x = torch.randn(3 + step % 5, 6, generator=torch.Generator().manual_seed(step))
        for network_ in (model, twin.model):
            network_.zero_grad()
        train(x, step)
        twin.model(x).square().sum().backward()
        truth.append(twin.step())
    history = monitor.history()
    assert history.steps.tolist() == [*measured]
    assert history.step_count == steps
    for place, step in enumerate(measured):
        assert_step(history, place, truth[step])


@pytest.mark.filterwarnings("ignore")
def test_step_in_a_compiled_function():
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

    @torch.compile(backend="eager")
    def train(x, step):
        model(x).square().sum().backward()
        monitor.step()

    with ss.GradientMonitor(model) as monitor:
        assert_measured(train, model, monitor, 4, range(4))


@pytest.mark.parametrize(("backend", "steps"), [("eager", 100), ("aot_eager", 30), ("inductor", 30)])
def test_compiled_step(backend, steps, fresh_compiler):
    """One graph, whatever the cadence and pauses; the host has every record in time."""
    model = network()
    options = {"fullgraph": True, "backend": backend}
    forward = torch.compile(model, **options)

    def train(x, step):
        if step in (11, 20):
            (monitor.pause if step == 11 else monitor.resume)()
        forward(x).square().sum().backward()
        finish()

    with ss.GradientMonitor(model, every=3, ring=4) as monitor:
        finish = torch.compile(monitor.step, **options)
        assert_measured(train, model, monitor, steps, [n for n in range(0, steps, 3) if not 11 <= n < 20])
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 3  # two forward, for one batch size and for any


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_whole_step_in_one_graph(backend, fresh_compiler):
    model = mixed()
    with torch._dynamo.config.patch(trace_autograd_ops=True), ss.GradientMonitor(model, every=3) as monitor:

        @torch.compile(fullgraph=True, backend=backend)
        def train(x, step):
            model(x).square().sum().backward()
            monitor.step()

        assert_measured(lambda x, step: train(x, 0), model, monitor, 8, (0, 3, 6))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.filterwarnings("ignore")
def test_compiled_step_that_the_host_must_see(fresh_compiler):
    """A scaler, whose calls the host follows, and new parameters break the graph, or are refused."""
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(batch(0)).sum()).backward()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"with a scaler, call monitor.step"):
            torch.compile(monitor.step, fullgraph=True, backend="eager")()
        torch.compile(monitor.step, backend="eager")()
        assert monitor.history()["mean"][0].max() < 100
    with ss.GradientMonitor(model) as monitor:
        model.append(nn.Linear(3, 2))
        model(batch(0)).sum().backward()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"a new parameter '7.weight': call"):
            torch.compile(monitor.step, fullgraph=True, backend="eager")()
        torch.compile(monitor.step, backend="eager")()
        assert monitor.history().count[0, -2:].tolist() == [6, 2]


def mixed() -> nn.Sequential:
    """Modules of sigscale and of PyTorch, with a fixed and a learned alpha, in and out of place."""
    torch.manual_seed(0)
    layers = [ss.nn.Tanh(), nn.GELU(), nn.ReLU(inplace=True), ss.nn.Arctan(learnable=True)]
    layers += [ss.nn.Sigmoid(save="input"), nn.SiLU(inplace=True)]
    return nn.Sequential(*(part for layer in layers for part in (nn.Linear(6, 6), layer)))


def assert_equal_to_eager(
    compiled: nn.Module, eager: nn.Module, steps: int, every: int = 1, call=None
) -> None:
    """Counts and gradients of training steps of changing batch size."""
    dtype = next(compiled.parameters()).dtype
    call = call or torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with ss.GradientMonitor(compiled) as ours, ss.GradientMonitor(eager) as theirs:
        for step in range(steps):
            x = torch.randn(3 + step, 6, generator=torch.Generator().manual_seed(step)).to(dtype)
            for model, forward, monitor in ((compiled, call, ours), (eager, eager, theirs)):
                model.zero_grad()
                forward(x).square().sum().backward()
                monitor.step()
            for p, q in zip(compiled.parameters(), eager.parameters(), strict=True):
                torch.testing.assert_close(p.grad, q.grad)
    assert (ours.history().count == theirs.history().count).all()
    assert (ours.history().count > 0).all()
    torch.testing.assert_close(ours.history().values, theirs.history().values, equal_nan=True)
    assert not counters["graph_break"]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.works_with("torch.compile", "monitor")
def test_one_graph(backend):
    model = network()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    twin = Twin(model)
    with ss.GradientMonitor(model) as monitor:
        for m in (compiled, twin.model):
            m(batch(0)).square().sum().backward()
        monitor.step()
    assert_step(monitor.history(), 0, twin.step())
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("fresh_compiler")
def test_batch_sizes():
    """In float64, whose rounding moves no gradient to another bin: compiled code has other operations."""
    assert_equal_to_eager(mixed().double(), mixed().double(), steps=20)
    assert counters["stats"]["unique_graphs"] <= 2


@pytest.mark.usefixtures("fresh_compiler")
def test_cadence():
    """One graph, in which the device decides whether to count."""
    model, twin = network(), network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with ss.GradientMonitor(model, every=3) as ours, ss.GradientMonitor(twin, every=3) as theirs:
        for step in range(10):
            for call, monitor in ((compiled, ours), (twin, theirs)):
                call(batch(step)).square().sum().backward()
                monitor.step()
    assert (ours.history().count == theirs.history().count).all()
    assert len(ours.history()) == 4
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.works_with("activation checkpointing", "monitor")
def test_checkpointing():
    model = mixed()
    call = torch.compile(
        lambda x: checkpoint(model, x, use_reentrant=False), fullgraph=True, backend="aot_eager"
    )
    assert_equal_to_eager(model, mixed(), steps=3, call=call)


@pytest.mark.usefixtures("fresh_compiler")
def test_blocks_compiled_alike():
    """Blocks that torch.compile serves with one graph count into rows of their own."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), ss.nn.Tanh(), nn.ReLU()) for _ in range(3)))
    twin = copy.deepcopy(model)
    for block in model:
        block.compile(fullgraph=True, backend="aot_eager")
    assert_equal_to_eager(model, twin, steps=1, call=model)
    assert counters["stats"]["unique_graphs"] == 2  # of the first block, whose input needs no gradient


@pytest.mark.usefixtures("fresh_compiler")
def test_overwritten_input():
    """An activation in place changes its input in compiled code, too, and its gradient is counted once."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(6, 6), nn.ReLU(inplace=True)

        def forward(self, x):
            h = self.linear(x)
            y = self.act(h)
            return y + 2 * h  # h is y by now

    model = Residual()
    assert_equal_to_eager(model, copy.deepcopy(model), steps=2)
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    with ss.GradientMonitor(model):
        torch.testing.assert_close(call(batch(0)), 3 * model.linear(batch(0)).relu())


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.works_with("compiled autograd", "monitor")
def test_compiled_autograd():
    model, twin = mixed(), mixed()
    with ss.GradientMonitor(model) as ours, ss.GradientMonitor(twin) as theirs:
        loss = model(batch(0)).square().sum()
        with torch._dynamo.compiled_autograd._enable(torch.compile(fullgraph=True, backend="aot_eager")):
            loss.backward()
        twin(batch(0)).square().sum().backward()
        ours.step()
        theirs.step()
    torch.testing.assert_close(ours.history().values, theirs.history().values, equal_nan=True)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.works_with("torch.export", "monitor", says="exported without it")
def test_export(strict):
    """The exported program is that of the model without a monitor."""
    model = network()
    plain = torch.export.export(model, (batch(0),), strict=strict)
    with ss.GradientMonitor(model) as monitor:
        exported = torch.export.export(model, (batch(0),), strict=strict)
        exported.module()(batch(1)).sum().backward()
        monitor.step()
    targets = [[node.target for node in program.graph.nodes] for program in (exported, plain)]
    assert targets[0] == targets[1]
    assert torch.equal(exported.module()(batch(1)), model(batch(1)))
    assert (monitor.history().count[0, 2:5] == 0).all()


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
