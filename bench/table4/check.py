"""Whether the models and modes of Table 4 that should train alike do, checked before any is timed.

From PyTorch's own initial parameters (from [-10, 10) rounding grows from step to step), after a few steps, of
which the last ones of a graph are replays:

    in float64    each model as it is written, and its twin, which has nothing of sigscale in it
    in float32    each model in each mode, the very ones that are timed then, and the twin in float64

Compared are how far each parameter moved and Adam's first moment, a mean of the gradients with the penalty's
in it.  A monitor must have seen every coordinate of every parameter.

In float32 a maximum or a relu may turn over for rounding alone, and sends a gradient elsewhere.  So a quarter
of the tensors must agree to rounding and the others roughly: what is computed otherwise shows in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.harness.cifar10 import EAGER, Split
from bench.table4 import Model, Training

STEPS = EAGER + 3
DOUBLE, SINGLE, ROUGHLY = 1e-10, 1e-3, 0.5  # of the norm of a tensor


def check(trainings: Iterable[tuple[str, Training]], split: Split, device: torch.device) -> None:
    """Make the first steps of trainings, each with its mode; AssertionError if one strays."""
    expected: dict[Model, list[list[Tensor]]] = {}
    for mode, training in trainings:
        model, twin = training.model, training.model.twin()
        for of in (twin, model):
            if of not in expected:
                wide = Training(of, "eager", split, device, torch.float64)
                expected[of] = outcome(wide)
                wide.close()
                compare(f"{of.label}, float64", expected[of], expected[twin], DOUBLE, DOUBLE)
        compare(f"{model.label}, {mode}", outcome(training), expected[twin], SINGLE, ROUGHLY)
        if training.monitor is not None:
            seen = int(training.monitor.sketch("all parameters").count)
            there = sum(p.numel() for p in training.network.parameters())
            words = f"the monitor of {model.label}, {mode}, has seen {seen} of {there} gradients"
            assert seen == there, words


def outcome(training: Training) -> list[list[Tensor]]:
    """Of the first steps: what they added to each parameter, and Adam's first moment of each."""
    training.steps(STEPS)
    moved = [p.detach() - training.initial[name] for name, p in training.network.named_parameters()]
    return [moved, [state["exp_avg"].clone() for state in training.optimizer.state.values()]]


def compare(
    name: str, found: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float, roughly: float
) -> None:
    for tensors, others in zip(found, expected, strict=True):
        pairs = zip(tensors, others, strict=True)
        off = sorted(float((one.double() - other).norm() / other.norm()) for one, other in pairs)
        for distance, allowed in ((off[len(off) // 4], tolerance), (off[-1], roughly)):
            assert distance <= allowed, (
                f"{name}, trains otherwise than the same by hand: after {STEPS} steps a tensor is off by "
                f"{distance:.2g} of its norm, more than {allowed:g}"
            )
