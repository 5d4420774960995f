"""The paper's networks as data, and one builder (Appendix A of arXiv 2106.02260).

The column "Filters" of the paper's tables mixes two countings.  Each table is read so that every one of its
numbers comes true:

    Table 1       parameters: 36 = 27 + 9 of a depthwise-separable 3x3 convolution of 3 channels without
                  biases, dense 392 = 48*8 + 8 and 90 = 8*10 + 10 with biases
    Tables 2, 3   3 filters of a plain 3x3 convolution, dense 384 = 48*8, 64 = 8*8, 80 = 8*10 weights

`conv` and `bias` of `build` are for the other readings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sigscale as ss

CHANNELS, PIXELS, CLASSES = 3, 32, 10
CONVOLUTIONS = ("plain", "separable")
ACTIVATION = "_activation"

Initializer = Callable[[nn.Module, torch.Generator], object]


@dataclass(frozen=True)
class Architecture:
    """`stages` times (`convolutions`, then a 2x2 max pooling), then dense layers of these widths."""

    name: str
    stages: int
    convolutions: int
    dense: tuple[int, ...]
    conv: str = "plain"
    dense_bias: bool = False


TABLE_1 = Architecture("Table 1", stages=3, convolutions=2, dense=(8, 10), conv="separable", dense_bias=True)
TABLE_2 = Architecture("Table 2", stages=3, convolutions=3, dense=(8, 8, 8, 8, 10))
TABLE_3 = Architecture("Table 3", stages=3, convolutions=2, dense=(8, 8, 8, 10))


class SeparableConv2d(nn.Module):
    """A 3x3 convolution of each channel by itself, then a 1x1 convolution of all; biases in the latter."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS, bias=False)
        self.pointwise = nn.Conv2d(CHANNELS, CHANNELS, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))  # type: ignore[no-any-return]


def build(
    architecture: Architecture,
    activation: Callable[[], nn.Module],
    *,
    conv: str | None = None,
    bias: bool | None = None,
    normalize: bool = False,
) -> nn.Sequential:
    """The network for (n, 3, 32, 32) images; an activation after every layer but pooling and output.

    The output are logits: the soft-max is in the loss.  Layers are called conv1_1 (stage 1, number 1), ...,
    pool1, ..., dense1, ...; the activation after one of them is called so with `ACTIVATION` behind.

    Args:
        conv: "plain" or "separable" instead of the architecture's.
        bias: whether convolutions and dense layers all have biases, or none; by default as in its table.
        normalize: batch normalization ahead of every activation.
    """
    conv = architecture.conv if conv is None else conv
    if conv not in CONVOLUTIONS:
        raise ValueError(f"conv={conv!r}: must be one of {', '.join(CONVOLUTIONS)}")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage in range(1, architecture.stages + 1):
        for number in range(1, architecture.convolutions + 1):
            name = f"conv{stage}_{number}"
            layers[name] = (
                SeparableConv2d(bool(bias))
                if conv == "separable"
                else nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=bool(bias))
            )
            if normalize:
                layers[f"{name}_norm"] = nn.BatchNorm2d(CHANNELS)
            layers[name + ACTIVATION] = activation()
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    width = CHANNELS * (PIXELS >> architecture.stages) ** 2
    for number, units in enumerate(architecture.dense, 1):
        name = f"dense{number}"
        layers[name] = nn.Linear(width, units, bias=architecture.dense_bias if bias is None else bias)
        if number < len(architecture.dense):
            if normalize:
                layers[f"{name}_norm"] = nn.BatchNorm1d(units)
            layers[name + ACTIVATION] = activation()
        width = units
    return nn.Sequential(layers)


def large_uniform(network: nn.Module, generator: torch.Generator) -> None:
    """Weights uniform on [-10, 10), biases (of which the paper is silent) zero: Sections 3.1 and 3.3."""
    _weights_only(network, generator, ss.init.large_uniform_)


def small_normal(network: nn.Module, generator: torch.Generator) -> None:
    """Weights normal with mean 0 and standard deviation 0.05, biases zero: Section 3.2."""
    _weights_only(network, generator, ss.init.small_normal_)


def _weights_only(network: nn.Module, generator: torch.Generator, draw: Callable[..., object]) -> None:
    """All layers but batch normalization, which keeps its gain of 1 and shift of 0."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            draw(layer, generator=generator)
