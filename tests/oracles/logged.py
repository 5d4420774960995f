"""Trainings that are logged, and what their logs must hold: the monitor's history."""

from __future__ import annotations

import doctest
import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

import sigscale as ss
from sigscale.integrations._logger import Logger


def train(
    make_logger: Callable[[ss.GradientMonitor], Logger],
    *,
    steps: int = 7,
    sketches: dict[int, dict[str, ss.QuantileSketch]] | None = None,
    **options,
) -> ss.GradientHistory:
    """The history of a logged training, whose records reach the host every second measured step.

    Where there is a dict for them, the sketches of each row after each step are put there, which waits.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1), nn.Linear(1, 1))
    model[3].weight.requires_grad_(False)
    monitor = ss.GradientMonitor(model, **{"ring": 4, **options})
    with make_logger(monitor) as log:
        for step in range(steps):
            model.zero_grad()
            out = model[:3] if step == 2 else model  # one step leaves model[3] without a gradient
            out(torch.randn(8, 4)).sum().backward()
            monitor.step()
            log.step()
            if sketches is not None:
                names = monitor.history().names
                sketches[step] = {name: monitor.sketch(name) for name in names}
    monitor.close()
    return monitor.history()


def run_example(documented: type) -> None:
    """Run the example in a docstring."""
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, globs={}, module=False)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def histograms(sketches: dict[int, dict[str, ss.QuantileSketch]], steps: Sequence[int]) -> dict[str, dict]:
    """By tag and step, the counts and the edges of the histogram of each row that had a gradient."""
    found: dict[str, dict[int, tuple[list[int], list[float]]]] = {}
    for step in steps:
        for name, sketch in sketches[step].items():
            if sketch.count:
                counts, edges = sketch.to_histogram(bins=512)
                tag = f"gradients/histogram/{name.replace(' ', '_')}"
                found.setdefault(tag, {})[step] = counts.tolist(), edges.tolist()
    return found


def scalars(history: ss.GradientHistory, statistics: list[str]) -> dict[str, dict[int, float]]:
    """The numbers of a history that are not NaN by tag and step."""
    found: dict[str, dict[int, float]] = {}
    for statistic in statistics:
        for row, name in enumerate(history.names):
            numbers = zip(history.steps.tolist(), history[statistic][:, row].tolist(), strict=True)
            tag = f"gradients/{statistic}/{name.replace(' ', '_')}"
            found[tag] = {step: number for step, number in numbers if not math.isnan(number)}
    return found
