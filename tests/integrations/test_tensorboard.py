"""What TensorBoard reads from its files is the monitor's history."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.integrations.tensorboard import TensorBoardLogger
from sigscale.kernels import device as devices
from tests.oracles.logged import histograms, run_example, scalars, train

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()


@pytest.mark.parametrize("statistics", [None, ["count", "mean"]])
@pytest.mark.works_with("TensorBoard", "monitor")
def test_scalars(statistics, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        history = train(partial(TensorBoardLogger, writer=writer, statistics=statistics))
    want = scalars(history, statistics or ["q05", "q25", "q50", "q75", "q95", "below_1e-08"])
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == sorted(tag for tag, numbers in want.items() if numbers)
    for tag in events.Tags()["scalars"]:
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == {step: np.float32(number) for step, number in want[tag].items()}, tag


@pytest.mark.parametrize(
    ("every", "histogram_every", "steps"), [(1, 3, [0, 3, 6]), (2, 3, [0, 4, 6]), (3, 1, [0, 3, 6])]
)
def test_histograms(every, histogram_every, steps, tmp_path):
    sketches = {}
    with SummaryWriter(tmp_path) as writer:
        make_logger = partial(TensorBoardLogger, writer=writer, histogram_every=histogram_every)
        train(make_logger, every=every, sketches=sketches)
    events, want = read(tmp_path), histograms(sketches, steps)
    assert sorted(events.Tags()["histograms"]) == sorted(want)
    for tag, expected in want.items():
        assert [event.step for event in events.Histograms(tag)] == [*expected]
        for event in events.Histograms(tag):
            counts, edges = expected[event.step]
            found = event.histogram_value
            assert (found.bucket, found.bucket_limit) == (counts, edges[1:])
            assert (found.min, found.max, found.num) == (edges[0], edges[-1], sum(counts))


def test_moments_of_a_histogram(tmp_path):
    model = nn.Linear(1000, 1, bias=False)
    model.weight.grad = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    with (
        ss.GradientMonitor(model, mantissa_bits=5) as monitor,
        SummaryWriter(tmp_path) as writer,
        TensorBoardLogger(monitor, writer, histogram_every=1) as log,
    ):
        monitor.step()
        log.step()
    (event,) = read(tmp_path).Histograms("gradients/histogram/weight")
    g = model.weight.grad.double()
    np.testing.assert_allclose(event.histogram_value.sum, g.sum(), atol=20)
    np.testing.assert_allclose(event.histogram_value.sum_squares, g.square().sum(), rtol=0.1)


def test_step_waits_for_nothing(tmp_path, monkeypatch):
    """A device that is never done in time: close() waits for it, step() does not."""
    waited = []
    event = SimpleNamespace(query=lambda: False, synchronize=lambda: waited.append(True))
    monkeypatch.setattr(devices, "arrival", lambda device: event)
    model = nn.Linear(2, 1)
    model(torch.ones(2)).backward()
    with ss.GradientMonitor(model, ring=2) as monitor, SummaryWriter(tmp_path) as writer:
        log = TensorBoardLogger(monitor, writer, histogram_every=1)
        for _ in range(3):
            monitor.step()
            log.step()
        writer.flush()
        assert not waited
        assert read(tmp_path).Tags()["scalars"] == read(tmp_path).Tags()["histograms"] == []
        log.close()
    assert waited
    for tag in ("gradients/q50/weight", "gradients/histogram/weight"):
        assert tag in [*read(tmp_path).Tags()["scalars"], *read(tmp_path).Tags()["histograms"]]


def test_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(TensorBoardLogger)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"statistics": ["mean", "q51"]},
            r"statistics must be among count, .*; got 'q51': pass a list of them",
        ),
        ({"statistics": "mean"}, r"statistics must be among count, .*; got 'm': pass a list of them"),
        ({"histogram_every": 0}, r"histogram_every must be an integer from 1 on; got 0: 100 writes one"),
        ({"histogram_every": "10"}, r"histogram_every must be an integer from 1 on; got '10': 100 writes"),
    ],
)
def test_refusals(options, message):
    with ss.GradientMonitor(nn.Linear(2, 1)) as monitor, pytest.raises(ValueError, match=message):
        TensorBoardLogger(monitor, None, **options)
