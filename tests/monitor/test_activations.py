"""Activations of every kind are measured, whatever the model does with its modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from sigscale.monitor._hooks import count_overwritten
from tests.oracles.collected import Twin, assert_row, assert_step, batch, network, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.CELU(), nn.ELU(), nn.GELU(), nn.Hardshrink(), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh()),
        *(nn.LeakyReLU(), nn.LogSigmoid(), nn.Mish(), nn.PReLU(), nn.ReLU(), nn.ReLU6(), nn.SELU()),
        *(nn.Sigmoid(), nn.SiLU(), nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh()),
        *(nn.Tanhshrink(), nn.Threshold(0.1, 0.2), nn.RReLU().eval()),
        *(ss.nn.Tanh(), ss.nn.Sigmoid(1.5), ss.nn.Arctan(), ss.nn.Softsign(save="input")),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_every_activation(layer):
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 2))
    x, twin = batch(0), Twin(model, (type(layer),))
    for inplace in (False, True) if hasattr(layer, "inplace") else (False,):
        layer.inplace = inplace
        model.zero_grad()
        twin.model.zero_grad()
        twin.model(x).square().sum().backward()
        plain = [parameter.grad.clone() for parameter in twin.model.parameters()]
        with ss.GradientMonitor(model) as monitor:
            model(x).square().sum().backward()
            monitor.step()
        assert_step(monitor.history(), 0, twin.step())
        for parameter, want in zip(model.parameters(), plain, strict=True):
            torch.testing.assert_close(parameter.grad, want)


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1), nn.GLU(), nn.Dropout(), nn.LayerNorm(8)),
        *(nn.Identity(), nn.BatchNorm1d(8)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_unmonitored_modules(layer):
    with ss.GradientMonitor(nn.Sequential(nn.Linear(6, 8), layer)) as monitor:
        assert "1" not in monitor.history().names


def test_activation_called_by_keyword():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act = nn.Linear(6, 4), nn.Tanh()

        def forward(self, x):
            return self.act(input=self.first(x))

    model = Model()
    with ss.GradientMonitor(model) as monitor:
        model(batch(0)).sum().backward()
        monitor.step()
    want = 1 - torch.tanh(model.first(batch(0))) ** 2
    assert_row(monitor.history(), 0, "act", want.detach().double().numpy().ravel())


@pytest.mark.parametrize(
    "layer",
    [
        *(ss.nn.Tanh(save="input"), ss.nn.Tanh(save="output"), ss.nn.Softsign(1.5, save="input")),
        *(ss.nn.Tanh(learnable=True), ss.nn.Sigmoid(learnable=True, num_parameters=8), nn.Tanh(), nn.SiLU()),
    ],
    ids=str,
)
@pytest.mark.works_with("double backward", "monitor")
def test_gradient_penalty(layer):
    """A backward pass that is differentiated: what a hook on the module's input sees, in both passes."""
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 8), layer, nn.Linear(8, 1)).double()
    twin = Twin(model)
    with ss.GradientMonitor(model) as monitor:
        for step, with_loss in enumerate((False, True)):
            for critic in (model, twin.model):
                critic.zero_grad()
                x = batch(0).double().requires_grad_()
                score = critic(x)
                (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
                loss = (slope.norm(dim=1) - 1).square().mean()
                (loss + score.mean() if with_loss else loss).backward()
            monitor.step()
            assert_step(monitor.history(), step, twin.step())


def test_third_derivatives():
    layer, sketch = ss.nn.Tanh(save="input"), ss.QuantileSketch()
    layer.grad_sketch = sketch
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    found, want, y = [], [], layer(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(y)
    y = ss.tanh(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        want.append(y)
    for mine, plain in zip(found, want, strict=True):
        torch.testing.assert_close(mine, plain)
    assert torch.equal(sketch.counts, sum(ss.QuantileSketch().update(y).counts for y in found))


@pytest.mark.parametrize("layer", [nn.Tanh(), ss.nn.Tanh(), ss.nn.Tanh(learnable=True)], ids=str)
@pytest.mark.works_with("vmap, is_grads_batched", "monitor", says="in evaluation")
@pytest.mark.works_with("forward AD", "monitor", says="in evaluation")
def test_evaluation_under_transforms(layer):
    """Under vmap and jvp, with and without no_grad; what vmap batched is counted by a pass around it."""
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 1))
    x = batch(0)
    want = model(x).detach()
    with ss.GradientMonitor(model) as monitor:
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                y, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
                torch.testing.assert_close(y, want)
                assert tangent.abs().sum() > 0
                y = torch.func.vmap(model)(x)
                torch.testing.assert_close(y, want)
        y.sum().backward()
        monitor.step()
    assert monitor.history().count[0, 0] == 160


VIEWS = {
    "view": lambda x: x.view(20, 4, 4),
    "columns": lambda x: x.view(20, 4, 4)[:, 1:3],
    "transposed": lambda x: x.t()[2:9].t(),
    "row": lambda x: x.reshape(40, 8)[3],
    "none": lambda x: x,
}


@pytest.mark.parametrize(
    ("layer", "view"),
    [
        *((nn.ReLU, view) for view in VIEWS),
        *((layer, "columns") for layer in (nn.ELU, nn.SiLU)),
        *((nn.Hardtanh, "none"), (nn.Mish, "transposed")),
    ],
)
def test_inplace_activation_of_a_view(layer, view):
    """The rest of the memory, and later uses of the overwritten tensor, are left out."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act = nn.Linear(6, 16), layer(inplace=True)

        def forward(self, x):
            x = self.first(x)
            part = VIEWS[view](x)
            y = self.act(part)
            return y.square().sum() + x.sin().sum() + part.cos().sum()

    model = Model()
    with ss.GradientMonitor(model) as monitor:
        model(batch(0)).backward()
        monitor.step()
    before = model.first(batch(0)).detach()
    leaf = VIEWS[view](before).clone().requires_grad_()
    y = layer()(leaf)
    after = before.clone()
    VIEWS[view](after).copy_(y.detach())
    (y.square().sum() + y.sin().sum() + y.cos().sum()).backward()
    assert_row(monitor.history(), 0, "act", leaf.grad.double().numpy().ravel())


def test_view_with_another_gradient_layout():
    memory = torch.randn(20, 16, requires_grad=True) * 1
    weights = torch.arange(320.0).view(16, 20)
    sketch = ss.QuantileSketch()
    count_overwritten(memory[:, 3:7], sketch)
    (memory.t() * weights).sum().backward()  # the gradient of memory is weights.t(), not contiguous
    assert torch.equal(sketch.counts, ss.QuantileSketch().update(weights.t()[:, 3:7]).counts)


def test_input_overwritten_later():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
    with ss.GradientMonitor(model, parameters=False) as monitor:
        x = model[0](batch(0))
        y = model[1](x)
        x += y
        x.sum().backward()
        monitor.step()
    want = 1 - torch.tanh(model[0](batch(0))).detach().double().numpy().ravel() ** 2
    assert_row(monitor.history(), 0, "1", want)


def test_module_used_twice():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scaled, self.plain = nn.Linear(6, 6), ss.nn.Tanh(), nn.Tanh()
            self.again = self.scaled

        def forward(self, x):
            for _ in range(3):
                x = self.plain(self.again(self.scaled(self.first(x))))
            return x

    history, truth = run(Model(), steps=2)
    assert history.names[2:] == ["scaled", "plain", "first.weight", "first.bias"]
    assert history.count[:, 2:].tolist() == [[6 * 120, 3 * 120, 36, 6]] * 2
    for step in range(2):
        assert_step(history, step, truth[step])


def test_bare_activation():
    model = ss.nn.Tanh()
    x = torch.ones(3, requires_grad=True)
    with ss.GradientMonitor(model) as monitor:
        model(x).sum().backward()
        monitor.step()
    assert monitor.history().names == ["all activations", "Tanh"]
    assert_row(monitor.history(), 0, "Tanh", x.grad.double().numpy())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_counts_once(reentrant):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.body = nn.Linear(6, 6), network()

        def forward(self, x):
            return checkpoint(self.body, self.first(x), use_reentrant=reentrant)

    history, truth = run(Model(), steps=2)
    assert set(history.count[:, 2:5].ravel()) == {20 * 16}
    for step in range(2):
        assert_step(history, step, truth[step])


def test_accumulated_gradients():
    """Activations: the coordinates of all micro-batches; parameters: those of the sum."""

    def backward(model, step):
        for part in batch(step).split(5):
            model(part).square().sum().backward()

    history, truth = run(network(), steps=2, backward=backward)
    assert history.count[0, 2:5].tolist() == [320] * 3
    for step in range(2):
        assert_step(history, step, truth[step])
        assert history.count[step, 5] == 16 * 6
