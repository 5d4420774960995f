"""Training as in Section 3.3 of the paper: the pipelines of Figure 3, each with a seed a `Run`.

The penalty r/2 * sum(theta^2) (Section 2.2) has the gradient r * theta: exactly what `weight_decay=r` adds in
`torch.optim.Adam` (not in AdamW).  Not stated in the paper and chosen here: 100 epochs, batches of 32, pixels
from 0 to 1; each epoch shuffles anew and drops its last incomplete batch (1,562 steps of 32 images).

The host never waits for the device within an epoch: losses, hits and gradients stay there until it ends.
Gradients are measured twice: over all parameters in every step, for the numbers of an epoch, and layer by
layer by a `sigscale.GradientMonitor`, in so many of the steps that a run of any length keeps some hundreds.
Runs of the same seed share initial parameters and order of the images, whatever the pipeline and device.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.gradients import QUANTILES, EpochGradients
from examples.cifar10.networks import TABLE_3, build, initialize

PIXELS = ("unit", "byte", "standard")
EVALUATION_BATCH = 1000

RECORDS = 500
"""So many steps of a run its monitor measures at most, from the first one on, equally far apart: 1 MB."""
VANISHED = 1e-8
"""The monitor records the share of gradients that are smaller."""


@dataclass(frozen=True)
class Pipeline:
    """One line of Figure 3; `penalty` is the paper's r."""

    name: str
    label: str
    activation: Callable[[], nn.Module]
    penalty: float = 0.0


FIGURE_3 = (
    Pipeline("tanh", "tanh", nn.Tanh),
    Pipeline("tanh-scaled-penalty", "tanh, alpha = 2, r = 0.01", lambda: ss.nn.Tanh(alpha=2.0), penalty=0.01),
    Pipeline("relu", "relu", nn.ReLU),
    Pipeline("relu-penalty", "relu, r = 0.01", nn.ReLU, penalty=0.01),
)


@dataclass(frozen=True)
class Settings:
    """All that decides a result besides the data, the device and the seed; `steps` caps those of an epoch."""

    epochs: int = 100
    batch: int = 32
    lr: float = 0.001
    steps: int | None = None
    pixels: str = "unit"
    conv: str = "plain"
    bias: bool = False

    def steps_per_epoch(self, images: int) -> int:
        whole = images // self.batch
        return whole if self.steps is None else min(whole, self.steps)


class Run:
    """One pipeline, one seed: `train_epoch()` until `done`; its state can be saved and loaded in between."""

    def __init__(
        self, pipeline: Pipeline, seed: int, settings: Settings, data: Cifar10, device: torch.device
    ) -> None:
        """`data` is on `device` already."""
        self.pipeline, self.seed, self.settings, self.data = pipeline, seed, settings, data
        network = build(TABLE_3, pipeline.activation, conv=settings.conv, bias=settings.bias)
        initialize(network, _generator(seed, 0))
        self.network = network.to(device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=settings.lr, weight_decay=pipeline.penalty, fused=True
        )
        self.steps = settings.steps_per_epoch(len(data.train.labels))
        self.gradients = EpochGradients(self.network.parameters(), pipeline.penalty)
        every = -(-settings.epochs * self.steps // RECORDS)
        self.monitor = ss.GradientMonitor(self.network, QUANTILES, every=every, thresholds=(VANISHED,))
        self.losses = torch.empty(self.steps, device=device)
        self.to_floats = pixel_transform(settings.pixels, data.train.images)
        self.history: list[dict[str, float]] = []

    @property
    def done(self) -> bool:
        return len(self.history) == self.settings.epochs

    def train_epoch(self, after_step: Callable[[], object] = lambda: None) -> None:
        """Train for one epoch, evaluate, and append the epoch's numbers to `history`."""
        epoch = len(self.history) + 1
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            start = time.perf_counter()
            hits = self._train(epoch, after_step)
            row = {
                "epoch": epoch,
                "train_accuracy": hits.item() / (self.steps * self.settings.batch),
                "train_loss": self.losses.mean(dtype=torch.float64).item(),
                "seconds": time.perf_counter() - start,
                "test_accuracy": self.accuracy(self.data.test),
            }
        self.history.append({**row, **self.gradients.summary()})

    def _train(self, epoch: int, after_step: Callable[[], object]) -> Tensor:
        """All steps of one epoch; how many images were recognized, before the step they were part of."""
        train, batch = self.data.train, self.settings.batch
        order = torch.randperm(len(train.labels), generator=_generator(self.seed, epoch))
        order = order[: self.steps * batch].to(train.labels.device)
        hits = torch.zeros((), dtype=torch.int64, device=order.device)
        self.gradients.reset()
        for step, chosen in enumerate(order.view(self.steps, batch)):
            labels = train.labels[chosen]
            logits = self.network(self.to_floats(train.images[chosen]))
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.gradients.record()
            self.monitor.step()
            self.optimizer.step()
            self.losses[step] = loss.detach()
            hits += (logits.argmax(1) == labels).sum()
            after_step()
        return hits

    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        batches = zip(
            *(torch.split(part, EVALUATION_BATCH) for part in (split.images, split.labels)), strict=True
        )
        hits = [(self.network(self.to_floats(x)).argmax(1) == y).sum() for x, y in batches]
        return torch.stack(hits).sum().item() / len(split.labels)

    def state_dict(self) -> dict[str, Any]:
        """All but what the monitor recorded, which has a file of its own."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]

    def load_gradients(self, path: Path) -> None:
        """Continue what the monitor saved to `path`, after `load_state_dict()`.

        The file may be ahead of the state, if a run ended between writing the one and the other: steps that
        the state has not made yet are cut off, there as well.
        """
        saved = ss.GradientHistory.load(path)
        made = len(self.history) * self.steps
        if saved.step_count < made:
            raise ValueError(f"the gradients end with step {saved.step_count}, the run with step {made}")
        if saved.step_count > made:
            kept = saved.steps < made
            cut = replace(saved, steps=saved.steps[kept], values=saved.values[kept], step_count=made)
            cut.save(path)
        self.monitor.load(path)


def pixel_transform(pixels: str, train_images: Tensor) -> Callable[[Tensor], Tensor]:
    """uint8 images -> float32: 0 to 1 (unit), 0 to 255 (byte), each channel mean 0, variance 1 (standard)."""
    if pixels == "byte":
        return Tensor.float
    if pixels == "unit":
        return lambda images: images.float().div_(255)
    if pixels == "standard":
        counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in train_images.unbind(1)])
        weights = counts.double() / counts.sum(1, keepdim=True)
        levels = torch.arange(256.0, dtype=torch.float64, device=counts.device)
        mean = weights @ levels
        deviation = (weights @ levels**2 - mean**2).sqrt()
        mean, deviation = (t.float()[:, None, None] for t in (mean, deviation))
        return lambda images: images.float().sub_(mean).div_(deviation)
    raise ValueError(f"pixels={pixels!r}: must be one of {', '.join(PIXELS)}")


def _generator(seed: int, epoch: int) -> torch.Generator:
    """One for each seed and epoch (0: the initial parameters), so that a resumed run needs no history."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]  # the CPU's generator uses 32 bits
    return torch.Generator().manual_seed(int(mixed))
