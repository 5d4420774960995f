"""The paper's networks as data, and one builder (Appendix A of arXiv 2106.02260).

The column "Filters" of the paper's tables mixes two countings.  Table 3 is read so that each of its numbers
comes true: plain 3x3 "same" convolutions from 3 to 3 channels, and dense layers without biases, 384 = 48*8,
64 = 8*8, 80 = 8*10 weights.  `conv="separable"` and `bias=True` are the other readings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import sigscale as ss

CONVOLUTIONS = ("plain", "separable")
ACTIVATION = "_activation"


@dataclass(frozen=True)
class Architecture:
    """`stages` times (`convolutions`, then a 2x2 max pooling), then dense layers of these widths."""

    stages: int
    convolutions: int
    dense: tuple[int, ...]


TABLE_3 = Architecture(stages=3, convolutions=2, dense=(8, 8, 8, 10))


def build(
    architecture: Architecture,
    activation: Callable[[], nn.Module],
    *,
    conv: str = "plain",
    bias: bool = False,
) -> nn.Sequential:
    """The network for (n, 3, 32, 32) images; an activation after every layer but pooling and output.

    The output are logits: the soft-max is in the loss.  Layers are called conv1_1 (stage 1, number 1), ...,
    pool1, ..., dense1, ...; the activation after one of them is called so with `ACTIVATION` behind.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in range(1, architecture.stages + 1):
        for number in range(1, architecture.convolutions + 1):
            name = f"conv{stage}_{number}"
            layers |= _convolution(name, conv, bias)
            layers[name + ACTIVATION] = activation()
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    width = 3 * (32 >> architecture.stages) ** 2
    for number, units in enumerate(architecture.dense, 1):
        name = f"dense{number}"
        layers[name] = nn.Linear(width, units, bias=bias)
        layers[name + ACTIVATION] = activation()
        width = units
    layers.popitem()
    return nn.Sequential(layers).to(memory_format=torch.channels_last)  # 1.6 times as fast on a CPU


def _convolution(name: str, conv: str, bias: bool) -> dict[str, nn.Module]:
    if conv == "plain":
        return {name: nn.Conv2d(3, 3, 3, padding="same", bias=bias)}
    if conv == "separable":
        return {
            name: nn.Conv2d(3, 3, 3, padding="same", groups=3, bias=False),
            f"{name}_pointwise": nn.Conv2d(3, 3, 1, bias=bias),
        }
    raise ValueError(f"conv={conv!r}: must be one of {', '.join(CONVOLUTIONS)}")


def initialize(network: nn.Module, generator: torch.Generator) -> None:
    """Weights uniform on [-10, 10), the paper's start for Table 3; biases (the paper is silent) zero."""
    ss.init.large_uniform_(network, 10.0, generator)
