"""Table 4 of the paper, what the remedies cost a training, and what one would write instead.

The network of Table 3 (conv conv pool three times, dense 8, 8, 8, 10) in the combined regime: parameters from
[-10, 10), Adam with learning rate 0.001, batches of 32.  The models:

    plain                      tanh without a remedy: what all with tanh are compared with
    sigscale                   both remedies: ss.nn.Tanh(2), WeightPenalty.attach(Adam)
    sigscale, scaled           the one only
    sigscale, regularized      the other only
    sigscale, monitored        both, and GradientMonitor.step() in every step, all rows
    sigscale, in the loss      both, but the penalty is WeightPenalty(...)() in the loss
    eager                      both by hand: 2 * torch.tanh(x / 2), r / 2 * sum(theta^2) summed in the loss
    batch norm                 regularized, and batch normalization ahead of tanh instead of scaling
    relu                       without a remedy: what the next one is compared with
    sigscale, relu             regularized by WeightPenalty.attach(Adam)

and the ways to run each of them (modes):

    eager      as it is written
    compile    torch.compile of forward pass and loss
    graph      the whole step, optimizer and monitor included, replayed from one CUDA graph

Images lie on the device as bytes, which ones come next is known there, and no step waits for the host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10 import data
from examples.cifar10.data import Split
from examples.cifar10.networks import TABLE_3, build, large_uniform
from examples.cifar10.pipelines import ALPHA, R
from examples.cifar10.runtime import Captured, DataError
from options import MODES

BATCH, LEARNING_RATE = 32, 0.001
RING = 2048  # steps a monitor keeps on the device where a graph hides from the host that they were made

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Model:
    """`baseline` is what it is compared with, `paper` its seconds in Table 4.

    `penalty` says how it gets to the gradient: "attached", "in the loss" or, as the paper writes it, "sum".
    """

    label: str
    baseline: str = "plain"
    paper: float | None = None
    relu: bool = False
    alpha: float = 1.0
    by_hand: bool = False
    penalty: str = ""
    normalize: bool = False
    monitored: bool = False

    def activation(self) -> nn.Module:
        if self.relu:
            return nn.ReLU()
        if self.alpha == 1:
            return nn.Tanh()
        return ByHand(self.alpha) if self.by_hand else ss.nn.Tanh(self.alpha)

    def twin(self) -> Model:
        """The same training with nothing of sigscale in it."""
        return replace(self, by_hand=True, penalty=self.penalty and "sum", monitored=False)


class ByHand(nn.Module):
    """alpha tanh(x / alpha) as one writes it."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * torch.tanh(x / self.alpha)


_both = Model("tanh, regularized and scaled", alpha=ALPHA, penalty="attached", paper=1385.2)
MODELS = {
    "plain": Model("tanh, no remedy", paper=1057.8, by_hand=True),
    "sigscale": _both,
    "sigscale, scaled": Model("tanh, scaled", alpha=ALPHA),
    "sigscale, regularized": Model("tanh, regularized", penalty="attached"),
    "sigscale, monitored": replace(
        _both, label="tanh, both, every gradient monitored", monitored=True, paper=None
    ),
    "sigscale, in the loss": replace(
        _both, label="tanh, both, penalty() in the loss", penalty="in the loss", paper=None
    ),
    "eager": replace(_both, label="tanh, both by hand", penalty="sum", by_hand=True, paper=None),
    "batch norm": Model("tanh, regularized, batch normalization", penalty="attached", normalize=True),
    "relu": Model("relu, unregularized", "relu", paper=986.8, relu=True, by_hand=True),
    "sigscale, relu": Model("relu, regularized", "relu", paper=1339.1, relu=True, penalty="attached"),
}


class Training:
    """One model in training, in one mode; `step()` within `on_device()`."""

    def __init__(
        self, model: Model, mode: str, split: Split, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`split` is on `device`.  Parameters are PyTorch's own at first, which are small: see `begin`."""
        self.model, self.split = model, split
        self.network = self._network().to(device, dtype)
        self.initial = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), LEARNING_RATE, fused=True, capturable=device.type == "cuda"
        )
        penalty: Callable[[], Tensor] | None = None
        if model.penalty == "sum":
            penalty = partial(half_r_times_squares, [*self.network.parameters()])
        elif model.penalty:
            penalty = ss.WeightPenalty(self.network, l2=R)
            if model.penalty == "attached":
                penalty.attach(self.optimizer)
                penalty = None
        loss = loss_of(self.network, dtype, penalty)
        self.loss = torch.compile(by_itself(loss), dynamic=False) if mode == "compile" else loss
        ring = RING if mode == "graph" else 64
        self.monitor = ss.GradientMonitor(self.network, ring=ring) if model.monitored else None
        self.step = Captured(self._step, device) if mode == "graph" else self._step
        batches = len(split.labels) // BATCH
        order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
        self._order = order[: batches * BATCH].view(batches, BATCH).to(device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # which batch comes next

    def _network(self) -> nn.Sequential:
        torch.manual_seed(0)
        return build(TABLE_3, self.model.activation, normalize=self.model.normalize)

    def _step(self) -> None:
        chosen = self._order.index_select(0, self._at)[0]
        self.optimizer.zero_grad()
        self.loss(self.split.images[chosen], self.split.labels[chosen]).backward()
        if self.monitor is not None:
            self.monitor.step()
        self.optimizer.step()
        self._at.add_(1).remainder_(len(self._order))

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @torch.no_grad()
    def begin(self) -> None:
        """Start as the paper does, at the places in memory that a graph knows."""
        network = self._network()
        large_uniform(network, torch.Generator().manual_seed(0))
        self.network.load_state_dict(network.state_dict())
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()
        self._at.zero_()

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def half_r_times_squares(parameters: list[nn.Parameter]) -> Tensor:
    """r / 2 * sum(theta^2), Section 2.2."""
    return R / 2 * torch.stack([parameter.square().sum() for parameter in parameters]).sum()


def loss_of(network: nn.Module, dtype: torch.dtype, penalty: Callable[[], Tensor] | None) -> Loss:
    def loss(images: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(network(images.to(dtype) / 255), labels)
        return value if penalty is None else value + penalty()

    return loss


def by_itself(function: Loss) -> Loss:
    """The function with a code object of its own.

    torch.compile keeps what it makes with the code, which closures share: each call would look through that
    of all models, and from the ninth on they would run as they are.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def choose_modes(given: str | None, device: torch.device, *, trial: bool) -> tuple[list[str], dict[str, str]]:
    """The modes to be timed and, by name, why others are not.

    On a CPU a compiler of C++ works for minutes, longer than all other benchmarks together.
    """
    asked = MODES if given is None else given.split(",")
    reasons = {mode: "not among --modes" for mode in MODES if mode not in asked}
    if given is None and (trial or device.type == "cpu"):
        reasons["compile"] = "takes minutes; --modes=eager,compile has it"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "c++", "clang++")):
        reasons["compile"] = "needs a C++ compiler, and there is none"
    if device.type != "cuda":
        reasons["graph"] = "needs a GPU, and there is none"
    chosen = [mode for mode in MODES if mode not in reasons]
    if not chosen:
        raise ValueError(f"--modes {given}: {'; '.join(f'{mode} {reasons[mode]}' for mode in asked)}")
    return chosen, reasons


def images(directory: Path | None, device: torch.device) -> tuple[Split, str]:
    """The training images, on the device, and what they are; nothing is downloaded.

    Those in `directory`, in the example's cache folder or in ./data; random ones where there are none.
    """
    if directory is not None:
        return data.load(directory).train.to(device), "CIFAR-10"
    for place in (data.cache_folder(), Path("data")):
        with suppress(DataError):
            return data.load(place).train.to(device), "CIFAR-10"
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2000, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (2000,), generator=generator)
    split = Split(pixels.contiguous(memory_format=torch.channels_last), labels)
    return split.to(device), "random images, not CIFAR-10"


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Where steps are made: on a GPU on a stream that graphs can be captured on, in float32 throughout."""
    if device.type != "cuda":
        yield
        return
    stream, outer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    outer.wait_stream(stream)
