"""What is attached to an optimizer comes off again, survives interruptions, and refuses what it cannot do."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn, optim

import sigscale as ss
from tests.penalty.test_attach import assert_same, loss_of, model, train


@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_state_loaded_after_attaching(l1):
    whole, net = model(), model()
    optimizer = optim.Adam(whole.parameters(), lr=0.01, weight_decay=0.1)
    ss.WeightPenalty(whole, 0.3, l1).attach(optimizer)
    train(whole, optimizer)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    assert saved[1]["param_groups"][0]["weight_decay"] == 0.1
    resumed = optim.Adam(net.parameters(), lr=1.0)
    ss.WeightPenalty(net, 0.3, l1).attach(resumed)
    net.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert_same(train(net, resumed), train(whole, optimizer), rtol=0, atol=0)


def test_tensor_weight_decay():
    """Raising it would change the user's own tensor, in place."""
    net, decay = model(), torch.tensor(0.25)
    optimizer = optim.SGD(net.parameters(), lr=0.1, weight_decay=decay, foreach=False)
    assert ss.WeightPenalty(net, 0.5).attach(optimizer).ways == ("gradient",)
    expected = [p.detach() * (1 - 0.1 * 0.75) for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert_same(net.parameters(), expected)
    assert optimizer.param_groups[0]["weight_decay"] is decay
    assert decay == 0.25


def test_copied_optimizer():
    """Nor other hooks: its parameters are others."""
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    attachment = ss.WeightPenalty(net, 0.5).attach(optimizer)
    copied = copy.deepcopy(optimizer)
    weight = copied.param_groups[0]["params"][0]
    weight.grad, before = torch.zeros_like(weight), weight.detach().clone()
    copied.step()
    assert torch.equal(weight, before)
    assert attachment.ways == ("weight_decay",)


def test_monitored_gradient():
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


@pytest.mark.parametrize("how", ["remove", "with", "detach"])
@pytest.mark.parametrize("l1", [0.0, 0.02])
def test_detach(how, l1):
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


def test_garbage_collected_optimizer():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    attachment = ss.WeightPenalty(net, 0.3).attach(optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert attachment.ways == ()
    attachment.remove()


def test_two_penalties_of_a_parameter():
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


def test_warning_of_double_penalty():
    net = model()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    penalty = ss.WeightPenalty(net, 0.1)
    with penalty.attach(optimizer):
        with pytest.warns(UserWarning, match=r"adds it once more: .*penalty.value\(\) to log") as warned:
            penalty()
        assert warned[0].filename == __file__
        penalty.value()
    penalty()


def pull(parameter, optimizer):
    """What a step adds to the gradient of a parameter."""
    before = parameter.grad.clone()
    optimizer.step()
    return parameter.grad - before


def with_gradients(*values):
    parameters = [nn.Parameter(torch.tensor([value])) for value in values]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters


def test_changes_between_steps():
    """Frozen and unfrozen, without a gradient, of another type, another parameter of the same value."""
    first, other, twin = with_gradients(2.0, 4.0, 4.0)
    optimizer = optim.AdamW([first, other], lr=0.0)
    ss.WeightPenalty([first, other], 0.5, 0.25).attach(optimizer)
    assert pull(first, optimizer) == 1.25
    first.requires_grad_(False)
    assert pull(first, optimizer) == 0.0
    assert pull(other, optimizer) == 2.25
    first.requires_grad_(True)
    first.grad = None
    assert pull(other, optimizer) == 2.25
    first.grad = torch.zeros(1)
    optimizer.param_groups[0]["params"][1] = twin
    assert pull(twin, optimizer) == 0.0
    assert first.grad == 1.25
    optimizer.param_groups[0]["params"][1] = other
    assert pull(other, optimizer) == 2.25


@pytest.mark.parametrize("l1", [0.0, 0.25])
def test_narrowed_parameters(l1):
    """A factor that float16 rounds to 0, on all parameters or on one."""
    for narrow in (slice(None), slice(1)):
        parameters = with_gradients(1.0, 1.0)
        optimizer = type("Mine", (optim.SGD,), {})(parameters, lr=0.0)
        ss.WeightPenalty(parameters, 2.0**-26, l1).attach(optimizer)
        optimizer.step()
        for parameter in parameters[narrow]:
            parameter.grad = None
            parameter.data = torch.tensor([2.0**14]).half()
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for parameter in parameters:
            expected = torch.tensor([2.0**-26 * float(parameter.detach()) + l1])
            torch.testing.assert_close(parameter.grad, expected.to(parameter.dtype))


def test_kept_gradients():
    """As of any addition in place, so that autograd notices."""
    (parameter,) = with_gradients(1.0)
    optimizer = optim.AdamW([parameter], lr=0.1)
    ss.WeightPenalty([parameter], 0.1).attach(optimizer)
    version = parameter.grad._version
    optimizer.step()
    assert parameter.grad._version > version
    assert not parameter.grad.is_inference()


class TakesTheScaler(optim.SGD):
    def step(self, closure=None, *, grad_scaler=None):
        return super().step(closure)


NO_OPTIMIZER = "must be a torch.optim.Optimizer; got {}: pass the optimizer itself"
REFUSED = {
    "None": lambda net: None,
    "int": lambda net: 3,
    "Sequential": lambda net: net,
    "GradScaler": lambda net: torch.amp.GradScaler("cpu"),
    "ConstantLR": lambda net: optim.lr_scheduler.ConstantLR(optim.SGD(net.parameters(), lr=0.1)),
}
UNFIT = {
    "must hold some of the penalized parameters; got SGD over 6 others": (model(), {}),
    r"differentiable=True.*add penalty\(\) to the loss": (None, {"differentiable": True}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_not_an_optimizer(name):
    net = model()
    penalty, optimizer = ss.WeightPenalty(net, 0.1), REFUSED[name](net)
    for call in (penalty.attach, penalty.detach):
        with pytest.raises(TypeError, match=NO_OPTIMIZER.format(name if optimizer else "NoneType")):
            call(optimizer)


@pytest.mark.parametrize("message", UNFIT)
def test_unfit_optimizers(message):
    net = model()
    other, options = UNFIT[message]
    penalty, optimizer = ss.WeightPenalty(net, 0.1), optim.SGD((other or net).parameters(), lr=0.1, **options)
    with pytest.raises(ValueError, match=message):
        penalty.attach(optimizer)
    with pytest.raises(ValueError, match="not attached to this SGD"):
        penalty.detach(optimizer)


def test_step_with_grad_scaler_argument():
    (parameter,) = with_gradients(1.0)
    optimizer = TakesTheScaler([parameter], lr=0.1)
    ss.WeightPenalty([parameter], 0.1).attach(optimizer)
    with pytest.raises(RuntimeError, match="takes the GradScaler itself"):
        optimizer.step(grad_scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW, optim.SparseAdam])
@pytest.mark.parametrize("after_dense", [False, True])
def test_sparse_gradients(kind, after_dense):
    """Refused before anything is added, also where all gradients were dense a step before."""
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(3)]
    optimizer = kind(parameters, lr=0.1)
    ss.WeightPenalty(parameters, 0.1, 0.1).attach(optimizer)
    if after_dense and kind is not optim.SparseAdam:
        for parameter in parameters:
            parameter.grad = torch.zeros(2, 2)
        optimizer.step()
    for parameter in parameters:
        parameter.grad = torch.ones(2, 2)
    parameters[2].grad = torch.eye(2).to_sparse()
    before = parameters[0].detach().clone()
    with pytest.raises(
        TypeError, match=r"layout torch.sparse_coo for a parameter of shape \(2, 2\): make it"
    ):
        optimizer.step()
    assert torch.equal(parameters[0].detach(), before)
    assert torch.equal(parameters[0].grad, torch.ones(2, 2))
