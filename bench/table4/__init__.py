"""Table 4 of the paper, what the remedies cost a training, and what one would write instead.

The network of Table 3 (conv conv pool three times, dense 8, 8, 8, 10) in the combined regime: parameters from
[-10, 10), Adam with learning rate 0.001, batches of 32.  The models are in `MODELS`, the modes:

    eager      as it is written
    compile    torch.compile of forward pass and loss
    graph      the whole step, optimizer and monitor included, replayed from one CUDA graph

Images lie on the device as bytes, which ones come next is known there, and no step waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch._dynamo
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sigscale as ss
from bench.harness.cifar10 import ALPHA, BATCH, Captured, R, Split, large_uniform, table_3
from bench.harness.options import MODES

LEARNING_RATE = 0.001
RING = 2048  # steps a monitor keeps on the device where a graph hides from the host that they were made


@dataclass(frozen=True)
class Model:
    """`baseline` is what it is compared with, `paper` its seconds in Table 4."""

    label: str
    baseline: str = "plain"
    paper: float | None = None
    relu: bool = False
    alpha: float = 1.0
    regularized: bool = False
    by_hand: bool = False  # scaling as one writes it, the penalty summed in the loss as the paper writes it
    normalize: bool = False  # batch normalization ahead of the activation
    monitored: bool = False  # every gradient, in every step

    def activation(self) -> nn.Module:
        if self.relu:
            return nn.ReLU()
        if self.alpha == 1:
            return nn.Tanh()
        return ByHand(self.alpha) if self.by_hand else ss.nn.Tanh(self.alpha)

    def twin(self) -> Model:
        """The same training with nothing of sigscale in it."""
        return replace(self, by_hand=True, monitored=False)


class ByHand(nn.Module):
    """alpha tanh(x / alpha) as one writes it."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * torch.tanh(x / self.alpha)


_both = Model("tanh, regularized and scaled", alpha=ALPHA, regularized=True, paper=1385.2)
MODELS = {
    "plain": Model("tanh, no remedy", paper=1057.8, by_hand=True),
    "sigscale": _both,
    "sigscale, scaled": Model("tanh, scaled", alpha=ALPHA),
    "sigscale, regularized": Model("tanh, regularized", regularized=True),
    "sigscale, monitored": replace(_both, label="tanh, both, monitored", monitored=True, paper=None),
    "eager": replace(_both, label="tanh, both by hand", by_hand=True, paper=None),
    "batch norm": Model("tanh, regularized, batch normalization", regularized=True, normalize=True),
    "relu": Model("relu, unregularized", "relu", paper=986.8, relu=True, by_hand=True),
    "sigscale, relu": Model("relu, regularized", "relu", paper=1339.1, relu=True, regularized=True),
}
torch._dynamo.config.recompile_limit = 4 * len(MODELS)  # losses share their code, and with it this limit


class Training:
    """One model in training, in one mode; `step()` within `on_device()`."""

    def __init__(
        self, model: Model, mode: str, split: Split, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """`split` is on `device`.  Parameters are PyTorch's own at first, which are small: see `begin`."""
        self.model, self.split, self.dtype = model, split, dtype
        self.network = self._network().to(device, dtype)
        self.initial = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), LEARNING_RATE, fused=True, capturable=device.type == "cuda"
        )
        if model.regularized and not model.by_hand:
            ss.WeightPenalty(self.network, l2=R).attach(self.optimizer)
        self.loss: Callable[[Tensor, Tensor], Tensor] = self._loss
        if mode == "compile":
            self.loss = torch.compile(self._loss, dynamic=False)
        ring = RING if mode == "graph" else 64
        self.monitor = ss.GradientMonitor(self.network, ring=ring) if model.monitored else None
        self.step = Captured(self._step, device) if mode == "graph" else self._step
        batches = len(split.labels) // BATCH
        order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(0))
        self._order = order[: batches * BATCH].view(batches, BATCH).to(device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # which batch comes next

    def _network(self) -> nn.Sequential:
        torch.manual_seed(0)
        return table_3(self.model.activation, normalize=self.model.normalize)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(self.network(images.to(self.dtype) / 255), labels)
        if self.model.regularized and self.model.by_hand:  # r / 2 * sum(theta^2), Section 2.2
            loss = loss + R / 2 * torch.stack([p.square().sum() for p in self.network.parameters()]).sum()
        return loss

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


def choose_modes(
    given: Sequence[str], device: torch.device, *, trial: bool
) -> tuple[list[str], dict[str, str]]:
    """The modes to be timed and, by name, why others are not."""
    reasons = {mode: "not among --modes" for mode in MODES if mode not in (given or MODES)}
    if not given and (trial or device.type == "cpu"):
        reasons["compile"] = "takes minutes; --modes=eager,compile has it"
    if device.type != "cuda":
        reasons["graph"] = "needs a GPU, and there is none"
    chosen = [mode for mode in MODES if mode not in reasons]
    if not chosen:
        raise ValueError(f"--modes {','.join(given)}: {reasons[given[0]]}; --modes eager runs everywhere")
    return chosen, reasons


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
