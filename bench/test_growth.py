"""Time of a training step against its layers and its seeds; see `report/growth.py` for the picture.

    series                        grows     providers
    step of an MLP                layers    plain: nn.Tanh; sigscale: nn.Tanh(2); and with a GradientMonitor
    step of the Table 3 network   seeds     sigscale: all seeds as one network; one by one: each as its own

In fp32, by the host's clock, calls in a row. With `--exponents` this is a trial of the smallest sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import sigscale
from bench.harness.cifar10 import ALPHA, BATCH, EAGER, Seeds
from bench.harness.options import settings
from bench.harness.timing import OURS, Bench, Call, host_timer
from bench.table4 import ByHand
from bench.test_training import BASELINE, CLASSES, Training, check_monitor

WIDTH = 64
MONITORED = "sigscale, monitored"
TRIAL = 2  # sizes


def mlp(depth: int, activation: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(WIDTH, WIDTH), activation())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, CLASSES)), torch.randn(BATCH, WIDTH)


def layers(depth: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """Gradients are checked against those of the formula by hand; the monitor has seen every one."""
    scaled: Callable[[], nn.Module] = partial(sigscale.nn.Tanh, ALPHA)
    made = {
        "plain": Training(partial(mlp, depth, nn.Tanh), BASELINE, device),
        OURS: Training(partial(mlp, depth, scaled), BASELINE, device),
        MONITORED: Training(partial(mlp, depth, scaled), OURS, device),
    }
    for name, training in made.items():
        stack.callback(training.close)
        written = Training(
            partial(mlp, depth, partial(ByHand, 1.0 if name == "plain" else ALPHA)), BASELINE, device
        )
        for each in (training, written):
            each.steps(1)
        check(f"{name}, {depth} layers", training.gradients(), written.gradients())
    check_monitor(f"an MLP of {depth} layers", made[MONITORED])
    return {name: partial(training.steps, 1) for name, training in made.items()}


def seeds(count: int, device: torch.device, stack: ExitStack) -> Mapping[str, Call]:
    """All seeds as one network and one by one; after a step their gradients are checked to be the same."""
    stacked, *alone = (Seeds(of, device) for of in (range(count), *([seed] for seed in range(count))))
    for of in (stacked, *alone):
        stack.callback(of.close)

    def one_by_one() -> None:
        for single in alone:
            single.step()

    calls: dict[str, Call] = {OURS: stacked.step, "one by one": one_by_one}
    for call in calls.values():
        call()
    for together, *singles in zip(*(of.gradients() for of in (stacked, *alone)), strict=True):
        check(f"{count} seeds", [*together.unflatten(0, (count, -1))], singles)
    for call in calls.values():
        for _ in range(EAGER if device.type == "cuda" else 1):
            call()
    return calls


def check(what: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Equal but for rounding, relative to each tensor's largest gradient."""
    for one, other in zip(found, expected, strict=True):
        atol = 1e-4 * float(other.abs().max())
        message = f"{what}: the gradients differ"
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-4, atol=atol, msg=message)


SERIES = {
    "step of an MLP": ("layers", layers, [2, 4, 8, 16, 32, 64]),
    "step of the Table 3 network": ("seeds", seeds, [1, 5, 25]),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    least = TRIAL if settings(metafunc.config).exponents else None
    chosen = [(series, n) for series, (*_, sizes) in SERIES.items() for n in sizes[:least]]
    metafunc.parametrize(("series", "n"), chosen)


def test_growth(bench: Bench, series: str, n: int) -> None:
    unit, make, _ = SERIES[series]
    with ExitStack() as stack:
        calls = make(n, bench.device, stack)
        about = {"kind": "growth", "series": series, "unit": unit, "n": n}
        bench.compare(about, calls, baseline="plain" if "plain" in calls else None, timer=host_timer)
        bench.steady(series, calls[OURS])
