"""What the paper leaves open, in its own networks: `--also`.

Each comparison is made where its effect shows: of scalings in the many-layers regime, in which nothing else
ails the network; of penalties in the large-parameters regime; of functions and of rounding in the combined
one, in which activations saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10.pipelines import ALPHA, FIGURES, Figure, Pipeline, R, combined, deep, large
from examples.cifar10.results import Outcome, by_pipeline


class NaiveTanh(nn.Module):
    """alpha tanh(x): the "naive scaling" of Section 2.3, whose slope at 0 is alpha instead of 1."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * torch.tanh(x)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


_plain, _scaled = FIGURES["2"].pipelines
_large, _large_r = FIGURES["1"].pipelines
_both = FIGURES["3"].pipelines[1]


def _scaled_by(alpha: float) -> Pipeline:
    label = f"tanh, alpha = {alpha:g}"
    return deep(f"deep-tanh-a{alpha:g}", label, activation=partial(ss.nn.Tanh, alpha))


def _remedied(name: str, activation: type[ss.nn.Activation]) -> Figure:
    return Figure(
        f"also-{name}",
        f"{name.capitalize()} in the combined regime (network of Table 3)",
        (
            combined(f"combined-{name}", name, activation=partial(activation, 1.0)),
            combined(
                f"combined-{name}-a2-r",
                f"{name}, alpha = 2, r = 0.01",
                activation=partial(activation, ALPHA),
                l2=R,
            ),
            _both,
        ),
        f"Do the remedies help {name} as they help tanh?",
    )


ALSO = {
    figure.name: figure
    for figure in (
        Figure(
            "also-normalization",
            "Batch normalization or scaling, in the many-layers regime (network of Table 2)",
            (
                _plain,
                _scaled,
                deep("deep-tanh-norm", "tanh, batch norm", activation=nn.Tanh, normalize=True),
            ),
            "Is scaling an alternative to batch normalization, and a cheaper one?",
        ),
        _remedied("arctan", ss.nn.Arctan),
        _remedied("softsign", ss.nn.Softsign),
        Figure(
            "also-alpha",
            "Scales, and one that is learned, in the many-layers regime (network of Table 2)",
            (
                _plain,
                _scaled_by(1.5),
                _scaled,
                _scaled_by(3.0),
                _scaled_by(5.0),
                deep(
                    "deep-tanh-learned",
                    "tanh, alpha learned",
                    activation=partial(ss.nn.Tanh, ALPHA, learnable=True),
                ),
            ),
            "Is alpha = 2 a good choice, and does learning alpha find a better one?",
        ),
        Figure(
            "also-l1",
            "L1 and L2 penalties in the large-parameters regime (network of Table 1)",
            (_large, _large_r, large("large-tanh-s", "tanh, s = 0.01", activation=nn.Tanh, l1=R)),
            "Does an L1 penalty, named in Section 4, do what the L2 penalty does?",
        ),
        Figure(
            "also-naive",
            "Scaling and naive scaling in the many-layers regime (network of Table 2)",
            (
                _plain,
                _scaled,
                deep("deep-tanh-naive2", "2 tanh(z)", activation=partial(NaiveTanh, 2.0)),
                deep("deep-tanh-naive5", "5 tanh(z)", activation=partial(NaiveTanh, 5.0)),
            ),
            'Do the gradients of "naive scaling", alpha f(z), explode, as Section 2.3 warns?',
        ),
        Figure(
            "also-rounding",
            "bfloat16, gradients from the saved input or output, in the combined regime (network of Table 3)",
            (
                _both,
                *(
                    combined(
                        f"combined-tanh-a2-r-bf16-{save}",
                        f"bfloat16, from the {save}",
                        activation=partial(ss.nn.Tanh, ALPHA, save=save),
                        l2=R,
                        dtype="bfloat16",
                    )
                    for save in ("input", "output")
                ),
            ),
            "Does rounding to bfloat16 bring vanishing gradients back where the gradient is computed from "
            "the rounded output?",
        ),
    )
}


def answer(figure: Figure, outcomes: Sequence[Outcome]) -> str:
    """Four sentences: the question, accuracies, gradients, and times, of the pipelines in order."""
    groups = by_pipeline(outcomes)
    runs = [groups[pipeline.name] for pipeline in figure.pipelines]

    def listed(number: Callable[[Outcome], float], words: str, mean: Callable[..., Any] = np.mean) -> str:
        return "; ".join(
            f"{group[0].label}: {format(mean([number(run) for run in group]), words)}" for group in runs
        )

    def largest(run: Outcome) -> float:
        return float(np.nanmax(run.column("loss_gradient_q95")))

    accuracies = listed(lambda run: 100 * run.column("test_accuracy")[-1], ".1f")
    first = listed(lambda run: run.column("loss_gradient_q50")[0], ".1e", np.median)
    largest_ones = listed(largest, ".1e", np.median)
    seconds = listed(lambda run: run.about["seconds_of_all"] / len(run.about["trained_with_seeds"]), ".0f")
    epochs, seeds = len(runs[0][0].column("test_accuracy")), min(map(len, runs))
    return (
        f"{figure.question} Test accuracy after {epochs} epochs in per cent, mean of {seeds} "
        f"seed{'s' * (seeds > 1)} - {accuracies}. Gradients of the loss in the first epoch, median "
        f"coordinate and median over the seeds - {first}; the largest 95 % quantile of an epoch - "
        f"{largest_ones}. Seconds a seed - {seconds}."
    )
