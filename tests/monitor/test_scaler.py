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
from tests.oracles.collected import batch

ORDERS = ["backward", "unscale", "step", "update"]  # monitor.step() comes after
BETWEEN = (
    r"divided the gradient of '[02].weight' .*not yet that of '[02].weight': call monitor.step\(\) after "
)
BETWEEN += "the last backward pass and before .* of the first optimizer, or after"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), ss.nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def grad_scaler(scale=2.0**10, growth_interval=1, **options) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval, **options)


def loss_of(model, step=0, factor=1.0):
    return model(batch(step)).square().mean() * factor


def train(order="backward", scaler=None, steps=6, unscales=True, fused=False, overflow=None):
    """The monitor of a training that calls monitor.step() behind the named call."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        for step in range(steps):
            optimizer.zero_grad()
            loss = loss_of(model, step, torch.inf if step == overflow else 1.0)
            (loss if scaler is None else scaler.scale(loss)).backward()
            calls = {"backward": lambda: None, "step": optimizer.step}
            if scaler is not None:
                unscale = {"unscale": lambda: scaler.unscale_(optimizer)} if unscales else {}
                calls = {"backward": lambda: None, **unscale, "step": lambda: scaler.step(optimizer)}
                calls["update"] = scaler.update
            for name, call in calls.items():
                call()
                if name == order:
                    monitor.step()
    return monitor


@pytest.fixture(scope="module")
def plain():
    """The history of the training without a scaler."""
    return train().history()


@pytest.mark.parametrize(
    ("order", "unscales", "growth"),
    [*((order, True, growth) for order in ORDERS for growth in (1, 2))]
    + [(order, False, 1) for order in ORDERS if order != "unscale"],
)
def test_order_of_calls(order, unscales, growth, plain):
    """Powers of two change no mantissa: the same counts and quantiles to the bit."""
    scaler = grad_scaler(growth_interval=growth)
    found = train(order, scaler, unscales=unscales).history()
    assert scaler.get_scale() > 2.0**10
    np.testing.assert_array_equal(found.count, plain.count)
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-12)


def test_scale_of_any_size(plain):
    scaler = grad_scaler(1000.0, growth_factor=1.7)
    before = copy.deepcopy(scaler.state_dict())
    with ss.GradientMonitor(network(), scaler=scaler):
        assert scaler.state_dict() == before
    found = train(scaler=scaler).history()
    np.testing.assert_array_equal(found.count, plain.count)
    np.testing.assert_array_equal(found["zeros"], plain["zeros"])
    np.testing.assert_allclose(found["mean"], plain["mean"], rtol=0.13)
    np.testing.assert_allclose(found.quantile(0.5), plain.quantile(0.5), rtol=0.13)
    disabled = train(scaler=grad_scaler(enabled=False), unscales=False).history()
    assert disabled.values.tobytes() == plain.values.tobytes()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fused", [False, True])
def test_skipped_step(order, fused, plain):
    """An overflow at step 2; a fused optimizer leaves the gradients multiplied then."""
    scaler = grad_scaler(growth_interval=100)
    monitor = train(order, scaler, 4, unscales=order == "unscale", fused=fused, overflow=2)
    found = monitor.history()
    assert scaler.get_scale() == 2.0**9
    infinite = found["infs"] + found["nans"]
    assert infinite[2].any()
    assert not infinite[[0, 1, 3]].any()
    parameters = ["parameters" in name or "weight" in name or "bias" in name for name in found.names]
    assert np.isfinite(found.quantile(0.05)[[0, 1, 3]]).all()
    if order in ("step", "update"):
        assert np.isnan(found.quantile(0.05)[2, parameters]).all()
    assert (found.count[2] == found.count[0]).all()
    # Before the overflow, what a training without a scaler has.
    np.testing.assert_allclose(found.values[:2], plain.values[:2], rtol=1e-12)


def test_sketch_of_a_skipped_step():
    monitor = train("step", grad_scaler(), 1, overflow=0)
    assert int(monitor.sketch("1").count) == 160
    skipped = r"skipped the last step.*'0.weight'.*: call monitor.step\(\) before"
    with pytest.raises(RuntimeError, match=skipped):
        monitor.sketch("0.weight")


def test_new_parameters_and_micro_batches():
    """Also with an evaluation in between, under another scale."""
    histories = []
    for scaler in (grad_scaler(2.0**12), None):
        model = network()
        with ss.GradientMonitor(model, scaler=scaler) as monitor:
            for step in range(3):
                torch.manual_seed(step)
                model.append(nn.Linear(1, 1))
                optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
                optimizer.zero_grad()
                for part in batch(step).split(5):
                    loss = model(part).mean()
                    (scaler.scale(loss) if scaler else loss).backward()
                if scaler:
                    scaler.step(optimizer)
                    scaler.update()
                with torch.no_grad():
                    model(batch(99))
                monitor.step()
        histories.append(monitor.history())
    np.testing.assert_allclose(histories[0].values, histories[1].values, rtol=1e-12)


def test_unknown_scale():
    """No loss was scaled since the scale changed: refused rather than wrong, and only if it matters."""
    model, scaler = network(), grad_scaler()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model[:2](batch(0)).sum()).backward()
        monitor.step()
        known = monitor.history().quantile(0.5)[0, 2]
        scaler.step(optimizer)
        scaler.update()
        with pytest.raises(RuntimeError, match=r"loss scale .*update\(\) ran.*: call scaler.scale\(loss\)"):
            monitor.step()
        assert len(monitor.history()) == 1
    model = network()
    with ss.GradientMonitor(model) as monitor:
        model[:2](batch(0)).sum().backward()
        monitor.step()
    assert known == monitor.history().quantile(0.5)[0, 2]


class Two:
    """A model whose layers two optimizers train under one scaler."""

    def __init__(self, fused=False):
        self.model, self.scaler = network(), grad_scaler(2.0**16)
        parts = self.model[0], self.model[2:]
        self.optimizers = [torch.optim.SGD(part.parameters(), lr=0.0, fused=fused) for part in parts]

    def backward(self, step=0):
        self.scaler.scale(loss_of(self.model, step)).backward()

    def call(self, calls):
        """u0 unscales the gradients of the first optimizer, s1 steps the second one."""
        for call in calls.split():
            if call == "update":
                self.scaler.update()
            else:
                (self.scaler.unscale_ if call[0] == "u" else self.scaler.step)(self.optimizers[int(call[1])])

    def finish(self, calls):
        self.call(" ".join(call for call in ("s0", "s1", "update") if call not in calls))

    def means(self, step=0):
        """The mean magnitude of each parameter's gradient without a scaler."""
        plain = copy.deepcopy(self.model)
        plain.zero_grad()
        loss_of(plain, step).backward()
        return {name: p.grad.abs().double().mean().item() for name, p in plain.named_parameters()}


def means_of(monitor, step):
    history = monitor.history()
    return dict(zip(history.names, history["mean"][step], strict=True))


@pytest.mark.parametrize("calls", ["", "u0 u1", "s0 s1", "u0 s0 u1 s1", "s0 s1 update", "u0 s1"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_two_optimizers(calls, fused, set_to_none):
    """Right between backward() and the first division, and after the last one."""
    two = Two(fused)
    with ss.GradientMonitor(two.model, scaler=two.scaler) as monitor:
        for step in range(2):
            for optimizer in two.optimizers:
                optimizer.zero_grad(set_to_none)
            two.backward(step)
            two.call(calls)
            monitor.step()
            two.finish(calls)
            found = means_of(monitor, step)
            for name, want in two.means(step).items():
                np.testing.assert_allclose(found[name], want, rtol=0.07)
            assert found["all parameters"] < 1


@pytest.mark.parametrize("calls", ["u0", "s0", "u1", "s1"])
@pytest.mark.parametrize("fused", [False, True])
def test_between_two_optimizers(calls, fused):
    two = Two(fused)
    with ss.GradientMonitor(two.model, scaler=two.scaler) as monitor:
        two.backward()
        two.call(calls)
        with pytest.raises(RuntimeError, match=BETWEEN):
            monitor.step()
        two.finish(calls)
        monitor.step()
        assert means_of(monitor, 0)["all parameters"] < 1


@pytest.mark.parametrize("fused", [False, True])
def test_step_that_one_of_two_optimizers_skips(fused):
    two = Two(fused)
    with ss.GradientMonitor(two.model, scaler=two.scaler) as monitor:
        two.backward()
        two.model[0].weight.grad[0, 0] = torch.inf
        two.call("s0 s1 update")
        monitor.step()
        found = means_of(monitor, 0)
    assert np.isnan([found[name] for name in ("0.weight", "0.bias", "all parameters")]).all()
    for name, want in two.means().items():
        if not name.startswith("0."):
            np.testing.assert_allclose(found[name], want, rtol=0.07)
    assert 0 < found["1"] < 1


def test_gradient_divided_and_added_to():
    two = Two()
    with ss.GradientMonitor(two.model, scaler=two.scaler, include="0.*") as monitor:
        two.backward()
        two.call("u0")
        two.backward()
        changed = r"'0.weight' was divided .*, and changed after.*: call monitor"
        with pytest.raises(RuntimeError, match=changed):
            monitor.step()


def test_clipped_and_lingering_gradients():
    """Clipping changes a divided gradient, which stays divided, also when nothing replaces it."""
    two = Two()
    with ss.GradientMonitor(two.model, scaler=two.scaler, activations=False) as monitor:
        two.backward()
        two.call("u0 u1")
        nn.utils.clip_grad_norm_(two.model.parameters(), 1e-3)
        two.call("s0 s1 update")
        monitor.step()
        two.scaler.scale(torch.ones(1, requires_grad=True).sum()).backward()
        monitor.step()
    history = monitor.history()
    assert 0 < history["mean"][0, 0] < 1e-3
    np.testing.assert_array_equal(history.values[0], history.values[1])


def test_two_scales_within_a_step():
    """Activations count under both: their values are not known, and not wrong."""
    two = Two()
    with ss.GradientMonitor(two.model, scaler=two.scaler) as monitor:
        for _ in range(2):
            two.model.zero_grad()
            two.backward()
            two.call("s0 s1 update")
        monitor.step()
    found = means_of(monitor, 0)
    assert np.isnan([found[name] for name in ("all activations", "1", "3")]).all()
    assert 0 < found["all parameters"] < 1


def test_two_monitors_of_one_scaler():
    two = Two()
    scaler, kind = two.scaler, type(two.scaler)
    with ss.GradientMonitor(two.model, scaler=scaler, include="0.*") as first:
        with ss.GradientMonitor(two.model, scaler=scaler, include="[12].*") as second:
            two.backward()
            two.call("u0")
            first.step()
            second.step()
        assert copy.deepcopy(torch.amp.GradScaler("cpu")) is not None
        assert type(scaler) is not kind
    assert type(scaler) is kind
    for monitor in (first, second):
        assert monitor.history()["mean"][0, 0] < 1


def test_vanishing_and_sketch():
    (shares, sketches), (want, counts) = (
        (
            monitor.vanishing(below=2.0**-12),
            {name: monitor.sketch(name).counts for name in monitor.history().names},
        )
        for monitor in (train(scaler=grad_scaler(2.0**14), steps=1), train(steps=1))
    )
    assert shares == want
    assert 0 < shares["1"] < 1
    assert all(torch.equal(sketches[name], counts[name]) for name in counts)
    assert counts["1"].sum() == 160


@pytest.mark.parametrize(
    ("scale", "m"), [*((2.0**16, m) for m in (2, 3, 4, 5)), (2.0**-5, 3), (1.0, 4), (1000.0, 3), (1000.0, 5)]
)
def test_unscaled_counts(scale, m):
    """Against sketching the divided values."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-60, 60, (4000,), generator=generator)
    x = torch.randn(4000, generator=generator) * torch.exp2(exponents)
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
