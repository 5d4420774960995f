"""A monitor's records in TensorBoard: `TensorBoardLogger`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..monitor import GradientMonitor
from ..sketch import Histogram
from ._histograms import HistogramLogger

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLogger(HistogramLogger):
    """Writes scalars such as "gradients/q50/0.weight", and histograms such as "gradients/histogram/0.weight".

    Args:
        monitor: the monitor whose records are written.
        writer: a torch.utils.tensorboard.SummaryWriter; it stays open. After a resumed history, make it with
            purge_step=monitor.history().step_count.
        statistics: which columns of the history to write; by default its quantiles and shares below.
        histogram_every: steps from one histogram of each row to the next; None writes none.

    Example:
        >>> import torch, sigscale as ss
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> from sigscale.integrations.tensorboard import TensorBoardLogger
        >>> model = torch.nn.Linear(2, 1)
        >>> monitor, writer = ss.GradientMonitor(model), SummaryWriter("runs")
        >>> with TensorBoardLogger(monitor, writer, histogram_every=100) as log:
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     monitor.step()
        ...     log.step()
    """

    def __init__(
        self,
        monitor: GradientMonitor,
        writer: SummaryWriter,
        *,
        statistics: Sequence[str] | None = None,
        histogram_every: int | None = None,
    ) -> None:
        super().__init__(monitor, statistics=statistics, histogram_every=histogram_every)
        self.writer = writer

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for tag, number in scalars.items():
            self.writer.add_scalar(tag, number, step)

    def write_histograms(self, step: int, histograms: dict[str, Histogram]) -> None:
        for tag, (counts, edges) in histograms.items():
            middle = (edges[:-1] + edges[1:]) / 2
            self.writer.add_histogram_raw(
                tag,
                min=edges[0],
                max=edges[-1],
                num=counts.sum(),
                sum=counts @ middle,
                sum_squares=counts @ middle**2,
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist(),
                global_step=step,
            )
