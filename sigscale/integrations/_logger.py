"""What all loggers share: each record is written once, when it has reached the host, by one process."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.distributed as dist

from ..monitor import GradientHistory, GradientMonitor


class Logger(ABC):
    """Writes the records of a monitor; in a distributed training, the process of rank 0 does.

    Call step() after each monitor.step(), and close() at the end, or use the logger in a with block. step()
    never waits for the device: it writes what has reached the host, which is every ring / 2 measured steps
    (of a captured CUDA graph's replays, when monitor.history() is called).
    All processes must call monitor.step(); step() and close() do nothing in those of other ranks.

    Args:
        monitor: the monitor whose records are written; those of a loaded history are not written again.
    """

    def __init__(self, monitor: GradientMonitor) -> None:
        if not isinstance(monitor, GradientMonitor):
            raise TypeError(
                f"a logger takes a GradientMonitor; got {type(monitor).__name__}: "
                "make one with sigscale.GradientMonitor(model)"
            )
        self.monitor = monitor
        self.writes = not (dist.is_available() and dist.is_initialized() and dist.get_rank())
        self._next = 0  # the first step that is not written yet

    def step(self) -> None:
        """Write the records that have reached the host since the last call."""
        if self.writes:
            self._pass_on(wait=False)

    def close(self) -> None:
        """Write all records that are left; waits for the device."""
        if self.writes:
            self._pass_on(wait=True)

    @abstractmethod
    def write(self, records: GradientHistory) -> None:
        """Write consecutive records."""

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _pass_on(self, *, wait: bool) -> None:
        if wait:
            self.monitor.last()
        records = self.monitor.arrived(self._next)
        if len(records):
            self._next = int(records.steps[-1]) + 1
            self.write(records)


class ScalarLogger(Logger):
    """A logger that writes numbers under tags such as "gradients/q50/0.weight".

    Args:
        monitor: the monitor whose records are written.
        statistics: which columns of the history to write; by default its quantiles and shares below.

    Raises:
        ValueError: the history has no such column.
    """

    def __init__(self, monitor: GradientMonitor, *, statistics: Sequence[str] | None = None) -> None:
        super().__init__(monitor)
        columns = monitor.last().columns
        default = columns[columns.index("mean") + 1 :]
        self.statistics = default if statistics is None else tuple(statistics)
        for statistic in self.statistics:
            if statistic not in columns:
                raise ValueError(
                    f"statistics must be among {', '.join(columns)}; got {statistic!r}: "
                    'pass a list of them, such as ["mean", "q50"]'
                )

    def write(self, records: GradientHistory) -> None:
        columns = [records.get(statistic).tolist() for statistic in self.statistics]
        for place, step in enumerate(records.steps.tolist()):
            scalars = {
                tag(statistic, name): number
                for statistic, column in zip(self.statistics, columns, strict=True)
                for name, number in zip(records.names, column[place], strict=True)
                if not math.isnan(number)
            }
            self.write_scalars(step, scalars)

    @abstractmethod
    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Write the numbers of a step."""


def tag(statistic: str, name: str) -> str:
    """What a number or histogram is called where tags have no spaces."""
    return f"gradients/{statistic}/{name.replace(' ', '_')}"
