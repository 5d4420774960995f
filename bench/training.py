"""Training steps, monitored in different ways: what `test_monitor.py` times.

    no monitor                     forward, backward, Adam
    sigscale                       and GradientMonitor.step(): all activations and parameters
    sigscale, every tenth step     GradientMonitor(every=10)
    sigscale, activations          GradientMonitor(parameters=False)
    sigscale, parameters           GradientMonitor(activations=False)
    sigscale, exact                foreach_quantile: five quantiles of the gradient of each parameter
    wandb                          what wandb.watch does, of the gradient of each parameter
    torch.quantile                 five quantiles of the gradient of each parameter, one after another

Each has a copy of the network of its own; all see the same data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sigscale
from examples.cifar10.networks import TABLE_3, build
from quantile_cases import FIVE, wandb_recipe

MONITORS: Mapping[str, dict[str, Any]] = {
    "sigscale": {},
    "sigscale, every tenth step": {"every": 10},
    "sigscale, activations": {"parameters": False},
    "sigscale, parameters": {"activations": False},
}
BASELINE, EXACT = "no monitor", "sigscale, exact"
WAYS = (BASELINE, *MONITORS, EXACT, "wandb", "torch.quantile")
CLASSES = 10


def table_3() -> tuple[nn.Module, Tensor]:
    """The network of the paper's Table 3, 32 images: small tensors, where launches count."""
    return build(TABLE_3, sigscale.nn.Tanh), torch.randn(32, 3, 32, 32)


def mlp() -> tuple[nn.Module, Tensor]:
    """Twelve layers of width 512 and a batch of 256: three million parameters."""
    layers = [layer for _ in range(11) for layer in (nn.Linear(512, 512), sigscale.nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(512, CLASSES)), torch.randn(256, 512)


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "Table 3 network, batch 32": table_3,
    "12-layer MLP, batch 256": mlp,
}


class Training:
    """One network in training on one batch."""

    def __init__(self, network: str, way: str, device: torch.device) -> None:
        torch.manual_seed(0)
        model, x = NETWORKS[network]()
        self.model, self.x = model.to(device), x.to(device)
        self.target = torch.randint(CLASSES, (len(x),)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.monitor: sigscale.GradientMonitor | None = None
        if way in MONITORS:
            self.monitor = sigscale.GradientMonitor(self.model, FIVE, **MONITORS[way])
            self.measure = self.monitor.step
        else:
            self.q = torch.tensor(FIVE, device=device)
            by_hand = {
                BASELINE: lambda: None,
                EXACT: self.exactly,
                "wandb": self.by_wandb,
                "torch.quantile": self.by_quantiles,
            }
            self.measure = by_hand[way]

    def step(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.x), self.target).backward()
        self.measure()
        self.optimizer.step()

    def steps(self, n: int) -> None:
        for _ in range(n):
            self.step()

    def gradients(self) -> list[Tensor]:
        """Of the last step."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def exactly(self) -> None:
        sigscale.foreach_quantile(self.gradients(), FIVE)

    def by_wandb(self) -> None:
        for gradient in self.gradients():
            wandb_recipe(gradient)

    def by_quantiles(self) -> None:
        for gradient in self.gradients():
            torch.quantile(gradient, self.q)

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()


def trainings(network: str, device: torch.device, stack: ExitStack) -> dict[str, Training]:
    """All ways, each after one step and checked."""
    made = {}
    for way in WAYS:
        made[way] = Training(network, way, device)
        stack.callback(made[way].close)
        made[way].step()
    for way, training in made.items():
        torch.testing.assert_close(
            training.gradients(), made[BASELINE].gradients(), msg=f"{way} changes the training of {network}"
        )
    check(network, made["sigscale"])
    return made


def check(network: str, training: Training) -> None:
    """The monitor has seen every coordinate, and its bounds hold the true quantiles."""
    assert training.monitor is not None
    sketch = training.monitor.sketch("all parameters")
    values = torch.cat([gradient.flatten() for gradient in training.gradients()]).abs().double().sort().values
    assert int(sketch.count) == len(values), f"the monitor has not seen all gradients of {network}"
    for q in FIVE:
        low, high = (float(bound) for bound in sketch.bounds(q, magnitude=True))
        true = float(values[round(q * (len(values) - 1))])
        assert low <= true <= high, (
            f"the bounds {low}, {high} of quantile {q} do not hold {true} in {network}"
        )
