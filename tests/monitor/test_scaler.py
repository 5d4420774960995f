"""Under a gradient scaler a monitor records what the gradients would be without it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.kernels.reference_sketch import bin_count
from sigscale.monitor._loss_scale import unscaled

pytestmark = pytest.mark.usefixtures("one_thread")

ORDERS = ["backward", "unscale", "step", "update"]  # monitor.step() comes after


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), ss.nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def batch(step: int) -> torch.Tensor:
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(step))


def train(model, order, *, scaler=None, steps=6, use_unscale=True, optimizer=None, loss=None, **options):
    """Train with a scaler, calling monitor.step() behind the named call."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.01)
    loss = loss or (lambda y, step: y.square().mean())
    with ss.GradientMonitor(model, scaler=scaler, **options) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(model(batch(step)), step)
            (value if scaler is None else scaler.scale(value)).backward()
            calls = {"backward": lambda: None, "unscale": lambda: scaler.unscale_(optimizer)}
            calls |= {"step": lambda: scaler.step(optimizer), "update": lambda: scaler.update()}
            if scaler is None:
                calls = {"backward": lambda: None, "step": optimizer.step}
            elif not use_unscale:
                del calls["unscale"]
            for name, call in calls.items():
                call()
                if name == order:
                    monitor.step()
    return monitor


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("growth", [1, 2], ids=["scale grows each step", "each second step"])
def test_order_of_calls(order, growth):
    """Powers of two change no mantissa: the same counts and quantiles to the bit."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=growth)
    found = train(network(), order, scaler=scaler).history()
    want = train(network(), "backward").history()
    assert scaler.get_scale() > 2.0**10
    np.testing.assert_array_equal(found.count, want.count)
    np.testing.assert_allclose(found.values, want.values, rtol=1e-12)


@pytest.mark.parametrize("order", ["backward", "step", "update"])
def test_without_a_call_of_unscale(order):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    found = train(network(), order, scaler=scaler, use_unscale=False).history()
    want = train(network(), "backward").history()
    np.testing.assert_allclose(found.values, want.values, rtol=1e-12)


def test_scale_of_any_size():
    scaler = torch.amp.GradScaler("cpu", init_scale=1000.0, growth_factor=1.7, growth_interval=1)
    found = train(network(), "backward", scaler=scaler).history()
    want = train(network(), "backward").history()
    np.testing.assert_array_equal(found.count, want.count)
    np.testing.assert_array_equal(found["zeros"], want["zeros"])
    np.testing.assert_allclose(found["mean"], want["mean"], rtol=0.13)
    np.testing.assert_allclose(found.quantile(0.5), want.quantile(0.5), rtol=0.13)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_step(order, fused):
    """An overflow at step 2; a fused optimizer leaves the gradients multiplied then."""

    def loss(y, step):
        return y.square().mean() * (torch.inf if step == 2 else 1.0)

    def monitored(order, scaler):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
        return train(
            model,
            order,
            scaler=scaler,
            loss=loss,
            steps=4,
            optimizer=optimizer,
            use_unscale=order == "unscale",
        ).history()

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
    found = monitored(order, scaler)
    assert scaler.get_scale() == 2.0**9
    infinite = found["infs"] + found["nans"]
    assert infinite[2].any()
    assert not infinite[[0, 1, 3]].any()
    parameters = ["parameters" in name or "weight" in name or "bias" in name for name in found.names]
    medians = found.quantile(0.05)
    assert np.isfinite(medians[[0, 1, 3]]).all()
    if order in ("step", "update"):
        assert np.isnan(medians[2, parameters]).all()
    assert (found.count[2] == found.count[0]).all()
    # Before and after the overflow, what a training without a scaler and without that step has.
    want = train(network(), "backward", steps=2).history()
    np.testing.assert_allclose(found.values[:2], want.values, rtol=1e-12)


def test_parameters_added_under_a_scaler():
    histories = []
    for scale in (2.0**10, None):
        model = network()
        scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale)
        with ss.GradientMonitor(model, scaler=scaler) as monitor:
            for step in range(3):
                torch.manual_seed(step)
                model.append(nn.Linear(1, 1))
                model.zero_grad()
                loss = model(batch(step)).square().mean()
                (scaler.scale(loss) if scaler else loss).backward()
                monitor.step()
        histories.append(monitor.history())
    np.testing.assert_allclose(histories[0].values, histories[1].values, rtol=1e-12)


def test_disabled_scaler():
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    found = train(network(), "backward", scaler=scaler, use_unscale=False).history()
    assert found.values.tobytes() == train(network(), "backward").history().values.tobytes()


def test_accumulated_under_a_scaler():
    model, plain = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with ss.GradientMonitor(model, scaler=scaler) as monitor, ss.GradientMonitor(plain) as other:
        for step in range(3):
            for part in batch(step).split(5):
                scaler.scale(model(part).mean()).backward()
                plain(part).mean().backward()
            scaler.step(optimizer)
            scaler.update()
            with torch.no_grad():
                model(batch(99))  # an evaluation, with another scale
            monitor.step()
            other.step()
            optimizer.zero_grad()
            plain.zero_grad()
    np.testing.assert_allclose(monitor.history().values, other.history().values, rtol=1e-12)


def test_unknown_scale():
    """The model's parts are called, not the model: refused rather than wrong, and only if it matters."""
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model[1](model[0](batch(0))).sum()).backward()
        monitor.step()
        known = monitor.history().quantile(0.5)[0, 2]
        scaler.step(optimizer)
        scaler.update()
        with pytest.raises(RuntimeError, match=r"loss scale .*update\(\) ran.*: call it as model\(\.\.\.\)"):
            monitor.step()
        assert len(monitor.history()) == 1
    model = network()
    with ss.GradientMonitor(model) as monitor:
        model[1](model[0](batch(0))).sum().backward()
        monitor.step()
    assert known == monitor.history().quantile(0.5)[0, 2]


def test_vanishing_and_sketch():
    for scale in (2.0**14, 1.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
        monitor = train(network(), "update", scaler=scaler, steps=1)
        shares = monitor.vanishing(below=2.0**-12)
        sketches = {name: monitor.sketch(name).counts for name in monitor.history().names}
        if scale != 1:
            want = shares, sketches
    assert shares == want[0]
    assert 0 < shares["1"] < 1
    for name, counts in sketches.items():
        assert torch.equal(counts, want[1][name]), name
    assert want[1]["1"].sum() == 160


def test_sketch_of_a_skipped_step():
    scaler = torch.amp.GradScaler("cpu")
    monitor = train(network(), "step", scaler=scaler, steps=1, loss=lambda y, _: y.sum() * torch.inf)
    assert int(monitor.sketch("1").count) == 160
    with pytest.raises(
        RuntimeError, match=r"skipped the last step.*'0.weight'.*: call monitor.step\(\) before"
    ):
        monitor.sketch("0.weight")


@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**-5, 1000.0])
def test_unscaled_counts(m, scale):
    """Against sketching the divided values."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator) * torch.exp2(
        torch.randint(-60, 60, (4000,), generator=generator)
    )
    x[:40] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan] * 8)
    scaled = ss.QuantileSketch(m).update(x.double() * scale)
    want = ss.QuantileSketch(m).update(x)
    found = unscaled(scaled.counts, scale, m)
    assert found.sum() == 4000
    special = [0, (255 << m) + 2, bin_count(m) - 2, bin_count(m) - 1]
    assert found[special].tolist() == want.counts[special].tolist() == [8, 16, 8, 8]
    if scale != 1000.0:
        assert torch.equal(found, want.counts)
    else:  # each value at most one bin off
        assert (found.cumsum(0)[1:] >= want.counts.cumsum(0)[:-1]).all()
        assert (want.counts.cumsum(0)[1:] >= found.cumsum(0)[:-1]).all()


def test_scaler_unchanged():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = copy.deepcopy(scaler.state_dict())
    with ss.GradientMonitor(network(), scaler=scaler):
        assert scaler.state_dict() == before
