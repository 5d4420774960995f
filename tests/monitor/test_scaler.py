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
    """No loss was scaled since the scale changed: refused rather than wrong, and only if it matters."""
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model[1](model[0](batch(0))).sum()).backward()
        monitor.step()
        known = monitor.history().quantile(0.5)[0, 2]
        scaler.step(optimizer)
        scaler.update()
        with pytest.raises(RuntimeError, match=r"loss scale .*update\(\) ran.*: call scaler.scale\(loss\)"):
            monitor.step()
        assert len(monitor.history()) == 1
    model = network()
    with ss.GradientMonitor(model) as monitor:
        model[1](model[0](batch(0))).sum().backward()
        monitor.step()
    assert known == monitor.history().quantile(0.5)[0, 2]


def two_optimizers(kind, fused=False):
    model = network()
    parts = [model[0], model[2:]]
    optimizers = [kind(part.parameters(), lr=0.0, fused=fused) for part in parts]
    return model, optimizers, torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1)


def gradients_of(model, step=0):
    plain = copy.deepcopy(model)
    plain.zero_grad()
    plain(batch(step)).square().mean().backward()
    return {name: p.grad.abs().double().mean().item() for name, p in plain.named_parameters()}


@pytest.mark.parametrize("calls", ["", "u0 u1", "s0 s1", "u0 s0 u1 s1", "s0 s1 update", "u0 s1"])
@pytest.mark.parametrize("fused", [False, True])
def test_two_optimizers(calls, fused):
    """Right between backward() and the first division, and after the last one."""
    model, optimizers, scaler = two_optimizers(torch.optim.SGD, fused)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        for step in range(2):
            model.zero_grad()
            scaler.scale(model(batch(step)).square().mean()).backward()
            run_calls(calls, scaler, optimizers)
            monitor.step()
            finish(calls, scaler, optimizers)
            for name, want in gradients_of(model, step).items():
                found = monitor.history()["mean"][step, monitor.history().names.index(name)]
                np.testing.assert_allclose(found, want, rtol=0.07)
            assert monitor.history()["mean"][step, 1] < 1


def run_calls(calls, scaler, optimizers):
    for call in calls.split():
        if call == "update":
            scaler.update()
        else:
            (scaler.unscale_ if call[0] == "u" else scaler.step)(optimizers[int(call[1])])


def finish(calls, scaler, optimizers):
    for place, optimizer in enumerate(optimizers):
        if f"s{place}" not in calls:
            scaler.step(optimizer)
    if "update" not in calls:
        scaler.update()


@pytest.mark.parametrize("calls", ["u0", "s0", "u1", "s1"])
@pytest.mark.parametrize("fused", [False, True])
def test_between_two_optimizers(calls, fused):
    model, optimizers, scaler = two_optimizers(torch.optim.SGD, fused)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(batch(0)).square().mean()).backward()
        run_calls(calls, scaler, optimizers)
        with pytest.raises(
            RuntimeError,
            match=r"divided the gradient of '[02].weight' .*not yet that of '[02].weight': call "
            r"monitor.step\(\) after the last backward pass and before .* of the first optimizer, or after",
        ):
            monitor.step()
        finish(calls, scaler, optimizers)
        monitor.step()
        assert monitor.history()["mean"][0, 1] < 1


@pytest.mark.parametrize("fused", [False, True])
def test_step_that_one_of_two_optimizers_skips(fused):
    model, optimizers, scaler = two_optimizers(torch.optim.SGD, fused)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        scaler.scale(model(batch(0)).square().mean()).backward()
        model[0].weight.grad[0, 0] = torch.inf
        run_calls("s0 s1 update", scaler, optimizers)
        monitor.step()
        history = monitor.history()
    means = dict(zip(history.names, history["mean"][0], strict=True))
    assert np.isnan([means[name] for name in ("0.weight", "0.bias", "all parameters")]).all()
    for name, want in gradients_of(model).items():
        if not name.startswith("0."):
            np.testing.assert_allclose(means[name], want, rtol=0.07)
    assert 0 < means["1"] < 1


def test_gradient_divided_and_added_to():
    model, (optimizer, _), scaler = two_optimizers(torch.optim.SGD)
    with ss.GradientMonitor(model, scaler=scaler, include="0.*") as monitor:
        scaler.scale(model(batch(0)).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.scale(model(batch(0)).square().mean()).backward()
        with pytest.raises(
            RuntimeError, match=r"'0.weight' was divided .*, and changed after.*: call monitor"
        ):
            monitor.step()


def test_clipped_and_lingering_gradients():
    """Clipping changes a divided gradient, which stays divided, also when nothing replaces it."""
    model, optimizers, scaler = two_optimizers(torch.optim.SGD)
    with ss.GradientMonitor(model, scaler=scaler, activations=False) as monitor:
        scaler.scale(model(batch(0)).square().mean()).backward()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        run_calls("s0 s1 update", scaler, optimizers)
        monitor.step()
        scaler.scale(torch.ones(1, requires_grad=True).sum()).backward()
        monitor.step()
    history = monitor.history()
    assert 0 < history["mean"][0, 0] < 1e-3
    np.testing.assert_array_equal(history.values[0], history.values[1])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zeroed_gradients(set_to_none):
    model, optimizers, scaler = two_optimizers(torch.optim.SGD)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none)
            scaler.scale(model(batch(0)).square().mean()).backward()
            monitor.step()
            run_calls("s0 s1 update", scaler, optimizers)
    history = monitor.history()
    np.testing.assert_allclose(history["mean"], history["mean"][:1].repeat(3, 0), rtol=1e-6)
    assert history["mean"][0, 1] < 1


def test_two_scales_within_a_step():
    """Activations count under both: their values are not known, and not wrong."""
    model, optimizers, scaler = two_optimizers(torch.optim.SGD)
    with ss.GradientMonitor(model, scaler=scaler) as monitor:
        for _ in range(2):
            model.zero_grad()
            scaler.scale(model(batch(0)).square().mean()).backward()
            run_calls("s0 s1 update", scaler, optimizers)
        monitor.step()
    assert np.isnan(monitor.history()["mean"][0, [0, 2, 3]]).all()
    assert 0 < monitor.history()["mean"][0, 1] < 1


def test_two_monitors_of_one_scaler():
    model, optimizers, scaler = two_optimizers(torch.optim.SGD)
    kind = type(scaler)
    with ss.GradientMonitor(model, scaler=scaler, include="0.*") as first:
        with ss.GradientMonitor(model, scaler=scaler, include="[12].*") as second:
            scaler.scale(model(batch(0)).square().mean()).backward()
            run_calls("u0", scaler, optimizers)
            first.step()
            second.step()
        assert copy.deepcopy(torch.amp.GradScaler("cpu")) is not None
        assert type(scaler) is not kind
    assert type(scaler) is kind
    for monitor in (first, second):
        assert monitor.history()["mean"][0, 0] < 1


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


@pytest.mark.parametrize(
    ("scale", "m"), [*((2.0**16, m) for m in (2, 3, 4, 5)), (2.0**-5, 3), (1.0, 4), (1000.0, 3), (1000.0, 5)]
)
def test_unscaled_counts(scale, m):
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
