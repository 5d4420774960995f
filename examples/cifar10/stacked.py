"""Many networks of one architecture as one, with a leading dimension for the seeds.

    images        (b, 3 s, h, h)    channels of all networks beside each other: grouped convolutions
    features      (s, b, f)         batched matrix products
    parameters    (s, ...)          that of each layer of all networks, stacked

Nothing but the order of additions differs from s networks one after the other: every operation acts on each
network by itself, Adam and penalties act on single numbers.  `join` makes it, and keeps the names of layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10.networks import SeparableConv2d
from sigscale.kernels.convolution import convolve


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


class Conv2d(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors()
        y = convolve(x, weight.to(x.dtype).flatten(0, 1))
        return y if bias is None else y + bias.to(y.dtype).flatten()[:, None, None]


class Separable(Conv2d):
    """As one convolution, whose weights are the products of those of both steps."""

    def tensors(self) -> tuple[Tensor, Tensor | None]:
        depthwise = self.get_parameter("depthwise_weight").transpose(1, 2)  # (s, 1, 3, 3, 3)
        return self.get_parameter("pointwise_weight") * depthwise, self._parameters.get("pointwise_bias")


class Linear(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tensors()
        weight = weight.to(x.dtype).transpose(1, 2)
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.to(x.dtype)[:, None], x, weight)


class Flatten(Stacked):
    def forward(self, x: Tensor) -> Tensor:
        split: Tensor = x.unflatten(1, (self.seeds, -1))
        return split.transpose(0, 1).flatten(2)


class BatchNorm(nn.Module):
    """Batch normalization of each network's channels, or features, by themselves; parameters (s, n)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        states = [layer.state_dict() for layer in layers]
        beside = {
            name: torch.cat([state[name] for state in states]) for name in states[0] if states[0][name].dim()
        }
        weight = beside["weight"]
        self.norm = nn.BatchNorm1d(len(weight), dtype=weight.dtype)
        self.norm.load_state_dict(beside, strict=False)  # but the count of batches, which is one for all

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:  # features
            y: Tensor = self.norm(x.transpose(1, 2).flatten(0, 1)[None])
            return y.view(len(x), -1, x.shape[1]).mT
        return self.norm(x.flatten(2)).view_as(x)  # type: ignore[no-any-return]


class Learned(nn.Module):
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
    nn.Conv2d: Conv2d,
    SeparableConv2d: Separable,
    nn.Linear: Linear,
    nn.Flatten: Flatten,
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
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
            layers[name] = Learned(alike)  # type: ignore[arg-type]
        elif kind := STACKED.get(type(layer)):
            layers[name] = kind(alike)
        else:
            layers[name] = layer  # pooling and activations act on single numbers and images
    return nn.Sequential(layers)
