"""Training steps that grow: with the layers of an MLP, and with the seeds of the Table 3 network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import sigscale
from examples.cifar10.data import Cifar10
from examples.cifar10.pipelines import ALPHA, FIGURES
from examples.cifar10.train import Run, Settings
from measure import Call
from seed_cases import BATCH, images

WIDTH, CLASSES = 64, 10
WARM_UP = {"cpu": 1, "cuda": 6}  # steps until graphs are captured
MONITORED = "sigscale, monitored"


class Step:
    """Forward, backward and SGD on one batch, with a learning rate of 0: every step is the same work.

    Initial weights are such that gradients do not vanish, since subnormal numbers are slow on a CPU.
    """

    def __init__(self, depth: int, activation: Callable[[], nn.Module], device: torch.device) -> None:
        torch.manual_seed(0)
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), activation())]
        self.model = nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES))
        for parameter in self.model.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        self.model.to(device)
        self.x, self.labels = torch.randn(BATCH, WIDTH).to(device), torch.arange(BATCH).to(device) % CLASSES
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0)
        self.monitor: sigscale.GradientMonitor | None = None

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.model(self.x), self.labels).backward()
        if self.monitor is not None:
            self.monitor.step()
        self.optimizer.step()

    def gradients(self) -> list[Tensor]:
        """Of the last step, layer by layer: of the weight, of the bias."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]

    def expected(self, alpha: float) -> Iterator[Tensor]:
        """Those gradients from the last layer's back to the first one's, in fp64, by the chain rule."""
        parameters = [p.detach().double() for p in self.model.parameters()]
        weights, biases = parameters[::2], parameters[1::2]
        inputs = [self.x.double()]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            inputs.append(alpha * torch.tanh((inputs[-1] @ weight.T + bias) / alpha))
        logits = inputs[-1] @ weights[-1].T + biases[-1]
        g = (logits.softmax(1) - one_hot(self.labels, CLASSES)) / BATCH
        for weight, y in zip(reversed(weights), reversed(inputs), strict=True):
            yield g.sum(0)
            yield g.T @ y
            g = (g @ weight) * (1 - (y / alpha) ** 2)


def layers(depth: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """Gradients against those by hand; the monitor has seen every one of them."""
    scaled = partial(sigscale.nn.Tanh, ALPHA)
    steps = {
        "plain": Step(depth, nn.Tanh, device),
        "sigscale": Step(depth, scaled, device),
        MONITORED: Step(depth, scaled, device),
    }
    monitor = steps[MONITORED].monitor = sigscale.GradientMonitor(steps[MONITORED].model)
    stack.callback(monitor.close)
    for name, step in steps.items():
        step()
        expected = [*step.expected(1.0 if name == "plain" else ALPHA)][::-1]
        _check(f"{name}, {depth} layers", step.gradients(), expected)
    seen, made = int(monitor.sketch("all parameters").count), sum(p.numel() for p in step.model.parameters())
    assert seen == made, f"{depth} layers: the monitor has seen {seen} of {made} gradients"
    return steps


def seeds(count: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """All seeds as one network and one by one; after a step their gradients are the same.

    glibc's memory is as it comes (see `examples/cifar10/runtime.py`), since it could not be put back for
    other benchmarks of the same process.
    """
    cifar = images().to(device)
    together, *alone = (
        _run(chosen, cifar, device, stack) for chosen in (range(count), *([seed] for seed in range(count)))
    )
    step_of = {"sigscale": partial(_step, [together]), "one by one": partial(_step, alone)}
    for step in step_of.values():
        step()
    singles = [[*run.network.parameters()] for run in alone]
    for i, stacked in enumerate(together.network.parameters()):
        assert stacked.grad is not None
        expected = [gradient for single in singles if (gradient := single[i].grad) is not None]
        _check(f"{count} seeds", [*stacked.grad.unflatten(0, (count, -1))], expected)
    for step in step_of.values():
        for _ in range(WARM_UP[device.type]):
            step()
    return step_of


def _run(chosen: Sequence[int], cifar: Cifar10, device: torch.device, stack: ExitStack) -> Run:
    """The network of Table 3 with both remedies, ready for its first step."""
    run = Run(FIGURES["3"].pipelines[1], chosen, Settings(epochs=10**6, batch=BATCH), cifar, device)
    stack.callback(run.monitor.close)
    with run.on_device():
        run.begin_epoch()
    return run


def _step(runs: Sequence[Run]) -> None:
    for run in runs:
        with run.on_device():
            run.step()


def _check(what: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal but for rounding, relative to each tensor's largest gradient."""
    for one, other in zip(found, expected, strict=True):
        say = f"{what}: the gradients differ"
        torch.testing.assert_close(
            one.double(), other.double(), rtol=1e-4, atol=1e-4 * float(other.abs().max()), msg=say
        )
