"""WeightPenalty attached to optimizers: against the same penalty in the loss, and against weight_decay.

What may befall a training (errors, closures, schedules, groups, frozen and replaced parameters) is in
`test_random_optimizers.py`.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn, optim

import sigscale as ss

STEPS = 4
L2, BOTH = (0.3, 0.0), (0.3, 0.02)


def model(device="cpu", dtype=torch.float64):
    """In float64, in which Adam does not blow the rounding of a gradient near 0 up to a step."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2), nn.LayerNorm(2))
    return layers.to(device, dtype)


def loss_of(net, step=0):
    weight = net[0].weight
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(step)).to(weight)
    return net(x).square().sum()


def train(net, optimizer, penalty=None):
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(net, step)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def train_by_closures(net, optimizer, penalty=None):
    """The losses that step() returns, and the parameters."""
    losses = []
    for step in range(3):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(net, step) if penalty is None else loss_of(net, step) + penalty()
            loss.backward()
            return loss

        losses.append((optimizer.step(closure=closure) if step else optimizer.step(closure)).detach())
    return [*losses, *(p.detach().clone() for p in net.parameters())]


def train_scaled(net, optimizer, penalty=None, unscaled=False):
    scaler = torch.amp.GradScaler(net[0].weight.device.type, init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(net, step)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in net.parameters()]


def train_compiled(net, optimizer, penalty=None):
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for i in range(STEPS):
        optimizer.zero_grad()
        loss_of(net, i).backward()
        step()
    return [p.detach().clone() for p in net.parameters()]


def assert_same(results, expected, **tolerances):
    for result, true in zip(results, expected, strict=True):
        torch.testing.assert_close(result, true, **tolerances)


def assert_as_in_loss(make, l2, l1, training=train, reference=train, of=None, device="cpu", tolerance=1e-9):
    """Attached to an optimizer in one training, and in the loss (objective, if maximized) of another."""
    attached, written = model(device), model(device)
    optimizer, other = make(attached.parameters()), (of or make)(written.parameters())
    attachment = ss.WeightPenalty(attached, l2, l1).attach(optimizer)
    penalty = ss.WeightPenalty(written, l2, l1)
    sign = -1 if other.param_groups[0].get("maximize") else 1
    result, expected = training(attached, optimizer), reference(written, other, lambda: sign * penalty())
    assert_same(result, expected, rtol=tolerance, atol=tolerance)
    return result, attachment, optimizer


COUPLED = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9),
    "SGD, no foreach": partial(optim.SGD, lr=0.1, foreach=False),
    "SGD, fused": partial(optim.SGD, lr=0.1, fused=True),
    "SGD, maximize": partial(optim.SGD, lr=0.001, maximize=True),
    "Adam": partial(optim.Adam, lr=0.01),
    "Adam, foreach": partial(optim.Adam, lr=0.01, foreach=True),
    "Adam, fused": partial(optim.Adam, lr=0.01, fused=True),
    "Adam, amsgrad, maximize": partial(optim.Adam, lr=0.01, amsgrad=True, maximize=True),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "Adagrad": partial(optim.Adagrad, lr=0.1),
    "Adadelta": optim.Adadelta,
    "RMSprop": partial(optim.RMSprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.1),
}
OTHERS = {
    "Adam, decoupled": partial(optim.Adam, lr=0.01, decoupled_weight_decay=True),
    "AdamW": partial(optim.AdamW, lr=0.01),
    "Adafactor": optim.Adafactor,
    "Rprop": optim.Rprop,
    "NAdam, decoupled": partial(optim.NAdam, lr=0.01, decoupled_weight_decay=True),
    "subclass": partial(type("Mine", (optim.SGD,), {}), lr=0.1),
}


@pytest.mark.parametrize("name", COUPLED)
def test_weight_decay(name, device):
    """As stock weight_decay=r, and in the loss: pulled to zero, from either side of a maximum too."""
    result, attachment, optimizer = assert_as_in_loss(COUPLED[name], *L2, device=device)
    assert attachment.ways == ("weight_decay",)
    stock = model(device)
    assert_same(result, train(stock, COUPLED[name](stock.parameters(), weight_decay=0.3)), rtol=0, atol=0)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "l2", "l1"),
    [
        *((name, *BOTH) for name in (*COUPLED, *OTHERS)),
        *((name, *L2) for name in OTHERS),
        *((name, 0.0, 0.02) for name in ("SGD", "Adam, amsgrad, maximize", "AdamW")),
    ],
)
def test_added_gradient(name, l2, l1, device):
    _, attachment, _ = assert_as_in_loss((COUPLED | OTHERS)[name], l2, l1, device=device)
    assert attachment.ways == ("gradient",)


def test_adamw_decay_differs():
    ours, theirs = model(), model()
    optimizer = optim.AdamW(ours.parameters(), lr=0.01, weight_decay=0.0)
    ss.WeightPenalty(ours, l2=0.3).attach(optimizer)
    ours = train(ours, optimizer)
    theirs = train(theirs, optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.3))
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


def test_groups():
    """One wholly penalized, one partly, one not at all, one added later, one frozen."""
    net, late = model(), nn.Parameter(torch.ones(3))
    groups = [{"params": [net[0].weight]}, {"params": [net[2].weight, net[2].bias], "weight_decay": 0.1}]
    optimizer = optim.SGD([*groups, {"params": [net[3].weight]}], lr=0.1, momentum=0.9)
    attachment = ss.WeightPenalty([net[0].weight, net[2].weight, late], 0.3).attach(optimizer)
    assert attachment.ways == ("weight_decay", "gradient", "none")
    optimizer.add_param_group({"params": [late], "weight_decay": 0.2})
    assert attachment.ways == ("weight_decay", "gradient", "none", "weight_decay")
    ways = ss.WeightPenalty(net[3], 0.1).attach(optimizer).ways
    assert ways == ("none", "none", "weight_decay", "none")
    (loss_of(net) + late.square().sum()).backward()
    optimizer.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0.1, 0, 0.2]


def test_parameters_without_gradient():
    for l1 in (0.0, 0.1):
        net = model()
        before = net[0].weight.detach().clone()
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        ss.WeightPenalty(net, 0.3, l1).attach(optimizer)
        net[2](torch.ones(1, 5).to(before)).sum().backward()
        optimizer.step()
        assert torch.equal(net[0].weight, before)


def test_frozen_parameters():
    """Frozen with a gradient of before, they are stepped but not penalized; unfrozen, they are again."""
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    attachment = ss.WeightPenalty(net, 0.25).attach(optimizer)
    loss_of(net).backward()
    net[0].requires_grad_(False)
    before, gradients = zip(*((p.detach().clone(), p.grad.clone()) for p in net.parameters()), strict=True)
    assert attachment.ways == ("gradient",)
    optimizer.step()
    for i, parameter in enumerate(net.parameters()):
        pull = 0.25 * before[i] if i > 1 else 0.0
        torch.testing.assert_close(parameter.detach(), before[i] - gradients[i] - pull)
    net.requires_grad_(True)
    assert attachment.ways == ("weight_decay",)


@pytest.mark.parametrize(
    ("kind", "fused", "unscaled", "factors"),
    [
        (optim.SGD, True, False, BOTH),
        (optim.Adam, True, False, L2),
        (optim.Adam, False, True, BOTH),
        (optim.AdamW, True, True, L2),
        (optim.AdamW, False, False, L2),
    ],
)
def test_gradient_scaler(kind, fused, unscaled, factors, device):
    """Fused optimizers take the scale out themselves, after the penalty's gradient is added."""
    make, training = partial(kind, lr=0.01, fused=fused), partial(train_scaled, unscaled=unscaled)
    assert_as_in_loss(make, *factors, training, of=partial(kind, lr=0.01), device=device)


@pytest.mark.parametrize(("kind", "factors"), [(optim.LBFGS, BOTH), (optim.LBFGS, L2), (optim.SGD, L2)])
def test_closures(kind, factors):
    """Each evaluation has the penalty's value and gradient, whatever line search does with it."""
    options = {"line_search_fn": "strong_wolfe", "max_iter": 5} if kind is optim.LBFGS else {"lr": 0.01}
    assert_as_in_loss(partial(kind, **options), *factors, train_by_closures, train_by_closures)


def test_closures_without_a_tensor():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    penalty = ss.WeightPenalty(net, 0.3)
    penalty.attach(optimizer)
    loss_of(net).backward()
    assert optimizer.step(lambda: None) is None
    torch.testing.assert_close(optimizer.step(lambda: 2.0), 2.0 + penalty.value())
    penalty.detach(optimizer)
    climber = optim.SGD(net.parameters(), lr=0.0, maximize=True)
    penalty.attach(climber)
    torch.testing.assert_close(climber.step(lambda: 2.0), 2.0 - penalty.value())


def test_clipping():
    """Clipped before step(), the loss's gradient is clipped alone, as with weight_decay."""
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=1.0)
    ss.WeightPenalty(net, 0.3).attach(optimizer)
    before = net[0].weight.detach().clone()
    loss_of(net).backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1e-3)
    clipped = net[0].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), before - clipped - 0.3 * before)


@pytest.mark.parametrize(("kind", "factors"), [(optim.SGD, L2), (optim.AdamW, L2), (optim.AdamW, BOTH)])
def test_compiled_step(kind, factors):
    # Compiled, Adam's bias correction is in fp32.
    assert_as_in_loss(partial(kind, lr=0.01), *factors, train_compiled, tolerance=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_capture_in_a_graph(l1):
    captured, plain = model("cuda"), model("cuda")
    optimizers = [optim.AdamW(net.parameters(), lr=0.01, capturable=True) for net in (captured, plain)]
    for net, optimizer in zip((captured, plain), optimizers, strict=True):
        ss.WeightPenalty(net, 0.3, l1).attach(optimizer)
    x = torch.randn(7, 4, device="cuda", dtype=torch.float64)

    def step(net, optimizer):
        optimizer.zero_grad(set_to_none=False)
        net(x).square().sum().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(captured, optimizers[0])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, optimizers[0])
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        step(plain, optimizers[1])
    assert_same(captured.parameters(), plain.parameters())
