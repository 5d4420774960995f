"""Histograms of the last measured step, on their way to the host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .._checks import check_integer
from ..kernels import device as devices
from ..monitor import GradientMonitor
from ..monitor._loss_scale import unscaled
from ..sketch import Histogram, QuantileSketch
from ._logger import ScalarLogger, tag

BINS = 512  # at most, as W&B demands


class Copy(NamedTuple):
    """The counts of a step, and what their values are multiplied by, on their way to the host."""

    step: int
    names: list[str]
    counts: Tensor
    scale: Tensor


class HistogramLogger(ScalarLogger):
    """A logger that writes scalars, and histograms every `histogram_every` steps.

    A histogram takes one copy of the counts to the host, 32 KiB per row, which nothing waits for.
    """

    def __init__(
        self,
        monitor: GradientMonitor,
        *,
        statistics: Sequence[str] | None = None,
        histogram_every: int | None = None,
    ) -> None:
        super().__init__(monitor, statistics=statistics)
        self._every = None
        if histogram_every is not None:
            remedy = "100 writes one every 100 steps"
            self._every = check_integer(histogram_every, "histogram_every", remedy, wrong_type=ValueError)
        self._copied = monitor._recorder.newest  # the last step looked at
        self._in_flight: devices.InFlight[Copy] = devices.InFlight(monitor._recorder.device)

    @abstractmethod
    def write_histograms(self, step: int, histograms: dict[str, Histogram]) -> None:
        """Write the histograms of a step."""

    def _copy_if_due(self, every: int) -> None:
        """Copy the counts of the first step measured at or after each multiple of `every`."""
        recorder, names = self.monitor._recorder, [*self.monitor._rows.names]
        step = recorder.newest
        if step == self._copied or step % every >= recorder.every or recorder.capturing:
            return
        self._copied = step
        counts, scale = (
            there[: len(names)].to("cpu", non_blocking=True, copy=True)
            for there in (recorder.records.last, recorder.records.scale)
        )
        self._in_flight.add(Copy(step, names, counts, scale))

    def _pass_on(self, *, wait: bool) -> None:
        super()._pass_on(wait=wait)
        if self._every is not None and not wait:
            self._copy_if_due(self._every)
        for copy in self._in_flight.landed(wait=wait):
            self.write_histograms(copy.step, self._histograms(copy))

    def _histograms(self, copy: Copy) -> dict[str, Histogram]:
        """Those of the rows that had a gradient, in units of the gradient."""
        sketch, found = QuantileSketch(self.monitor._recorder.statistics.mantissa_bits), {}
        for name, counts, scale in zip(copy.names, copy.counts, copy.scale.tolist(), strict=True):
            if scale == scale and counts.any():
                state = {**sketch.state_dict(), "counts": unscaled(counts, scale, sketch.mantissa_bits)}
                sketch.load_state_dict(state)
                found[tag("histogram", name)] = sketch.to_histogram(bins=BINS)
        return found
