"""What a monitor records is the truth about the gradients, of every step and in every row."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from tests.oracles.collected import Twin, assert_row, assert_step, batch, network, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("magnitude", "mantissa_bits"), [(True, 2), (True, 3), (False, 3), (False, 5)])
def test_all_rows_of_all_steps(magnitude, mantissa_bits, device):
    history, truth = run(
        (network(device), device),
        steps=5,
        magnitude=magnitude,
        mantissa_bits=mantissa_bits,
        thresholds=(1e-8, 2.0**-9, 0.1),
    )
    assert history.steps.tolist() == [0, 1, 2, 3, 4]
    assert history.names == [
        *("all activations", "all parameters", "1", "3", "5"),
        *("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias", "6.weight", "6.bias"),
    ]
    assert history.kinds == ["total"] * 2 + ["activation"] * 3 + ["parameter"] * 8
    for step in range(5):
        assert_step(history, step, truth[step])
        share = history.below(2.0**-9)[step]  # exact where the threshold is an edge of bins
        want = [(abs(truth[step][name]) < 2.0**-9).mean() for name in history.names]
        np.testing.assert_allclose(share, want, rtol=1e-14)


def test_chosen_quantiles():
    history, truth = run(network(), quantiles=[0.999, 0.0, 0.5, 1.0], thresholds=())
    assert history.quantiles == (0.999, 0.0, 0.5, 1.0)
    assert history.columns[4:] == ("mean", "q99.9", "q00", "q50", "q100")
    assert_step(history, 0, truth[0])


def test_special_values():
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh())
    special = torch.tensor([[torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45]])
    with ss.GradientMonitor(model, magnitude=False) as monitor:
        for g in (special.expand(4, 6), torch.full((4, 6), torch.nan), torch.zeros(4, 6)):
            model[0].weight.grad = g.clone()
            monitor.step()
    history = monitor.history()
    row = history.names.index("0.weight")
    counts = [history[name][:, row].tolist() for name in ("count", "zeros", "infs", "nans")]
    assert counts == [[24, 24, 24], [8, 0, 24], [8, 0, 0], [4, 24, 0]]
    assert len({value.tobytes() for value in history.values[np.isnan(history.values)]}) == 1
    assert history.quantile(0.05)[0, row] == -np.inf
    assert history.quantile(0.5)[0, row] == 0
    assert np.isnan(history.quantile(0.5)[1, row])
    assert history.quantile(0.95)[2, row] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    history, truth = run(
        network().to(dtype),
        backward=lambda model, step: model(batch(step).to(dtype)).square().mean().backward(),
    )
    assert_step(history, 0, truth[0])


def test_every_third_step():
    def backward(model, step):
        sketch = model[1].grad_sketch
        backward.listening.append(sketch is not None and not sketch.is_idle())
        model(batch(step)).square().sum().backward()

    backward.listening = []
    model = network()
    history, truth = run(model, steps=8, every=3, backward=backward)
    assert history.steps.tolist() == [0, 3, 6]
    for place, step in enumerate((0, 3, 6)):
        assert_step(history, place, truth[step])
    there = backward.listening[::2]  # the monitored model's
    assert there == [True, False, False, True, False, False, True, False]


def test_pause():
    """The step in progress is left out, and nothing of it is in a later one."""
    model = network()
    twin, truth = Twin(model), []
    with ss.GradientMonitor(model, every=2) as monitor:
        for step in range(12):
            for trained in (model, twin.model):
                trained.zero_grad()
                trained(batch(step)).square().sum().backward()
            if step == 4:
                monitor.pause()
            if step == 7:
                monitor.resume()
            monitor.step()
            truth.append(twin.step())
    history = monitor.history()
    assert history.steps.tolist() == [0, 2, 8, 10]
    assert history.step_count == 12
    for place, step in enumerate(history.steps):
        assert_step(history, place, truth[step])


@pytest.mark.parametrize(
    ("include", "exclude", "names"),
    [
        ("head.*", (), ["head.1", "head.3", "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"]),
        ((), ["head.*", "*.bias"], ["body.1", "body.3", "body.0.weight", "body.2.weight"]),
        (["*.1", "*weight"], "head*", ["body.1", "body.0.weight", "body.2.weight"]),
        (["body.?"], (), ["body.1", "body.3"]),
        ("body.0.bias", (), ["body.0.bias"]),
    ],
)
def test_include_and_exclude(include, exclude, names):
    def part():
        return nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), ss.nn.Tanh())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = part(), part()

        def forward(self, x):
            return self.head(self.body(x))

    history, truth = run(Model(), include=include, exclude=exclude)
    totals = [total for total in ("all activations", "all parameters") if total in history.names]
    assert history.names == [*totals, *names]
    parts = {"all activations": [], "all parameters": []}
    for name in names:
        assert_row(history, 0, name, truth[0][name])
        parts["all activations" if name[-1].isdigit() else "all parameters"].append(truth[0][name])
    assert totals == [total for total, members in parts.items() if members]
    for total in totals:
        assert_row(history, 0, total, np.concatenate(parts[total]))


@pytest.mark.parametrize("kind", ["activation", "parameter"])
def test_one_kind_alone(kind):
    history, truth = run(network(), activations=kind == "activation", parameters=kind == "parameter")
    assert set(history.kinds) == {"total", kind}
    assert history.names[0] == {"activation": "all activations", "parameter": "all parameters"}[kind]
    for name in history.names:
        assert_row(history, 0, name, truth[0][name])


def test_deterministic_history():
    histories = [run(network(), steps=5)[0] for _ in range(2)]
    assert histories[0].values.tobytes() == histories[1].values.tobytes()
    assert histories[0].steps.tobytes() == histories[1].steps.tobytes()
    assert histories[0].names == histories[1].names


def test_ring_sizes():
    whole, truth = run(network(), steps=10, ring=100)
    assert_step(whole, 9, truth[9])
    for ring in (1, 2, 3, 7):
        history, _ = run(network(), steps=10, ring=ring)
        assert history.steps.tolist() == list(range(10))
        assert history.values.tobytes() == whole.values.tobytes()


def test_reading_in_between():
    model = network()
    with ss.GradientMonitor(model, ring=6) as monitor:
        for step in range(15):
            model.zero_grad()
            model(batch(step)).sum().backward()
            monitor.step()
            if step % 4 == 0:
                assert monitor.history().steps.tolist() == list(range(step + 1))
                monitor.summary(), monitor.vanishing(), monitor.sketch("1")
    want = ss.GradientMonitor(model)
    for step in range(15):
        model.zero_grad()
        model(batch(step)).sum().backward()
        want.step()
    want.close()
    assert monitor.history().values.tobytes() == want.history().values.tobytes()


def test_overwritten_steps():
    """As replays of a CUDA graph would, of which the host knows nothing."""
    model = network()
    with ss.GradientMonitor(model, ring=4) as monitor:
        recorder = monitor._recorder
        for step in range(11):
            model.zero_grad()
            model(batch(step)).sum().backward()
            monitor.step()
            recorder._since_copy, recorder.captured = 0, True
        with pytest.warns(RuntimeWarning, match="7 steps .* ring holds 4.*larger ring=") as caught:
            history = monitor.history()
        assert caught[0].filename == __file__
        assert history.steps.tolist() == [7, 8, 9, 10]
        assert history.step_count == 11
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(monitor.history()) == 4
    want, _ = run(network(), 1, backward=lambda m, _: m(batch(10)).sum().backward())
    assert history.values[-1].tobytes() == want.values[-1].tobytes()
