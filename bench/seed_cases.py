"""Many seeds at once: what is timed by `test_seeds.py`.

A step of training (Table 3 network, tanh with both remedies, batches of 32, gradients counted) of

    1 seed, 5 seeds, 25 seeds      as one network
    25 seeds, one by one           as a network of one seed, 25 times

and, forward and backward, the 3x3 convolution of 3 channels of 25 networks by

    sigscale               what the CIFAR-10 example does: its own kernels on a GPU, grouped on a CPU
    grouped                PyTorch's grouped convolution, channels first
    grouped, last          the same, channels last
    patches                27 values of each pixel copied together, and a batched matrix product
    one by one             25 convolutions of 3 channels, channels last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from comparison import OURS
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.pipelines import FIGURES
from examples.cifar10.train import Run, Settings
from measure import Call
from sigscale.kernels.convolution import convolve

SEEDS, BATCH = 25, 32
SIDES = (32, 16, 8)
COUNTS = (1, 5, SEEDS)
ONE_BY_ONE = f"{SEEDS} seeds, one by one"
SINGLE = "1 seed"

Convolve = Callable[[Tensor, Tensor], Tensor]


def steps(device: torch.device) -> tuple[dict[str, Call], dict[str, Run]]:
    """Steps of training, by how many seeds; the first few calls on a GPU capture their graphs."""
    cifar = images().to(device)
    pipeline = FIGURES["3"].pipelines[1]

    def run(seeds: int) -> Run:
        made = Run(pipeline, range(seeds), Settings(epochs=10**6, batch=BATCH), cifar, device)
        with made.on_device():
            made.begin_epoch()
        return made

    def steps_of(made: Run, count: int = 1) -> Call:
        def call() -> None:
            with made.on_device():
                for _ in range(count):
                    made.step()

        return call

    runs = {f"{count} seed{'s' * (count > 1)}": run(count) for count in COUNTS}
    calls = {name: steps_of(made) for name, made in runs.items()}
    calls[ONE_BY_ONE] = steps_of(runs[SINGLE], SEEDS)
    return calls, runs


def images() -> Cifar10:
    """Random ones, as data to train on."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (2000,), generator=generator)
    split = Split(images.contiguous(memory_format=torch.channels_last), labels)
    return Cifar10(split, split, "random", "")


def convolutions(side: int, device: torch.device) -> tuple[dict[str, Call], dict[str, str]]:
    """Forward and backward pass of each form, checked against the grouped one in float64; and who refuses.

    To be called, like what it returns, where cuDNN may not take TF32 for float32.
    """
    generator = torch.Generator(device).manual_seed(0)
    x, g = torch.randn(2, BATCH, 3 * SEEDS, side, side, generator=generator, device=device)
    weight = torch.randn(3 * SEEDS, 3, 3, 3, generator=generator, device=device)
    true = _passes(_grouped, x.double(), weight.double(), g.double())()
    calls: dict[str, Call] = {}
    refused: dict[str, str] = {}
    for name, (form, layout) in FORMS.items():
        if layout is None:  # that of the example
            layout = torch.contiguous_format if x.is_cuda else torch.channels_last
        call = _passes(form, *(t.contiguous(memory_format=layout) for t in (x, weight, g)))
        try:
            found = call()
        except RuntimeError as error:  # cuDNN has no kernel for every layout
            if name == OURS:
                raise
            refused[name] = str(error).split("\n")[0]
            continue
        for one, other in zip(found, true, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
        calls[name] = call
    return calls, refused


def _passes(form: Convolve, x: Tensor, weight: Tensor, g: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    x, weight = x.requires_grad_(), weight.requires_grad_()

    def call() -> tuple[Tensor, ...]:
        y = form(x, weight)
        return (y.detach(), *torch.autograd.grad(y, (x, weight), g))

    return call


def _grouped(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1, groups=len(weight) // 3)


def _patches(x: Tensor, weight: Tensor) -> Tensor:
    batch, channels, side, _ = x.shape
    columns = F.unfold(x.reshape(batch * channels // 3, 3, side, side), 3, padding=1)  # (b s, 27, pixels)
    per_seed = columns.view(batch, -1, 27, side * side).permute(1, 2, 0, 3).flatten(2)
    y = torch.bmm(weight.reshape(-1, 3, 27), per_seed)  # (s, 3, b pixels)
    return y.view(-1, 3, batch, side, side).permute(2, 0, 1, 3, 4).reshape(x.shape)


def _one_by_one(x: Tensor, weight: Tensor) -> Tensor:
    pairs = zip(x.split(3, 1), weight.split(3), strict=True)
    return torch.cat([F.conv2d(part, its, padding=1) for part, its in pairs], 1)


FORMS: Mapping[str, tuple[Convolve, torch.memory_format | None]] = {
    OURS: (convolve, None),
    "grouped": (_grouped, torch.contiguous_format),
    "grouped, last": (_grouped, torch.channels_last),
    "patches": (_patches, torch.contiguous_format),
    "one by one": (_one_by_one, torch.channels_last),
}
