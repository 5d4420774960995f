"""The paper's networks as data, and one builder (Appendix A of arXiv 2106.02260).

The column "Filters" of the paper's tables mixes two countings.  Each table is read so that every one of its
numbers comes true:

    Table 1       parameters: 36 = 27 + 9 of a depthwise-separable 3x3 convolution of 3 channels without
                  biases, dense 392 = 48*8 + 8 and 90 = 8*10 + 10 with biases
    Tables 2, 3   3 filters of a plain 3x3 convolution, dense 384 = 48*8, 64 = 8*8, 80 = 8*10 weights

`conv` and `bias` of `build` are for the other readings.

`join` makes one network out of those of s seeds, with the same names of layers:

    images        (b, 3 s, h, h)    channels of all networks beside each other: grouped convolutions
    features      (s, b, f)         batched matrix products
    parameters    (s, ...)          that of each layer of all networks, stacked

Nothing but the order of additions differs from s networks one after the other: every operation acts on each
network by itself, Adam and penalties act on single numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import sigscale as ss
from sigscale.kernels.convolution import convolve

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


class Stacked(nn.Module):
    """Layers of s networks: their parameters stacked, in float32, and used in the dtype of the input."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.seeds = len(layers)
        for name, _ in layers[0].named_parameters():
            stack = torch.stack([layer.get_parameter(name).detach() for layer in layers])
            self.register_parameter(name.replace(".", "_"), nn.Parameter(stack))

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        """Weights (s, out, in, ...) and biases (s, out), if the layers have any."""
        return self.get_parameter("weight"), self._parameters.get("bias")


class StackedConv2d(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors()
        y = convolve(x, weight.to(x.dtype).flatten(0, 1))
        return y if bias is None else y + bias.to(y.dtype).flatten()[:, None, None]


class StackedSeparable(StackedConv2d):
    """As one convolution, whose weights are the products of those of both steps."""

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        depthwise = self.get_parameter("depthwise_weight").transpose(1, 2)  # (s, 1, 3, 3, 3)
        return self.get_parameter("pointwise_weight") * depthwise, self._parameters.get("pointwise_bias")


class StackedLinear(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors()
        weight = weight.to(x.dtype).transpose(1, 2)
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.to(x.dtype)[:, None], x, weight)


class StackedFlatten(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(1, (self.seeds, -1))
        return split.transpose(0, 1).flatten(2)


class StackedBatchNorm(nn.Module):
    """Batch normalization of each network's channels, or features, by themselves; parameters (s, n)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        states = [layer.state_dict() for layer in layers]
        beside = {
            name: torch.cat([state[name] for state in states]) for name in states[0] if states[0][name].dim()
        }
        weight = beside["weight"]
        self.norm = nn.BatchNorm2d(len(weight), dtype=weight.dtype)
        self.norm.load_state_dict(beside, strict=False)  # but the count of batches, which is one for all

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # features
            y: Tensor = self.norm(x.transpose(1, 2).flatten(0, 1)[None, ..., None])
            return y.view(len(x), -1, x.shape[1]).mT
        return self.norm(x)  # type: ignore[no-any-return]


class StackedAlpha(nn.Module):
    """An activation whose alpha each network learns for itself."""

    def __init__(self, layers: Sequence[ss.nn.Activation]) -> None:
        super().__init__()
        alphas = torch.cat([layer.get_parameter("log2_alpha").detach() for layer in layers])
        self.activation = type(layers[0])(learnable=True, num_parameters=len(alphas), dtype=alphas.dtype)
        self.activation.log2_alpha = nn.Parameter(alphas)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self.activation(x[None])[0]  # type: ignore[no-any-return]
        split = x.unflatten(1, (self.activation.num_parameters, -1))
        return self.activation(split).flatten(1, 2)  # type: ignore[no-any-return]


STACKED: dict[type[nn.Module], Callable[[Sequence[Any]], nn.Module]] = {
    nn.Conv2d: StackedConv2d,
    SeparableConv2d: StackedSeparable,
    nn.Linear: StackedLinear,
    nn.Flatten: StackedFlatten,
    nn.BatchNorm1d: StackedBatchNorm,
    nn.BatchNorm2d: StackedBatchNorm,
}


def images(x: Tensor) -> Tensor:
    """Images (b, s, 3, h, h) of s networks as they take them: (b, 3 s, h, h), on a CPU channels last."""
    layout = torch.contiguous_format if x.is_cuda else torch.channels_last
    return x.flatten(1, 2).contiguous(memory_format=layout)


def join(networks: Sequence[nn.Sequential]) -> nn.Sequential:
    """One network out of several of the same architecture; `images` prepares what it takes.

    Its parameters are copies, (s, ...) each, and its layers have the names of theirs.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in networks[0].named_children():
        alike = [network.get_submodule(name) for network in networks]
        if isinstance(layer, ss.nn.Activation) and layer.learnable:
            layers[name] = StackedAlpha(alike)  # type: ignore[arg-type]
        elif kind := STACKED.get(type(layer)):
            layers[name] = kind(alike)
        else:
            layers[name] = layer  # pooling and activations act on single numbers and images
    return nn.Sequential(layers)
