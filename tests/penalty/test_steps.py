"""What step() may do while a penalty is attached: call itself, call closures, raise, belong to a wrapper."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import optim

import sigscale as ss
from tests.penalty.test_attach import STEPS, assert_same, loss_of, model, train

FACTORS = [(0.3, 0.0), (0.3, 0.02)]


def subclass_of(base):
    """An optimizer whose step() is its base class's and something more, defined anew for each test."""

    class Ours(base):
        def step(self, closure=None):
            return super().step(closure)

    class Twice(Ours):
        def step(self, closure=None):
            return super().step(closure)

    return Ours, Twice


def train_by_closures(net, optimizer, penalty=None):
    losses = []
    for step in range(3):

        def closure(step=step):
            optimizer.zero_grad()
            loss = loss_of(net, step) if penalty is None else loss_of(net, step) + penalty()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).detach())
    return [*losses, *(p.detach() for p in net.parameters())]


@pytest.mark.parametrize(("l2", "l1"), FACTORS)
@pytest.mark.parametrize(
    ("base", "training"),
    [
        *product([optim.SGD, optim.Adam, optim.AdamW], [train, train_by_closures]),
        (optim.LBFGS, train_by_closures),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_step_of_base_class(base, depth, training, l2, l1):
    """PyTorch runs the hooks in each class that an optimizer was made of before; the penalty acts once."""
    kind, attached, written = subclass_of(base)[depth], model(), model()
    for earlier in (base, *kind.__mro__[1 : depth + 1]):
        earlier(model().parameters(), lr=0.01)
    optimizer = kind(attached.parameters(), lr=0.01)
    penalty = ss.WeightPenalty(attached, l2, l1)
    penalty.attach(optimizer)
    result = training(attached, optimizer)
    expected = training(written, kind(written.parameters(), lr=0.01), ss.WeightPenalty(written, l2, l1))
    assert_same(result, expected, rtol=1e-9, atol=1e-9)


def test_compiled_step_of_base_class():
    attached, written = model(), model()
    optim.SGD(model().parameters(), lr=0.1)
    kind = subclass_of(optim.SGD)[0]
    optimizer = kind(attached.parameters(), lr=0.1)
    ss.WeightPenalty(attached, 0.3).attach(optimizer)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    expected = train(written, kind(written.parameters(), lr=0.1), ss.WeightPenalty(written, 0.3))
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(attached, step).backward()
        compiled()
    assert_same([p.detach() for p in attached.parameters()], expected)


def test_step_after_closure_of_subclass():
    """A subclass that calls the closure itself, and its base class without one."""

    class Ours(optim.SGD):
        def step(self, closure=None):
            loss = closure()
            super().step()
            return loss

    optim.SGD(model().parameters(), lr=0.1)
    attached, written = model(), model()
    optimizer = Ours(attached.parameters(), lr=0.1)
    ss.WeightPenalty(attached, 0.3).attach(optimizer)
    expected = train_by_closures(
        written, optim.SGD(written.parameters(), lr=0.1), ss.WeightPenalty(written, 0.3)
    )
    assert_same(train_by_closures(attached, optimizer), expected)


@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_step_after_error_in_base_class(l1):
    """Whatever was raised, the next step has the penalty, once, even inside the handler."""

    class Ours(optim.SGD):
        failing = True

        def step(self, closure=None):
            super().step()
            if self.failing:
                raise RuntimeError("out of memory")

    optim.SGD(model().parameters(), lr=0.1)
    attached, written = model(), model()
    optimizer = Ours(attached.parameters(), lr=0.0)
    ss.WeightPenalty(attached, 0.3, l1).attach(optimizer)
    try:
        train(attached, optimizer)
    except RuntimeError:
        optimizer.failing, optimizer.param_groups[0]["lr"] = False, 0.1
        result = train(attached, optimizer)
    expected = train(written, optim.SGD(written.parameters(), lr=0.1), ss.WeightPenalty(written, 0.3, l1))
    assert_same(result, expected)


@pytest.mark.parametrize("where", ["hook", "closure", "step"])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.RMSprop, optim.ASGD])
def test_groups_after_error(kind, where):
    """The optimizer's own groups are never changed, so that nothing has to be put back."""
    net, stock = model(), model()
    optimizer = kind(net.parameters(), lr=0.01, weight_decay=0.125)
    attachment = ss.WeightPenalty(net, 0.25).attach(optimizer)
    assert attachment.ways == ("weight_decay",)
    group, seen = optimizer.param_groups[0], []

    def fail(*_):
        seen.append(group["weight_decay"])
        raise KeyboardInterrupt

    loss_of(net).backward()
    closure = fail if where == "closure" else None
    hook = optimizer.register_step_pre_hook(fail) if where == "hook" else None
    error = KeyboardInterrupt
    if where == "step":
        net[3].bias.grad.data = torch.zeros(2, dtype=torch.complex128)
        group["betas"], group["alpha"], group["momentum"] = None, None, None
        error = (TypeError, RuntimeError)
    settings = copy.copy(group)
    with pytest.raises(error):
        optimizer.step(closure)
    assert group == settings
    assert set(seen) <= {0.125}
    if hook is None:
        return
    hook.remove()
    decayed = kind(stock.parameters(), lr=0.01, weight_decay=0.375)
    assert_same(train(net, optimizer), train(stock, decayed), rtol=0, atol=0)


def test_settings_changed_by_later_hooks():
    """A schedule that sets the learning rate as step() begins."""
    nets = model(), model()
    optimizers = [optim.SGD(net.parameters(), lr=0.5) for net in nets]
    ss.WeightPenalty(nets[0], 0.25).attach(optimizers[0])
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=0.01))
    assert_same(train(nets[0], optimizers[0]), train(nets[1], optimizers[1], ss.WeightPenalty(nets[1], 0.25)))
    assert optimizers[0].param_groups[0]["weight_decay"] == 0


@pytest.mark.parametrize("training", [train, train_by_closures])
def test_two_penalties_by_weight_decay(training):
    results = []
    for attached in (True, False):
        net = model()
        groups = [{"params": net[0].parameters()}, {"params": [*net[2].parameters(), *net[3].parameters()]}]
        optimizer = optim.Adam(groups, lr=0.01)
        penalties = ss.WeightPenalty(net[0], 0.3), ss.WeightPenalty(net[2:], 0.1)
        if attached:
            assert [p.attach(optimizer).ways for p in penalties] == [
                ("weight_decay", "none"),
                ("none", "weight_decay"),
            ]
        both = None if attached else lambda p=penalties: p[0]() + p[1]()
        results.append(training(net, optimizer, both))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0, 0]
    assert_same(*results, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule_first", [False, True])
def test_learning_rate_schedule(schedule_first, recwarn):
    """Schedulers put a step() of their own on the optimizer."""
    nets, rates = (model(), model()), []
    for net, attached in zip(nets, (True, False), strict=True):
        optimizer, penalty = optim.SGD(net.parameters(), lr=0.1), ss.WeightPenalty(net, 0.3)
        if attached and not schedule_first:
            penalty.attach(optimizer)
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        if attached and schedule_first:
            penalty.attach(optimizer)
        for _ in range(2):
            train(net, optimizer, None if attached else penalty)
            schedule.step()
        rates += schedule.get_last_lr()
    assert_same(nets[0].parameters(), nets[1].parameters())
    assert rates[0] == rates[1]
    assert not recwarn


class Wrapper(optim.Optimizer):
    """Like Lookahead of two packages, and accelerate's: an Optimizer that never called its constructor."""

    inner = "optimizer"

    def __init__(self, optimizer):
        setattr(self, self.inner, optimizer)
        self.param_groups = optimizer.param_groups

    def step(self, closure=None):
        return getattr(self, self.inner).step(closure)

    def zero_grad(self, set_to_none=True):
        getattr(self, self.inner).zero_grad(set_to_none)


class WrapperWithHooks(Wrapper):
    """Hooks that no step() of it runs."""

    inner = "_base_optimizer"

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self._optimizer_step_pre_hooks = OrderedDict()
        self._optimizer_step_post_hooks = OrderedDict()


@pytest.mark.parametrize("wrap", [Wrapper, WrapperWithHooks, lambda o: Wrapper(WrapperWithHooks(o))])
@pytest.mark.parametrize(("l2", "l1"), FACTORS)
def test_wrapped_optimizers(wrap, l2, l1):
    attached, written = model(), model()
    optimizer = wrap(optim.SGD(attached.parameters(), lr=0.1))
    penalty = ss.WeightPenalty(attached, l2, l1)
    penalty.attach(optimizer)
    with pytest.raises(ValueError, match="attached to this SGD already"):
        penalty.attach(optimizer)
    expected = train(written, optim.SGD(written.parameters(), lr=0.1), ss.WeightPenalty(written, l2, l1))
    assert_same(train(attached, optimizer), expected)
    penalty.detach(optimizer)
    with pytest.raises(ValueError, match="not attached to this SGD"):
        penalty.detach(optimizer)


def test_optimizer_without_hooks():
    """Such as one that keeps what it wraps where nobody looks, or wraps itself."""
    net = model()
    hidden = type("Hidden", (Wrapper,), {"inner": "_secret"})(optim.SGD(net.parameters(), lr=0.1))
    itself = Wrapper(optim.SGD(net.parameters(), lr=0.1))
    itself.optimizer = itself
    for optimizer, name in ((hidden, "Hidden"), (itself, "Wrapper")):
        with pytest.raises(TypeError, match=rf"must run hooks.*got {name}, which does not .*add penalty\(\)"):
            ss.WeightPenalty(net, 0.1).attach(optimizer)


def test_scheduler_is_no_optimizer():
    net = model()
    schedule = optim.lr_scheduler.ConstantLR(optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"torch.optim.Optimizer; got ConstantLR: pass the optimizer itself"):
        ss.WeightPenalty(net, 0.1).attach(schedule)
