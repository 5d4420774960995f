"""WeightPenalty attached to optimizers: against the same penalty in the loss, and against weight_decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import sigscale as ss

STEPS = 4


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


def assert_same(results, expected, **tolerances):
    for result, true in zip(results, expected, strict=True):
        torch.testing.assert_close(result, true, **tolerances)


MAKERS = {
    "SGD": lambda p, **k: optim.SGD(p, lr=0.1, momentum=0.9, **k),
    "SGD, no foreach": lambda p, **k: optim.SGD(p, lr=0.1, foreach=False, **k),
    "SGD, fused": lambda p, **k: optim.SGD(p, lr=0.1, fused=True, **k),
    "SGD, maximize": lambda p, **k: optim.SGD(p, lr=0.001, maximize=True, **k),
    "Adam": lambda p, **k: optim.Adam(p, lr=0.01, **k),
    "Adam, foreach": lambda p, **k: optim.Adam(p, lr=0.01, foreach=True, **k),
    "Adam, fused": lambda p, **k: optim.Adam(p, lr=0.01, fused=True, **k),
    "Adam, amsgrad, maximize": lambda p, **k: optim.Adam(p, lr=0.01, amsgrad=True, maximize=True, **k),
    "NAdam": lambda p, **k: optim.NAdam(p, lr=0.01, **k),
    "RAdam": lambda p, **k: optim.RAdam(p, lr=0.01, **k),
    "Adamax": lambda p, **k: optim.Adamax(p, lr=0.01, **k),
    "Adagrad": lambda p, **k: optim.Adagrad(p, lr=0.1, **k),
    "Adadelta": lambda p, **k: optim.Adadelta(p, **k),
    "RMSprop": lambda p, **k: optim.RMSprop(p, lr=0.01, **k),
    "ASGD": lambda p, **k: optim.ASGD(p, lr=0.1, **k),
}
OTHERS = {
    "Adam, decoupled": lambda p: optim.Adam(p, lr=0.01, decoupled_weight_decay=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01),
    "Adafactor": lambda p: optim.Adafactor(p),
    "Rprop": lambda p: optim.Rprop(p),
    "NAdam, decoupled": lambda p: optim.NAdam(p, lr=0.01, decoupled_weight_decay=True),
    "subclass": lambda p: type("Mine", (optim.SGD,), {})(p, lr=0.1),
}


@pytest.mark.parametrize("name", MAKERS)
def test_weight_decay(name, device):
    """As stock weight_decay=r, and in the loss: pulled to zero, from either side of a maximum too."""
    attached, stock, written = model(device), model(device), model(device)
    optimizer = MAKERS[name](attached.parameters())
    attachment = ss.WeightPenalty(attached, l2=0.3).attach(optimizer)
    assert attachment.ways == ("weight_decay",)
    result = train(attached, optimizer)
    assert_same(result, train(stock, MAKERS[name](stock.parameters(), weight_decay=0.3)), rtol=0, atol=0)
    penalty = ss.WeightPenalty(written, l2=0.3)
    signed = (lambda: -penalty()) if "maximize" in name else penalty
    assert_same(result, train(written, MAKERS[name](written.parameters()), signed), rtol=1e-9, atol=1e-9)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", [*MAKERS, *OTHERS])
@pytest.mark.parametrize(("l2", "l1"), [(0.3, 0.0), (0.0, 0.02), (0.3, 0.02)])
def test_attached_equals_loss(name, l2, l1, device):
    attached, written = model(device), model(device)
    make = (MAKERS | OTHERS)[name]
    optimizer = make(attached.parameters())
    attachment = ss.WeightPenalty(attached, l2, l1).attach(optimizer)
    assert attachment.ways == ("weight_decay" if name in MAKERS and not l1 else "gradient",)
    penalty = ss.WeightPenalty(written, l2, l1)
    signed = (lambda: -penalty()) if "maximize" in name else penalty
    expected = train(written, make(written.parameters()), signed)
    assert_same(train(attached, optimizer), expected, rtol=1e-9, atol=1e-9)


def test_adamw():
    ours, theirs = model(), model()
    optimizer = optim.AdamW(ours.parameters(), lr=0.01, weight_decay=0.0)
    ss.WeightPenalty(ours, l2=0.3).attach(optimizer)
    ours = train(ours, optimizer)
    theirs = train(theirs, optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.3))
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


def test_parameter_groups():
    """One wholly penalized, one partly, one not at all, one added later; each as in the loss."""
    nets = model(), model()
    late = [nn.Parameter(torch.ones(3)) for _ in nets]
    optimizers = []
    for net in nets:
        groups = [{"params": [net[0].weight]}, {"params": [net[2].weight, net[2].bias], "weight_decay": 0.1}]
        optimizers.append(optim.SGD([*groups, {"params": [net[3].weight]}], lr=0.1, momentum=0.9))
    penalties = [
        ss.WeightPenalty([net[0].weight, net[2].weight, extra], 0.3)
        for net, extra in zip(nets, late, strict=True)
    ]
    attachment = penalties[0].attach(optimizers[0])
    assert attachment.ways == ("weight_decay", "gradient", "none")
    for optimizer, extra in zip(optimizers, late, strict=True):
        optimizer.add_param_group({"params": [extra], "weight_decay": 0.2})
    assert attachment.ways == ("weight_decay", "gradient", "none", "weight_decay")
    for step in range(STEPS):
        for net, optimizer, extra, penalty in zip(nets, optimizers, late, penalties, strict=True):
            optimizer.zero_grad()
            loss = loss_of(net, step) + extra.square().sum()
            (loss + penalty() if penalty is penalties[1] else loss).backward()
            optimizer.step()
    assert_same([*nets[0].parameters(), late[0]], [*nets[1].parameters(), late[1]])
    assert [group["weight_decay"] for group in optimizers[0].param_groups] == [0, 0.1, 0, 0.2]


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
    before, gradients = (
        [p.detach().clone() for p in net.parameters()],
        [p.grad.clone() for p in net.parameters()],
    )
    assert attachment.ways == ("gradient",)
    optimizer.step()
    for i, parameter in enumerate(net.parameters()):
        pull = 0.25 * before[i] if i > 1 else 0.0
        torch.testing.assert_close(parameter.detach(), before[i] - gradients[i] - pull)
    net.requires_grad_(True)
    assert attachment.ways == ("weight_decay",)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("l2", "l1"), [(0.3, 0.0), (0.3, 0.02)])
@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.Adam])
def test_gradient_scaler(kind, unscaled, l2, l1, fused, device):
    """Fused optimizers take the scale out themselves, after the penalty's gradient is added."""
    scaled, plain = model(device), model(device)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    optimizer = kind(scaled.parameters(), lr=0.01, fused=fused)
    ss.WeightPenalty(scaled, l2, l1).attach(optimizer)
    for step in range(STEPS):
        optimizer.zero_grad()
        scaler.scale(loss_of(scaled, step)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    expected = train(plain, kind(plain.parameters(), lr=0.01), ss.WeightPenalty(plain, l2, l1))
    assert_same(scaled.parameters(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_step(fused):
    net = model()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = optim.SGD(net.parameters(), lr=0.1, fused=fused)
    ss.WeightPenalty(net, 0.3, 0.1).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    (scaler.scale(loss_of(net)) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same(net.parameters(), before, rtol=0, atol=0)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("l1", [0.0, 0.02])
@pytest.mark.parametrize("by_keyword", [False, True])
@pytest.mark.parametrize("kind", [optim.LBFGS, optim.SGD, optim.Adam, optim.AdamW])
def test_closures(kind, by_keyword, l1):
    """Each evaluation has the penalty's value and gradient, whatever line search does with it."""
    options = {"line_search_fn": "strong_wolfe", "max_iter": 5} if kind is optim.LBFGS else {"lr": 0.01}
    losses, results = [], []
    for attached in (True, False):
        net = model()
        optimizer = kind(net.parameters(), **options)
        penalty = ss.WeightPenalty(net, 0.3, l1)
        if attached:
            penalty.attach(optimizer)

        def closure(net=net, optimizer=optimizer, penalty=penalty, attached=attached):
            optimizer.zero_grad()
            loss = loss_of(net) if attached else loss_of(net) + penalty()
            loss.backward()
            return loss

        for _ in range(2):
            loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
            losses.append(float(loss.detach()))
        results.append([p.detach() for p in net.parameters()])
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-4)
    assert_same(*results, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_compiled_step(kind, l1):
    results = []
    for compiled in (False, True):
        net = model()
        optimizer = kind(net.parameters(), lr=0.01)
        ss.WeightPenalty(net, 0.3, l1).attach(optimizer)
        step = torch.compile(lambda o=optimizer: o.step(), backend="eager") if compiled else optimizer.step
        for i in range(STEPS):
            optimizer.zero_grad()
            loss_of(net, i).backward()
            step()
        results.append([p.detach() for p in net.parameters()])
    assert_same(*results, rtol=1e-3, atol=1e-5)  # compiled, Adam's bias correction is in fp32


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
