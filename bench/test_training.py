"""What monitoring adds to a training step, each way on its own copy of a network, all on the same data.

no monitor                     forward, backward, Adam
sigscale                       and GradientMonitor.step(): all activations and parameters
sigscale, every tenth step     GradientMonitor(every=10)
sigscale, exact                foreach_quantile: five quantiles of the gradient of each parameter
wandb                          what wandb.watch does, for the gradient of each parameter
torch.quantile                 five quantiles of the gradient of each parameter, one after another
sigscale, eager                the same as sigscale, beside networks compiled by torch.compile

step() is called as it is: compiled by itself, it would pay for a call of compiled code, half a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sigscale
from bench.harness.cifar10 import table_3
from bench.harness.inputs import FIVE
from bench.harness.timing import OURS, Bench, host_timer
from bench.test_quantiles import wandb_recipe

MONITORS: Mapping[str, dict[str, Any]] = {OURS: {}, "sigscale, every tenth step": {"every": 10}}
BASELINE, EXACT, EAGER = "no monitor", "sigscale, exact", "sigscale, eager"
WAYS = (BASELINE, *MONITORS, EXACT, "wandb", "torch.quantile")
COMPILED = (BASELINE, *MONITORS, EAGER)
CLASSES = 10
STEPS = 10
LONGER = 20  # times the seconds of other cases


def table_3_network() -> tuple[nn.Module, Tensor]:
    """The network of the paper's Table 3, 32 images: small tensors, where launches count."""
    return table_3(sigscale.nn.Tanh), torch.randn(32, 3, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    """Twelve layers of width 512 and a batch of 256: three million parameters."""
    layers = [layer for _ in range(11) for layer in (nn.Linear(512, 512), sigscale.nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(512, CLASSES)), torch.randn(256, 512)


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Table 3 network, batch 32": table_3_network,
    "12-layer MLP, batch 256": mlp,
}


class Training:
    """One network in training on one batch."""

    def __init__(
        self, network: Callable[[], tuple[nn.Module, Tensor]], way: str, device: torch.device, backend: str
    ) -> None:
        torch.manual_seed(0)
        model, x = network()
        self.model, self.x = model.to(device), x.to(device)
        self.target = torch.randint(CLASSES, (len(x),)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.monitor: sigscale.GradientMonitor | None = None
        self.forward = torch.compile(self.model, backend=backend) if backend and way != EAGER else self.model
        if way in (*MONITORS, EAGER):
            self.monitor = sigscale.GradientMonitor(self.model, FIVE, **MONITORS.get(way, {}))
            self.measure: Callable[[], object] = self.monitor.step
        else:
            self.q = torch.tensor(FIVE, device=device)
            written: dict[str, Callable[[], object]] = {
                BASELINE: lambda: None,
                EXACT: lambda: sigscale.foreach_quantile(self.gradients(), FIVE),
                "wandb": lambda: [wandb_recipe(g) for g in self.gradients()],
                "torch.quantile": lambda: [torch.quantile(g, self.q) for g in self.gradients()],
            }
            self.measure = written[way]

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            cross_entropy(self.forward(self.x), self.target).backward()
            self.measure()
            self.optimizer.step()

    def gradients(self) -> list[Tensor]:
        """Of the last step."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def trainings(network: str, device: torch.device, stack: ExitStack, backend: str = "") -> dict[str, Training]:
    """All ways, compiled by a backend or eager, each after one step and checked."""
    made = {}
    for way in COMPILED if backend else WAYS:
        made[way] = Training(NETWORKS[network], way, device, backend)
        stack.callback(made[way].close)
        made[way].steps(1)
    for way, training in made.items():
        torch.testing.assert_close(
            training.gradients(), made[BASELINE].gradients(), msg=f"{way} changes the training of {network}"
        )
    check_monitor(network, made[OURS])
    return made


def check_monitor(network: str, training: Training) -> None:
    """The monitor has seen every coordinate, and its bounds hold the true quantiles."""
    assert training.monitor is not None
    sketch = training.monitor.sketch("all parameters")
    values = torch.cat([gradient.flatten() for gradient in training.gradients()]).abs().double().sort().values
    assert int(sketch.count) == len(values), f"the monitor has not seen all gradients of {network}"
    for q in FIVE:
        low, high = (float(bound) for bound in sketch.bounds(q, magnitude=True))
        true = float(values[round(q * (len(values) - 1))])
        assert low <= true <= high, f"bounds {low}, {high} of quantile {q} do not hold {true} in {network}"


@pytest.mark.parametrize("network", NETWORKS)
def test_monitor(bench: Bench, network: str) -> None:
    """By the host's clock; rows of ten steps with one wait, on a CPU only for the monitor of every tenth."""
    with ExitStack() as stack:
        made = trainings(network, bench.device, stack)
        tenth = {way for way in made if "every" in MONITORS.get(way, {})}
        counts = {way: STEPS if bench.device.type == "cuda" or way in tenth else 1 for way in made}
        calls = {way: partial(training.steps, counts[way]) for way, training in made.items()}
        about = {"kind": "monitor", "network": network}
        bench.longer(LONGER).compare(about, calls, baseline=BASELINE, timer=host_timer, repeats=counts)
        bench.steady("monitor", partial(made[OURS].steps, 1))


@pytest.mark.parametrize("network", NETWORKS)
def test_compiled(bench: Bench, network: str) -> None:
    """As `test_monitor`, compiled: every tenth step at most 1.05, every step no more than eagerly."""
    with ExitStack() as stack:
        backend = "aot_eager" if bench.trial else "inductor"  # which compiles C++ for a minute
        made = trainings(network, bench.device, stack, backend)
        calls = {way: partial(training.steps, STEPS) for way, training in made.items()}
        about = {"kind": "monitor", "network": f"{network}, compiled"}
        counts = dict.fromkeys(calls, STEPS)
        bench.longer(LONGER).compare(about, calls, baseline=BASELINE, timer=host_timer, repeats=counts)
        bench.steady("monitor", partial(made[OURS].steps, 1))
