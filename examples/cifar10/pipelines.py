"""What the paper compares: the pipelines of its four figures; `beyond` has what we compare besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn

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


def unique(figures: Iterable[Figure]) -> list[Pipeline]:
    """The pipelines of several figures, each once: Figures 3 and 4 share those with relu."""
    return list({p.name: p for figure in figures for p in figure.pipelines}.values())
