"""What TensorBoard reads from its files is the monitor's history."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from sigscale.integrations.tensorboard import TensorBoardLogger
from tests.oracles.logged import scalars, train

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

pytestmark = pytest.mark.usefixtures("one_thread")


def read(folder) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()


@pytest.mark.parametrize("statistics", [None, ["count", "mean"]])
def test_scalars(statistics, tmp_path):
    with SummaryWriter(tmp_path) as writer:
        history = train(partial(TensorBoardLogger, writer=writer, statistics=statistics))
    want = scalars(history, statistics or ["q05", "q25", "q50", "q75", "q95", "below_1e-08"])
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == sorted(tag for tag, numbers in want.items() if numbers)
    for tag in events.Tags()["scalars"]:
        found = {event.step: event.value for event in events.Scalars(tag)}
        assert found == {step: np.float32(number) for step, number in want[tag].items()}, tag
