"""What step() may do while a penalty is attached: call itself, call closures, raise, belong to a wrapper."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import optim

import sigscale as ss
from tests.penalty.test_attach import (
    BOTH,
    L2,
    assert_as_in_loss,
    assert_same,
    loss_of,
    model,
    train,
    train_by_closures,
    train_compiled,
)


def test_compiled_step_of_base_class():
    """PyTorch runs the hooks in each class that an optimizer was made of before; the penalty acts once."""

    class Ours(optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    optim.SGD(model().parameters(), lr=0.01)
    assert_as_in_loss(partial(Ours, lr=0.01), *L2, train_compiled, train)


def test_step_after_closure_of_subclass():
    """A subclass that calls the closure itself, and its base class without one."""

    class Ours(optim.SGD):
        def step(self, closure=None):
            loss = closure()
            super().step()
            return loss

    sgd = partial(optim.SGD, lr=0.1)
    sgd(model().parameters())
    assert_as_in_loss(partial(Ours, lr=0.1), *L2, train_by_closures, train_by_closures, of=sgd)


@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_step_after_error_in_base_class(l1):
    """Whatever was raised, the next step has the penalty, once, even inside the handler."""

    class Ours(optim.SGD):
        failing = True

        def step(self, closure=None):
            super().step()
            if self.failing:
                raise RuntimeError("out of memory")

    def train_in_handler(net, optimizer):
        try:
            train(net, optimizer)
        except RuntimeError:
            optimizer.failing, optimizer.param_groups[0]["lr"] = False, 0.1
            return train(net, optimizer)

    sgd = partial(optim.SGD, lr=0.1)
    sgd(model().parameters())
    assert_as_in_loss(partial(Ours, lr=0.0), 0.3, l1, train_in_handler, of=sgd)


@pytest.mark.parametrize(
    ("kind", "where"),
    [(optim.SGD, "hook"), (optim.SGD, "closure"), *((kind, "step") for kind in (optim.SGD, optim.Adam))],
)
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
    for _ in range(2):
        with pytest.raises(error):
            optimizer.step(closure)
        assert group == settings
        assert optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.125
    assert set(seen) <= {0.125}
    if hook is None:
        return
    hook.remove()
    decayed = kind(stock.parameters(), lr=0.01, weight_decay=0.375)
    assert_same(train(net, optimizer), train(stock, decayed), rtol=0, atol=0)
    attachment.remove()
    assert group == settings


def test_settings_changed_by_later_hooks():
    """A schedule that sets the learning rate as step() begins."""

    def make(parameters):
        optimizer = optim.SGD(parameters, lr=0.5)
        optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=0.01))
        return optimizer

    _, _, optimizer = assert_as_in_loss(make, *L2)
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_learning_rate_schedule(recwarn):
    """Schedulers put a step() of their own on the optimizer, before or after the penalty comes."""
    nets, rates = (model(), model()), []
    for net, attached in zip(nets, (True, False), strict=True):
        optimizer, penalty = optim.SGD(net.parameters(), lr=0.1), ss.WeightPenalty(net, 0.3)
        schedule = optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        if attached:
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


@pytest.mark.parametrize(
    ("wrap", "factors"),
    [(Wrapper, L2), (WrapperWithHooks, BOTH), (lambda o: Wrapper(WrapperWithHooks(o)), L2)],
)
def test_wrapped_optimizers(wrap, factors):
    sgd = partial(optim.SGD, lr=0.1)
    _, attachment, optimizer = assert_as_in_loss(lambda p: wrap(sgd(p)), *factors, of=sgd)
    penalty = attachment.penalty
    with pytest.raises(ValueError, match="attached to this SGD already"):
        penalty.attach(optimizer)
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
