"""WeightPenalty attached to optimizers: against the same penalty in the loss, and against weight_decay."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn, optim

import sigscale as ss

STEPS = 4


def model(device="cpu", dtype=torch.float32):
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
def test_weight_decay_is_the_same(name, device):
    """As stock weight_decay=r, and in the loss: pulled to zero, from either side of a maximum too."""
    attached, stock, written = model(device), model(device), model(device)
    optimizer = MAKERS[name](attached.parameters())
    attachment = ss.WeightPenalty(attached, l2=0.3).attach(optimizer)
    assert attachment.ways == ("weight_decay",)
    result = train(attached, optimizer)
    assert_same(result, train(stock, MAKERS[name](stock.parameters(), weight_decay=0.3)), rtol=0, atol=0)
    penalty = ss.WeightPenalty(written, l2=0.3)
    signed = (lambda: -penalty()) if "maximize" in name else penalty
    assert_same(result, train(written, MAKERS[name](written.parameters()), signed), rtol=1e-4, atol=1e-5)
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("name", [*MAKERS, *OTHERS])
@pytest.mark.parametrize(("l2", "l1"), [(0.3, 0.0), (0.0, 0.02), (0.3, 0.02)])
def test_attached_is_as_in_the_loss(name, l2, l1, device):
    attached, written = model(device), model(device)
    make = (MAKERS | OTHERS)[name]
    optimizer = make(attached.parameters())
    attachment = ss.WeightPenalty(attached, l2, l1).attach(optimizer)
    assert attachment.ways == ("weight_decay" if name in MAKERS and not l1 else "gradient",)
    penalty = ss.WeightPenalty(written, l2, l1)
    signed = (lambda: -penalty()) if "maximize" in name else penalty
    expected = train(written, make(written.parameters()), signed)
    assert_same(train(attached, optimizer), expected, rtol=1e-4, atol=1e-5)


def test_adamw_is_another_thing():
    ours, theirs = model(), model()
    optimizer = optim.AdamW(ours.parameters(), lr=0.01, weight_decay=0.0)
    ss.WeightPenalty(ours, l2=0.3).attach(optimizer)
    ours = train(ours, optimizer)
    theirs = train(theirs, optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.3))
    assert (ours[0] - theirs[0]).abs().max() > 1e-3


def test_groups_go_their_own_ways():
    """One wholly penalised, one partly, one not at all, one added later; each as in the loss."""
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


def test_what_has_no_gradient_is_skipped():
    for l1 in (0.0, 0.1):
        net = model()
        before = net[0].weight.detach().clone()
        optimizer = optim.SGD(net.parameters(), lr=0.1)
        ss.WeightPenalty(net, 0.3, l1).attach(optimizer)
        net[2](torch.ones(1, 5)).sum().backward()
        optimizer.step()
        assert torch.equal(net[0].weight, before)


def test_frozen_parameters():
    """Frozen with a gradient of before, they are stepped but not penalised; unfrozen, they are again."""
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
    assert_same(scaled.parameters(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips(fused):
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
    assert_same(*results, rtol=1e-3, atol=1e-4)


def test_closures_without_a_tensor():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.0)
    penalty = ss.WeightPenalty(net, 0.3)
    penalty.attach(optimizer)
    loss_of(net).backward()
    assert optimizer.step(lambda: None) is None
    torch.testing.assert_close(optimizer.step(lambda: 2.0), 2.0 + penalty.value())


def test_the_order_with_clipping():
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


def test_monitors_see_the_loss_alone():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    ss.WeightPenalty(net, 100.0, 1.0).attach(optimizer)
    with ss.GradientMonitor(net, quantiles=(1.0,), activations=False) as monitor:
        loss_of(net).backward()
        largest = net[0].weight.grad.abs().max()
        monitor.step()
        optimizer.step()
    low, high = monitor.sketch("0.weight").bounds(1.0, magnitude=True)
    assert low <= largest <= high


@pytest.mark.parametrize("l1", [0.0, 0.02])
@pytest.mark.parametrize("first", ["attach", "load"])
def test_a_resumed_training_goes_on(first, l1):
    """Whichever comes first, and also from the state of an interrupted step."""
    whole, net = model(), model()
    optimizer = optim.Adam(whole.parameters(), lr=0.01, weight_decay=0.1)
    ss.WeightPenalty(whole, 0.3, l1).attach(optimizer)
    train(whole, optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    assert saved[1]["param_groups"][0]["weight_decay"] == 0.1
    expected = train(whole, optimizer)
    resumed = optim.Adam(net.parameters(), lr=1.0)
    penalty = ss.WeightPenalty(net, 0.3, l1)
    if first == "attach":
        penalty.attach(resumed)
    net.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    if first == "load":
        penalty.attach(resumed)
    assert_same(train(net, resumed), expected, rtol=0, atol=0)


def test_an_interrupted_step_leaves_nothing_behind():
    net, stock = model(), model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    attachment = ss.WeightPenalty(net, 0.3).attach(optimizer)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = optimizer.register_step_pre_hook(interrupt)
    for _ in range(2):
        loss_of(net).backward()
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0
    hook.remove()
    assert_same(train(net, optimizer), train(stock, optim.SGD(stock.parameters(), lr=0.1, weight_decay=0.3)))
    attachment.remove()
    assert optimizer.param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("how", ["remove", "with", "detach"])
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_the_end(how, l1):
    net, plain = model(), model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    penalty = ss.WeightPenalty(net, 0.3, l1)
    attachment = penalty.attach(optimizer)
    assert "SGD: " + attachment.ways[0] in repr(attachment)
    if how == "with":
        with attachment:
            pass
    elif how == "remove":
        attachment.remove()
        attachment.remove()
    else:
        penalty.detach(optimizer)
    assert "removed" in repr(attachment)
    assert_same(train(net, optimizer), train(plain, optim.SGD(plain.parameters(), lr=0.1)), rtol=0, atol=0)
    with pytest.raises(ValueError, match="not attached to this SGD"):
        penalty.detach(optimizer)
    penalty.attach(optimizer)


def test_optimizers_are_not_kept_alive():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    attachment = ss.WeightPenalty(net, 0.3).attach(optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert attachment.ways == ()
    attachment.remove()


def test_one_penalty_for_a_parameter():
    net = model()
    optimizer, other = optim.SGD(net.parameters(), lr=0.1), optim.SGD(net.parameters(), lr=0.1)
    penalty = ss.WeightPenalty(net[0], 0.1)
    penalty.attach(optimizer)
    with pytest.raises(ValueError, match="this penalty is attached to this SGD already: detach that first"):
        penalty.attach(optimizer)
    with pytest.raises(ValueError, match=r"WeightPenalty\(l2=0.1.* is attached .*one penalty both l2 and l1"):
        ss.WeightPenalty(net, 0.1).attach(optimizer)
    ss.WeightPenalty(net[2], 0.1).attach(optimizer)
    penalty.attach(other)


def test_twice_is_warned_of():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    penalty = ss.WeightPenalty(net, 0.1)
    with penalty.attach(optimizer):
        with pytest.warns(UserWarning, match=r"adds it once more: .*penalty.value\(\) to log"):
            penalty()
        penalty.value()
    penalty()


@pytest.mark.parametrize("given", [None, 3, model(), torch.amp.GradScaler("cpu")])
def test_not_an_optimizer(given):
    for method in (ss.WeightPenalty(model(), 0.1).attach, ss.WeightPenalty(model(), 0.1).detach):
        with pytest.raises(
            TypeError, match=f"must be a torch.optim.Optimizer; got {type(given).__name__}: pass"
        ):
            method(given)


def test_another_models_optimizer():
    with pytest.raises(ValueError, match="must hold some of the penalised parameters; got SGD over 6 others"):
        ss.WeightPenalty(model(), 0.1).attach(optim.SGD(model().parameters(), lr=0.1))


def test_differentiable_optimizers():
    net = model()
    with pytest.raises(ValueError, match=r"differentiable=True.*add penalty\(\) to the loss"):
        ss.WeightPenalty(net, 0.1).attach(optim.SGD(net.parameters(), lr=0.1, differentiable=True))


@pytest.mark.parametrize("kind", [optim.SGD, optim.SparseAdam])
def test_sparse_gradients_change_nothing(kind):
    layer, dense = nn.Embedding(3, 2, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = kind([dense, layer.weight], lr=0.1)
    ss.WeightPenalty([dense, layer.weight], 0.1, 0.1).attach(optimizer)
    (layer(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(
        TypeError, match=r"got layout torch.sparse_coo for a parameter of shape \(3, 2\): make it"
    ):
        optimizer.step()
    assert torch.equal(dense.detach(), torch.ones(2))
    assert torch.equal(dense.grad, torch.ones(2))


def test_a_step_that_takes_the_scaler():
    class Old(optim.SGD):
        def step(self, closure=None, *, grad_scaler=None):
            return super().step(closure)

    net = model()
    optimizer = Old(net.parameters(), lr=0.1)
    ss.WeightPenalty(net, 0.1).attach(optimizer)
    loss_of(net).backward()
    with pytest.raises(RuntimeError, match="takes the GradScaler itself"):
        optimizer.step(grad_scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_a_compiled_step(kind, l1):
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
    assert_same(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_capture_in_a_graph(l1):
    captured, plain = model("cuda"), model("cuda")
    optimizers = [optim.AdamW(net.parameters(), lr=0.01, capturable=True) for net in (captured, plain)]
    for net, optimizer in zip((captured, plain), optimizers, strict=True):
        ss.WeightPenalty(net, 0.3, l1).attach(optimizer)
    x = torch.randn(7, 4, device="cuda")

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
