"""What the benchmarks take from the CIFAR-10 example: the paper's network, data, training of seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.harness.timing import synchronize
from examples.cifar10 import data, runtime
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.networks import TABLE_3, build, large_uniform
from examples.cifar10.pipelines import ALPHA, FIGURES, R
from examples.cifar10.runtime import EAGER, Captured, DataError
from examples.cifar10.train import Run, Settings

__all__ = ["ALPHA", "EAGER", "Captured", "R", "Split", "keep_memory", "large_uniform"]
BATCH = 32
RANDOM_IMAGES = 2000
SMALL = 0.02  # times the initial parameters of `Seeds`, so that rounding does not grow from layer to layer

keep_memory = runtime.keep_freed_memory


def table_3(activation: Callable[[], nn.Module], *, normalize: bool = False) -> nn.Sequential:
    """The network of the paper's Table 3."""
    return build(TABLE_3, activation, normalize=normalize)


def random_images() -> Split:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (RANDOM_IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (RANDOM_IMAGES,), generator=generator)
    return Split(pixels.contiguous(memory_format=torch.channels_last), labels)


def training_images(device: torch.device) -> tuple[Split, str]:
    """The images in the example's cache folder or ./data, else random ones, on the device; what they are."""
    for place in (data.cache_folder(), Path("data")):
        with suppress(DataError):
            return data.load(place).train.to(device), "CIFAR-10"
    return random_images().to(device), "random images, not CIFAR-10"


class Seeds:
    """The Table 3 network with both remedies, gradients counted, all its seeds trained as one network.

    With `native=False` PyTorch's operations make the steps on a CPU, too, not the compiled C++ ones.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, *, native: bool = True) -> None:
        split = random_images()
        cifar = Cifar10(split, split, "random", "").to(device)
        self.run = Run(FIGURES["3"].pipelines[1], seeds, Settings(epochs=10**6, batch=BATCH), cifar, device)
        self.run.native = self.run.native if native else None
        with torch.no_grad():
            for parameter in self.run.network.parameters():
                parameter.mul_(SMALL)
        with self.run.on_device():
            self.run.begin_epoch()

    def step(self) -> None:
        with self.run.on_device():
            self.run.step()

    def gradients(self) -> list[Tensor]:
        """Of the last step, which has ended by then; the first dimension is that of all seeds."""
        synchronize(self.run.device)
        return [p.grad for p in self.run.network.parameters() if p.grad is not None]

    def close(self) -> None:
        self.run.monitor.close()
