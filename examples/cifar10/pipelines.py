"""The pipelines of the paper's four figures, and of our own comparisons (`--also`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

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

    def __init__(self, alpha: float = ALPHA) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.alpha * torch.tanh(x)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


large = partial(Pipeline, architecture=networks.TABLE_1, initialize=networks.large_uniform)
deep = partial(Pipeline, architecture=networks.TABLE_2, initialize=networks.small_normal)
combined = partial(Pipeline, architecture=networks.TABLE_3, initialize=networks.large_uniform)


def _pair(
    name: str, plain: Callable[[], nn.Module], scaled: type[ss.nn.Activation]
) -> tuple[Pipeline, Pipeline]:
    """An activation in the combined regime, without and with both remedies."""
    both = partial(scaled, ALPHA)
    return (
        combined(f"combined-{name}", name, activation=plain),
        combined(f"combined-{name}-a2-r", f"{name}, alpha = 2, r = 0.01", activation=both, l2=R),
    )


def _scaled_by(alpha: float) -> Pipeline:
    activation = partial(ss.nn.Tanh, alpha)
    return deep(f"deep-tanh-a{alpha:g}", f"tanh, alpha = {alpha:g}", activation=activation)


def _bfloat16(save: Literal["input", "output"]) -> Pipeline:
    name, label = f"combined-tanh-a2-r-bf16-{save}", f"bfloat16, from the {save}"
    activation = partial(ss.nn.Tanh, ALPHA, save=save)
    return combined(name, label, activation=activation, l2=R, dtype="bfloat16")


_LARGE = large("large-tanh", "tanh", activation=nn.Tanh)
_LARGE_R = large("large-tanh-r", "tanh, r = 0.01", activation=nn.Tanh, l2=R)
_DEEP, _SCALED = deep("deep-tanh", "tanh", activation=nn.Tanh), _scaled_by(ALPHA)
_TANH, _BOTH = _pair("tanh", nn.Tanh, ss.nn.Tanh)
_RELU = combined("combined-relu", "relu", activation=nn.ReLU)
_RELU_R = combined("combined-relu-r", "relu, r = 0.01", activation=nn.ReLU, l2=R)
_LEARNED = partial(ss.nn.Tanh, ALPHA, learnable=True)

FIGURES = {
    "1": Figure(
        "figure1",
        "Large-parameters regime (network of Table 1, parameters from [-10, 10))",
        (_LARGE, _LARGE_R),
    ),
    "2": Figure(
        "figure2",
        "Many-layers regime (network of Table 2, parameters normal with deviation 0.05)",
        (_DEEP, _SCALED),
    ),
    "3": Figure(
        "figure3",
        "Combined regime (network of Table 3, parameters from [-10, 10))",
        (_TANH, _BOTH, _RELU, _RELU_R),
    ),
    "4": Figure(
        "figure4",
        "Combined regime with the logistic function (network of Table 3, parameters from [-10, 10))",
        (*_pair("sigmoid", nn.Sigmoid, ss.nn.Sigmoid), _RELU, _RELU_R),
    ),
}
_ALSO = (
    Figure(
        "also-normalization",
        "Batch normalization or scaling, in the many-layers regime (network of Table 2)",
        (_DEEP, _SCALED, deep("deep-tanh-norm", "tanh, batch norm", activation=nn.Tanh, normalize=True)),
        "Is scaling an alternative to batch normalization, and a cheaper one?",
    ),
    *(
        Figure(
            f"also-{name}",
            f"{name.capitalize()} in the combined regime (network of Table 3)",
            (*_pair(name, partial(activation, 1.0), activation), _BOTH),
            f"Do the remedies help {name} as they help tanh?",
        )
        for name, activation in (("arctan", ss.nn.Arctan), ("softsign", ss.nn.Softsign))
    ),
    Figure(
        "also-alpha",
        "Scales, and one that is learned, in the many-layers regime (network of Table 2)",
        (
            *(_DEEP, _SCALED, _scaled_by(1.5), _scaled_by(3.0), _scaled_by(5.0)),
            deep("deep-tanh-learned", "tanh, alpha learned", activation=_LEARNED),
        ),
        "Is alpha = 2 a good choice, and does learning alpha find a better one?",
    ),
    Figure(
        "also-l1",
        "L1 and L2 penalties in the large-parameters regime (network of Table 1)",
        (_LARGE, _LARGE_R, large("large-tanh-s", "tanh, s = 0.01", activation=nn.Tanh, l1=R)),
        "Does an L1 penalty, named in Section 4, do what the L2 penalty does?",
    ),
    Figure(
        "also-naive",
        "Scaling and naive scaling in the many-layers regime (network of Table 2)",
        (
            *(_DEEP, _SCALED),
            deep("deep-tanh-naive2", "2 tanh(z)", activation=partial(NaiveTanh, 2.0)),
            deep("deep-tanh-naive5", "5 tanh(z)", activation=partial(NaiveTanh, 5.0)),
        ),
        'Do the gradients of "naive scaling", alpha f(z), explode, as Section 2.3 warns?',
    ),
    Figure(
        "also-rounding",
        "bfloat16, gradients from the saved input or output, in the combined regime (network of Table 3)",
        (_BOTH, _bfloat16("input"), _bfloat16("output")),
        "Does rounding to bfloat16 bring vanishing gradients back if they come from the rounded output?",
    ),
)
ALSO = {figure.name: figure for figure in _ALSO}


def unique(figures: Iterable[Figure]) -> list[Pipeline]:
    """The pipelines of several figures, each once: Figures 3 and 4 share those with relu."""
    return list({p.name: p for figure in figures for p in figure.pipelines}.values())
