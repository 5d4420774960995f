"""A monitor's records in Weights & Biases: `WandbLogger`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import wandb

from ..monitor import GradientMonitor
from ..sketch import Histogram
from ._histograms import HistogramLogger

STEP = "gradients/step"


class WandbLogger(HistogramLogger):
    """Writes scalars such as "gradients/q50/0.weight", and histograms such as "gradients/histogram/0.weight".

    Their x-axis is the metric "gradients/step", because records arrive later than what the training logs.
    Each record is a step of W&B's own counter: leave `step=` out of your run.log() calls.

    Args:
        monitor: the monitor whose records are written.
        run: what wandb.init() returned; by default the current run.
        statistics: which columns of the history to write; by default its quantiles and shares below.
        histogram_every: steps from one histogram of each row to the next; None writes none.

    Raises:
        RuntimeError: there is no run.
    """

    def __init__(
        self,
        monitor: GradientMonitor,
        run: wandb.Run | None = None,
        *,
        statistics: Sequence[str] | None = None,
        histogram_every: int | None = None,
    ) -> None:
        super().__init__(monitor, statistics=statistics, histogram_every=histogram_every)
        self.run: Any = wandb.run if run is None else run
        if not self.writes:
            return
        if self.run is None:
            raise RuntimeError("there is no run to log to: call wandb.init() first, or pass run=")
        self.run.define_metric(STEP, hidden=True)
        self.run.define_metric("gradients/*", step_metric=STEP)

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log({STEP: step, **scalars})

    def write_histograms(self, step: int, histograms: dict[str, Histogram]) -> None:
        drawn = {tag: wandb.Histogram(np_histogram=histogram) for tag, histogram in histograms.items()}
        self.run.log({STEP: step, **drawn})
