"""A monitor leaves no trace in a model, its gradients, its state and its copies."""

from __future__ import annotations

import copy
import io

import pytest
import torch

import sigscale as ss
from tests.oracles.collected import batch, network

pytestmark = pytest.mark.usefixtures("one_thread")


def test_model_is_left_as_it_was():
    model = network()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    hooks = {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()}
    scaler = torch.amp.GradScaler("cpu")
    monitor = ss.GradientMonitor(model, scaler=scaler)
    model(batch(0)).sum().backward()
    monitor.step()
    monitor.close()
    monitor.close()
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert dict(module._forward_pre_hooks) == hooks[name] == {}
        assert not module._forward_hooks
        assert not module._forward_pre_hooks_with_kwargs
        assert module._is_full_backward_hook is None
    assert monitor.history().count[0, 0] == 3 * 320  # still to be read


def test_a_monitor_that_nobody_holds_leaves_the_model_alone():
    model = network()
    monitor = ss.GradientMonitor(model)
    del monitor
    assert not model[3]._forward_pre_hooks
    assert model[1].grad_sketch is None
    ss.GradientMonitor(model).close()


def test_monitoring_changes_no_gradient():
    want = network()
    want(batch(0)).square().sum().backward()
    model = network()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with ss.GradientMonitor(model) as monitor:
        assert model.state_dict().keys() == state.keys()
        model(batch(0)).square().sum().backward()
        monitor.step()
    for mine, plain in zip(model.parameters(), want.parameters(), strict=True):
        assert torch.equal(mine.grad, plain.grad)


def test_state_and_copies_of_a_monitored_model():
    model = network()
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(batch(0)).sum()).backward()
        scaler.unscale_(optimizer)  # a scaler refuses to be copied from here on
        copies = [copy.deepcopy(model), copy.copy(model)]
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        copies.append(torch.load(file, weights_only=False))
        monitor.step()
        state = io.BytesIO()
        torch.save(model.state_dict(), state)
        state.seek(0)
        model.load_state_dict(torch.load(state))
        copies[0].load_state_dict(model.state_dict())
        for clone in (copies[0], copies[2]):
            clone(batch(1)).sum().backward()
            assert clone[1].grad_sketch is None
        model.zero_grad()
        scaler.scale(model(batch(0)).sum()).backward()
        monitor.step()
    assert (
        monitor.history().count.tolist() == [[960, 707, 320, 320, 320, 96, 16, 256, 16, 256, 16, 48, 3]] * 2
    )
