"""The pipelines of the paper's four figures, and of our own comparisons (`--also`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10 import networks
from examples.cifar10.networks import Architecture, Initializer

R = 0.01
"""The paper's factor of the L2 penalty, r/2 * sum(theta^2)."""
ALPHA = 2.0


@dataclass(frozen=True)
class Pipeline:
    """One line of a figure: a network, its activation, its start and its penalty.

    `l2` and `l1` are the factors of r/2 * sum(theta^2) and s * sum(|theta|); `dtype` is that of the
    activations between the layers, parameters are float32.
    """

    name: str
    label: str
    architecture: Architecture
    activation: Callable[[], nn.Module]
    initialize: Initializer
    l2: float = 0.0
    l1: float = 0.0
    normalize: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Figure:
    """Pipelines that are drawn together; `question` is what a comparison of ours is to answer."""

    name: str
    title: str
    pipelines: tuple[Pipeline, ...]
    question: str = ""


class NaiveTanh(nn.Module):
    """alpha tanh(x): the "naive scaling" of Section 2.3, whose slope at 0 is alpha instead of 1."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * torch.tanh(x)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


large = partial(Pipeline, architecture=networks.TABLE_1, initialize=networks.large_uniform)
deep = partial(Pipeline, architecture=networks.TABLE_2, initialize=networks.small_normal)
combined = partial(Pipeline, architecture=networks.TABLE_3, initialize=networks.large_uniform)

RELU = (
    combined("combined-relu", "relu", activation=nn.ReLU),
    combined("combined-relu-r", "relu, r = 0.01", activation=nn.ReLU, l2=R),
)
FIGURES = {
    "1": Figure(
        "figure1",
        "Large-parameters regime (network of Table 1, parameters from [-10, 10))",
        (
            large("large-tanh", "tanh", activation=nn.Tanh),
            large("large-tanh-r", "tanh, r = 0.01", activation=nn.Tanh, l2=R),
        ),
    ),
    "2": Figure(
        "figure2",
        "Many-layers regime (network of Table 2, parameters normal with deviation 0.05)",
        (
            deep("deep-tanh", "tanh", activation=nn.Tanh),
            deep("deep-tanh-a2", "tanh, alpha = 2", activation=partial(ss.nn.Tanh, ALPHA)),
        ),
    ),
    "3": Figure(
        "figure3",
        "Combined regime (network of Table 3, parameters from [-10, 10))",
        (
            combined("combined-tanh", "tanh", activation=nn.Tanh),
            combined(
                "combined-tanh-a2-r",
                "tanh, alpha = 2, r = 0.01",
                activation=partial(ss.nn.Tanh, ALPHA),
                l2=R,
            ),
            *RELU,
        ),
    ),
    "4": Figure(
        "figure4",
        "Combined regime with the logistic function (network of Table 3, parameters from [-10, 10))",
        (
            combined("combined-sigmoid", "sigmoid", activation=nn.Sigmoid),
            combined(
                "combined-sigmoid-a2-r",
                "sigmoid, alpha = 2, r = 0.01",
                activation=partial(ss.nn.Sigmoid, ALPHA),
                l2=R,
            ),
            *RELU,
        ),
    ),
}


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


def unique(figures: Iterable[Figure]) -> list[Pipeline]:
    """The pipelines of several figures, each once: Figures 3 and 4 share those with relu."""
    return list({p.name: p for figure in figures for p in figure.pipelines}.values())
