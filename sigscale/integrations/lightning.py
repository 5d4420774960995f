"""A monitor in a Lightning training: `GradientMonitorCallback`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..monitor import GradientMonitor
from ._callback import MakeLogger, MonitorCallback
from ._logger import ScalarLogger


class GradientMonitorCallback(MonitorCallback, Callback):
    """Records the gradients of each optimizer step: accumulated, unscaled, and before they are clipped.

    Checkpoints hold the history, and a resumed training continues it. `callback.monitor` is the
    `GradientMonitor`, from the start of the training on.

    Args:
        logger: a function that makes a logger for the monitor, such as
            `lambda monitor: FileLogger(monitor, "gradients.jsonl")`; by default, the trainer's loggers get
            the quantiles and the shares below.
        options: arguments of `GradientMonitor`; the scaler is the trainer's.

    Raises:
        TypeError: `GradientMonitor` has no such option.
        ValueError: the training uses several optimizers.

    Example:
        >>> import lightning.pytorch as pl
        >>> from sigscale.integrations.lightning import GradientMonitorCallback
        >>> trainer = pl.Trainer(callbacks=[GradientMonitorCallback(every=10, ring=8)])  # doctest: +SKIP
    """

    def __init__(self, *, logger: MakeLogger | None = None, **options: Any) -> None:
        super().__init__(logger, options)
        self._state: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) > 1:
            raise ValueError(
                f"a step must be that of one optimizer; the training has {len(trainer.optimizers)}: "
                "make a sigscale.GradientMonitor in the LightningModule and call its step() in training_step"
            )
        state = self.state_dict()
        monitor = self._open(trainer.model, scaler=getattr(trainer.precision_plugin, "scaler", None))
        if state and trainer.global_step:
            monitor.load_state_dict(state)
        elif trainer.global_step:
            self._begin_anew(trainer.global_step)
        self._log_with(self._make_logger or (lambda monitor: TrainerLogger(monitor, trainer)))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return self._state if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self.monitor = state_dict, None


class TrainerLogger(ScalarLogger):
    """Writes scalars to all loggers of a Lightning trainer."""

    def __init__(self, monitor: GradientMonitor, trainer: Trainer) -> None:
        super().__init__(monitor)
        self.trainer = trainer

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(scalars, step)
