"""Training as in Section 3 of the paper: a `Run` trains one pipeline with many seeds at once.

The penalty r/2 * sum(theta^2) (Section 2.2) has the gradient r * theta: exactly what `weight_decay=r` adds in
`torch.optim.Adam` (not in AdamW).  The paper does not state, and we chose: 100 epochs, batches of 32, pixels
from 0 to 1.  Each epoch shuffles anew and drops the last incomplete batch (1,562 steps of 32 images).

Data, image order, losses, hits and gradients stay on the device; apart from the monitor's records, one small
copy reaches the host at the end of an epoch.  A GPU replays whole steps from a CUDA graph; on a CPU, `native`
computes them if there is a compiler and it knows the layers.
Gradients are measured twice: over all parameters in every step, for the epoch's numbers, and layer by layer
over all seeds by a `sigscale.GradientMonitor`, in a few steps of every epoch, which PyTorch computes.
A seed gets the same initial parameters and image order whatever the pipeline, the device and the other seeds.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import sigscale as ss
from examples.cifar10 import native, networks
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.gradients import COLUMNS, QUANTILES, VANISHED, EpochGradients
from examples.cifar10.pipelines import Pipeline
from examples.cifar10.runtime import Captured, generator, orders

PIXELS = ("unit", "byte", "standard")
EVALUATION_BATCH = 250

RECORDS = 5
"""The monitor measures at most this many steps an epoch, from the first one on, equally far apart."""

NUMBERS = ("test_accuracy", "train_accuracy", "train_loss", *COLUMNS)
"""What is kept of an epoch and a seed."""


@dataclass(frozen=True)
class Settings:
    """All that decides a result besides pipeline, data, device and seed; `steps` caps those of an epoch.

    `conv` and `bias` read the paper's tables in another way than `networks` does; None is its reading.
    """

    epochs: int = 100
    batch: int = 32
    lr: float = 0.001
    steps: int | None = None
    pixels: str = "unit"
    conv: str | None = None
    bias: bool | None = None

    def steps_per_epoch(self, images: int) -> int:
        whole = images // self.batch
        return whole if self.steps is None else min(whole, self.steps)


class Run:
    """One pipeline, some seeds: `train_epoch([run])` until `done`; its state can be kept in between."""

    def __init__(
        self,
        pipeline: Pipeline,
        seeds: Sequence[int],
        settings: Settings,
        data: Cifar10,
        device: torch.device,
    ) -> None:
        """`data` is on `device` already."""
        self.pipeline, self.seeds, self.settings, self.data = pipeline, tuple(seeds), settings, data
        self.device = device
        self.network = networks.join([single(pipeline, settings, seed) for seed in seeds]).to(device)
        parameters = list(self.network.parameters())
        self.optimizer = torch.optim.Adam(
            parameters, lr=settings.lr, fused=True, capturable=device.type == "cuda"
        )
        if pipeline.l2 or pipeline.l1:
            ss.WeightPenalty(self.network, pipeline.l2, pipeline.l1).attach(self.optimizer)
        self.steps = settings.steps_per_epoch(len(data.train.labels))
        self.gradients = EpochGradients(parameters, len(self.seeds), pipeline.l2, pipeline.l1)
        self._every = -(-self.steps // RECORDS)
        self.monitor = ss.GradientMonitor(self.network, QUANTILES, every=self._every, thresholds=(VANISHED,))
        self.to_floats = pixel_transform(settings.pixels, data.train.images)
        self.native, self.not_native = self._native_step()
        self.history: list[npt.NDArray[np.float64]] = []  # of each epoch, (seeds, NUMBERS)
        self.seconds: list[float] = []
        self._allocate()

    def _native_step(self) -> tuple[native.Step | None, str]:
        """The compiled step of a CPU, or why PyTorch makes the steps instead."""
        if self.device.type != "cpu":
            return None, ""
        if self.pipeline.dtype != "float32":
            return None, f"no native code for {self.pipeline.dtype}"
        try:
            return native.Step(self.network, self.to_floats, len(self.seeds)), ""
        except native.NotNativeError as error:
            return None, str(error)

    def _allocate(self) -> None:
        """What a step reads and writes, at places that do not change."""
        seeds, device = len(self.seeds), self.device
        self._order = torch.empty(seeds, self.steps, self.settings.batch, dtype=torch.int64, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # which step of the epoch comes next
        self._losses = torch.zeros(seeds, dtype=torch.float64, device=device)
        self._hits, self._test_hits = torch.zeros(2, seeds, dtype=torch.int64, device=device)
        self._measured = False
        self._train_step = Captured(self._step, device)
        self._test = Captured(self._evaluate, device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def epoch(self) -> int:
        """How many are complete."""
        return len(self.history)

    @property
    def done(self) -> bool:
        return self.epoch == self.settings.epochs

    def epoch_in_steps(self) -> Iterator[None]:
        """Train for one epoch, evaluate, append the epoch's numbers to `history`; stops after each step."""
        start = time.perf_counter()
        with self.on_device():
            self.begin_epoch()
        for number in range(1, self.steps + 1):
            with self.on_device():
                self.step()
                if number == self.steps:
                    self._test()
            yield
        with self.on_device():
            numbers = self._numbers().cpu().numpy()
        self.history.append(numbers)
        self.seconds.append(time.perf_counter() - start)

    def time(self, steps: int) -> tuple[float, float]:
        """Seconds of a step, the fastest of a few, and of an evaluation; the run is spoiled afterwards."""
        clocks = [time.perf_counter()]
        with self.on_device():
            self.begin_epoch()
            for _ in range(steps + 1):
                self.step()
                self._losses.sum().item()
                clocks.append(time.perf_counter())
            self._test()
            self._test_hits.sum().item()
        return min(np.diff(clocks[1:])), time.perf_counter() - clocks[-1]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Where steps are to be made: on a GPU on the run's stream, beside those of other runs."""
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        deterministic = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with stream, deterministic, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            yield

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One of `NUMBERS`, (epochs, seeds)."""
        return np.array(self.history).reshape(-1, len(self.seeds), len(NUMBERS))[..., NUMBERS.index(name)]

    def begin_epoch(self) -> None:
        """Shuffle, and count from nothing; on a GPU after what the default stream has made or restored."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.default_stream(self.device))
        order = orders(self.seeds, self.epoch + 1, len(self.data.train.labels), self.device)
        self._step_number = self.epoch * self.steps
        self._order.copy_(order[:, : self._order[0].numel()].view_as(self._order))
        for counter in (self._at, self._losses, self._hits):
            counter.zero_()
        self.gradients.reset()

    def step(self) -> None:
        """Train on the next batch of the epoch, again from the first one after the last."""
        self._measured = self._step_number % self._every == 0
        self._step_number += 1
        self._train_step()

    def _step(self) -> None:
        """One batch of every network, of which images the device knows."""
        chosen = self._order.index_select(1, self._at)[:, 0]  # (seeds, batch)
        self.optimizer.zero_grad()
        if self.native is None or self._measured:
            losses, hits = self._by_pytorch(chosen)
        else:
            losses, hits = self.native(self.data.train.images, self.data.train.labels, chosen, backward=True)
        self.gradients.record()
        self.monitor.step()
        self.optimizer.step()
        self._losses += losses
        self._hits += hits
        self._at.add_(1).remainder_(self.steps)

    def _by_pytorch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The losses and hits of a batch; leaves the gradients on the parameters."""
        labels = self.data.train.labels[chosen]
        logits = self._logits(self.data.train.images[chosen.T])
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = loss.view_as(labels).mean(1)
        losses.sum().backward()
        return losses.detach(), (logits.argmax(2) == labels).sum(1)

    @torch.no_grad()
    def _evaluate(self) -> None:
        self.network.eval()
        self._test_hits.copy_(self._recognized(self.data.test))
        self.network.train()

    def _recognized(self, split: Split) -> Tensor:
        """How many images of a split each network labels right: (seeds,)."""
        if self.native is not None:
            everything = torch.arange(len(split.labels)).expand(len(self.seeds), -1)
            return self.native(split.images, split.labels, everything, backward=False)[1]
        hits = torch.zeros_like(self._hits)
        for images, labels in zip(
            split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True
        ):
            logits = self._logits(images[:, None].expand(-1, len(self.seeds), -1, -1, -1))
            hits += (logits.argmax(2) == labels).sum(1)
        return hits

    def _logits(self, images: Tensor) -> Tensor:
        """uint8 images (b, seeds, 3, h, h) -> (seeds, b, classes)."""
        x = networks.images(self.to_floats(images)).to(getattr(torch, self.pipeline.dtype))
        return self.network(x).float()  # type: ignore[no-any-return]

    def _numbers(self) -> Tensor:
        """Those of the epoch, (seeds, NUMBERS) in float64."""
        test = self._test_hits.double() / len(self.data.test.labels)
        train = self._hits.double() / (self.steps * self.settings.batch)
        three = torch.stack([test, train, self._losses / self.steps], 1)
        return torch.cat([three, self.gradients.summary()], 1)

    def state_dict(self) -> dict[str, Any]:
        """All but what the monitor recorded."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": torch.from_numpy(np.array(self.history)),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = list(state["history"].numpy())
        self.seconds = state["seconds"]


def train_epoch(runs: Sequence[Run], after_step: Callable[[], object] = lambda: None) -> None:
    """One epoch of each run, step by step in turn: each has its stream, and a GPU overlaps them."""
    for _ in zip_longest(*(run.epoch_in_steps() for run in runs)):
        after_step()
    for run in runs:
        run.seconds[-1] /= len(runs)


def single(pipeline: Pipeline, settings: Settings, seed: int) -> torch.nn.Sequential:
    """The network of one seed by itself, in the modules of PyTorch and sigscale, as it starts."""
    network = networks.build(
        pipeline.architecture,
        pipeline.activation,
        conv=settings.conv,
        bias=settings.bias,
        normalize=pipeline.normalize,
    )
    pipeline.initialize(network, generator(seed))
    return network


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
