"""A monitor in a training by Transformers' Trainer: `GradientMonitorCallback`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .._checks import warn
from ._callback import MakeLogger, MonitorCallback

HISTORY = "gradients.npz"


class GradientMonitorCallback(MonitorCallback, TrainerCallback):
    """Records the gradients of each optimizer step, accumulated and unscaled.

    The Trainer clips the gradients of parameters before its callbacks see them, with max_grad_norm=1.0 if
    you do not set it, and the callback warns that it does; those of activations are not clipped. Checkpoints
    hold the history as gradients.npz, and a training resumed from a checkpoint in `output_dir` continues it.
    `callback.monitor` is the `GradientMonitor`, from the start of the training on.

    Args:
        logger: a function that makes a logger for the monitor, such as `WandbLogger` or
            `lambda monitor: FileLogger(monitor, "gradients.jsonl")`; by default none.
        options: arguments of `GradientMonitor`; the scaler is the Trainer's. By default, group is all
            processes of a distributed training.

    Raises:
        TypeError: `GradientMonitor` has no such option.

    Example:
        >>> from transformers import Trainer
        >>> from sigscale.integrations.transformers import GradientMonitorCallback
        >>> trainer = Trainer(model, args, callbacks=[GradientMonitorCallback(every=10)])  # doctest: +SKIP
    """

    def __init__(self, *, logger: MakeLogger | None = None, **options: Any) -> None:
        super().__init__(logger, options)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.max_grad_norm and self._options.get("parameters", True):
            warn(
                "the gradients of parameters are recorded after the Trainer has clipped their norm to "
                f"{args.max_grad_norm:g}; set TrainingArguments(max_grad_norm=0) to record them unclipped"
            )
        group = dist.group.WORLD if dist.is_available() and dist.is_initialized() else "auto"
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        monitor = self._open(kwargs["model"], scaler=scaler, group=group)
        history = checkpoint(args, state) / HISTORY
        if state.global_step and history.exists():
            monitor.load(history)
        elif state.global_step:
            self._begin_anew(state.global_step)
        self._log_with(self._make_logger)

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._step()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.should_save and self.monitor is not None:
            self.monitor.save(checkpoint(args, state) / HISTORY)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._close()


def checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint after the last step."""
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
