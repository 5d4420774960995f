"""Activations of every kind are measured, whatever the model does with its modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from sigscale.monitor._hooks import count_overwritten
from tests.oracles.collected import Twin, assert_row, assert_step, batch, network, recorded, run
from tests.oracles.models import Forward


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
    """Its gradient is counted, and no gradient changes."""
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 2))
    twin = Twin(model, (type(layer),))
    for inplace in (False, True) if hasattr(layer, "inplace") else (False,):
        layer.inplace = inplace
        model.zero_grad()
        twin.model.zero_grad()
        twin.model(batch(0)).square().sum().backward()
        plain = [parameter.grad.clone() for parameter in twin.model.parameters()]
        assert_step(recorded(model), 0, twin.step())
        for parameter, want in zip(model.parameters(), plain, strict=True):
            torch.testing.assert_close(parameter.grad, want)


def test_unmonitored_modules():
    layers = [nn.Softmax(1), nn.LogSoftmax(1), nn.Softmin(1), nn.GLU(), nn.Dropout(), nn.LayerNorm(8)]
    with ss.GradientMonitor(nn.Sequential(*layers, nn.Identity(), nn.BatchNorm1d(8), nn.Tanh())) as monitor:
        assert [name for name in monitor.history().names if "." not in name][2:] == ["8"]


def of_overwritten(m, x):
    h = m.first(x)
    y = m.plain(h)
    h += y
    return h


def repeated(m, x):
    for _ in range(3):
        x = m.plain(m.again(m.scaled(m.first(x))))
    return x


FORWARDS = {
    "called by keyword": lambda m, x: m.scaled(m.plain(input=m.first(x))),
    "input overwritten later": of_overwritten,
    "used repeatedly and by two names": repeated,
    "checkpoint": lambda m, x: checkpoint(m.body, m.first(x), use_reentrant=False),
    "reentrant checkpoint": lambda m, x: checkpoint(m.body, m.first(x), use_reentrant=True),
}


@pytest.mark.parametrize("forward", FORWARDS.values(), ids=FORWARDS)
def test_uses_of_modules(forward):
    scaled = ss.nn.Tanh()
    parts = {"first": nn.Linear(6, 6), "plain": nn.Tanh(), "scaled": scaled, "again": scaled}
    history, truth = run(Forward(forward, **parts, body=network()), steps=2)
    assert history.names[2:7] == ["plain", "scaled", "body.1", "body.3", "body.5"]
    for step in range(2):
        assert_step(history, step, truth[step])


def test_bare_activation():
    model, x = ss.nn.Tanh(), torch.ones(3, requires_grad=True)
    history = recorded(model, lambda model: model(x).sum())
    assert history.names == ["all activations", "Tanh"]
    assert_row(history, 0, "Tanh", x.grad.double().numpy())


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

    def backward(critic, step):
        x = batch(0).double().requires_grad_()
        score = critic(x)
        (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        loss = (slope.norm(dim=1) - 1).square().mean()
        (loss + score.mean() if step else loss).backward()

    history, truth = run(model, 2, backward)
    for step in range(2):
        assert_step(history, step, truth[step])


def test_third_derivatives():
    sketch = ss.QuantileSketch()
    x = torch.linspace(-1, 1, 5, dtype=torch.float64, requires_grad=True)
    derivatives = []
    for counted in (sketch, None):
        y = ss.tanh(x, save="input", grad_sketch=counted)
        derivatives.append([y := torch.autograd.grad(y.sum(), x, create_graph=True)[0] for _ in range(3)])
    torch.testing.assert_close(*derivatives)
    assert torch.equal(sketch.counts, sum(ss.QuantileSketch().update(y).counts for y in derivatives[0]))


@pytest.mark.parametrize("layer", [nn.Tanh(), ss.nn.Tanh(), ss.nn.Tanh(learnable=True)], ids=str)
@pytest.mark.works_with("vmap, is_grads_batched", "monitor", says="in evaluation")
@pytest.mark.works_with("forward AD", "monitor", says="in evaluation")
def test_evaluation_under_transforms(layer):
    """Under vmap and jvp, with and without no_grad; what vmap batched is counted by a pass around it."""
    model = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(8, 1))
    x = batch(0)
    with torch.no_grad():
        want, slope = torch.func.jvp(model, (x,), (torch.ones_like(x),))
    with ss.GradientMonitor(model) as monitor:
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                y, tangent = torch.func.jvp(model, (x,), (torch.ones_like(x),))
                torch.testing.assert_close((y, tangent), (want, slope))
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

    def forward(m, x):
        x = m.first(x)
        part = VIEWS[view](x)
        return m.act(part).square().sum() + x.sin().sum() + part.cos().sum()

    model = Forward(forward, first=nn.Linear(6, 16), act=layer(inplace=True))
    history = recorded(model, lambda model: model(batch(0)))
    leaf = VIEWS[view](model.first(batch(0)).detach()).clone().requires_grad_()
    y = layer()(leaf)
    (y.square().sum() + y.sin().sum() + y.cos().sum()).backward()
    assert_row(history, 0, "act", leaf.grad.double().numpy().ravel())


def test_view_with_another_gradient_layout():
    memory = torch.randn(20, 16, requires_grad=True) * 1
    weights = torch.arange(320.0).view(16, 20)
    sketch = ss.QuantileSketch()
    count_overwritten(memory[:, 3:7], sketch)
    (memory.t() * weights).sum().backward()  # the gradient of memory is weights.t(), not contiguous
    assert torch.equal(sketch.counts, ss.QuantileSketch().update(weights.t()[:, 3:7]).counts)
