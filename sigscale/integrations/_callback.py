"""What the callbacks of trainers share: a monitor and a logger that live as long as a training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .._checks import warn
from ..monitor import GradientMonitor
from ._logger import Logger

MakeLogger = Callable[[GradientMonitor], Logger]


class MonitorCallback:
    """Makes a monitor and its logger when a training begins, and closes them when it ends.

    `monitor` is that of the last training, None before the first; its history can be read at any time.
    """

    def __init__(self, logger: MakeLogger | None, options: dict[str, Any]) -> None:
        inspect.signature(GradientMonitor).bind(None, **options)
        self.monitor: GradientMonitor | None = None
        self._make_logger, self._options = logger, options
        self._logger: Logger | None = None

    def _open(self, model: nn.Module, **defaults: Any) -> GradientMonitor:
        self._close()
        self.monitor = GradientMonitor(model, **{**defaults, **self._options})
        return self.monitor

    def _log_with(self, make_logger: MakeLogger | None) -> None:
        """Log the records from here on."""
        if self.monitor is not None and make_logger is not None:
            self._logger = make_logger(self.monitor)

    def _begin_anew(self, step: int) -> None:
        """Say that the records of a resumed training begin with step 0."""
        warn(
            f"the training resumes at step {step} from a checkpoint without a history of gradients: "
            "the history begins anew, with step 0"
        )

    def _step(self) -> None:
        if self.monitor is not None:
            self.monitor.step()
        if self._logger is not None:
            self._logger.step()

    def _close(self) -> None:
        if self._logger is not None:
            self._logger.close()
            self._logger = None
        if self.monitor is not None:
            self.monitor.close()
