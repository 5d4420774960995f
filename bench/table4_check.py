"""Whether the models and modes of Table 4 that should train alike do, which is asked before any is timed.

From PyTorch's own initial parameters (from [-10, 10) rounding grows from step to step), after a few steps, of
which the last ones of a graph are replays:

    in float64    each model as it is written, and its twin, which has nothing of sigscale in it: scaling and
                  penalty by hand, no monitor
    in float32    each model in each mode, the very ones that are timed then, and the twin in float64

Compared are how far each parameter moved and Adam's first moment, a mean of the gradients with the penalty's
in it.  Models without a twin of another text (tanh, relu, by hand) are compared in float32 only.  A monitor
must have seen every coordinate of every parameter.

In float32 a maximum or a relu may turn over for rounding alone, and sends a gradient elsewhere: with errors
of 1e-6 in convolutions, as some of cuDNN's algorithms have, one run in three of relu is off by 1e-2 in some
tensors.  So a quarter of the tensors must agree to rounding and the others roughly: what is computed
otherwise shows in all of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from examples.cifar10.data import Split
from examples.cifar10.runtime import EAGER
from table4_cases import Model, Training

STEPS = EAGER + 3
DOUBLE, SINGLE, ROUGHLY = 1e-10, 1e-3, 0.5
"""Of the norm of a tensor."""


def check(trainings: Iterable[tuple[str, Training]], split: Split, device: torch.device) -> None:
    """Make the first steps of trainings, each with its mode; AssertionError if one strays."""
    expected: dict[Model, list[list[Tensor]]] = {}
    for mode, training in trainings:
        model, twin = training.model, training.model.twin()
        if twin not in expected:
            expected[twin] = outcome(Training(twin, "eager", split, device, torch.float64))
        if model not in expected:
            wide = Training(model, "eager", split, device, torch.float64)
            compare(f"{model.label}, float64", outcome(wide), expected[twin], DOUBLE, DOUBLE)
            wide.close()
            expected[model] = expected[twin]
        compare(f"{model.label}, {mode}", outcome(training), expected[twin], SINGLE, ROUGHLY)
        if training.monitor is not None:
            seen = int(training.monitor.sketch("all parameters").count)
            there = sum(p.numel() for p in training.network.parameters())
            assert seen == there, (
                f"the monitor of {model.label}, {mode}, has seen {seen} of {there} gradients"
            )


def outcome(training: Training) -> list[list[Tensor]]:
    """Of the first steps: what they added to each parameter, and Adam's first moment of each."""
    training.steps(STEPS)
    moved = [p.detach() - training.initial[name] for name, p in training.network.named_parameters()]
    return [moved, [state["exp_avg"].clone() for state in training.optimizer.state.values()]]


def compare(
    name: str, found: list[list[Tensor]], expected: list[list[Tensor]], tolerance: float, roughly: float
) -> None:
    for tensors, others in zip(found, expected, strict=True):
        off = sorted(
            float((one.double() - other).norm() / other.norm())
            for one, other in zip(tensors, others, strict=True)
        )
        for distance, allowed in ((off[len(off) // 4], tolerance), (off[-1], roughly)):
            assert distance <= allowed, (
                f"{name}, trains otherwise than the same by hand: after {STEPS} steps a tensor is off by "
                f"{distance:.2g} of its norm, more than {allowed:g}"
            )
