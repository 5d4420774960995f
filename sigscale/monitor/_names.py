"""What a monitor tracks in a model: activations and parameters, by the names they have without wrappers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from .._names import named_modules
from ..kernels.device import SUPPORTED
from ..nn.activation import Activation

ELEMENTWISE = (
    *(activation.CELU, activation.ELU, activation.GELU, activation.Hardshrink, activation.Hardsigmoid),
    *(activation.Hardswish, activation.Hardtanh, activation.LeakyReLU, activation.LogSigmoid),
    *(activation.Mish, activation.PReLU, activation.ReLU, activation.ReLU6, activation.RReLU),
    *(activation.SELU, activation.Sigmoid, activation.SiLU, activation.Softplus, activation.Softshrink),
    *(activation.Softsign, activation.Tanh, activation.Tanhshrink, activation.Threshold),
)


def named_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The elementwise activation modules; a model that is one itself goes by the name of its class."""
    for name, module in named_modules(model):
        if isinstance(module, (Activation, *ELEMENTWISE)):
            yield name or type(module).__name__, module


def only_device(tracked: Iterable[Tensor], model: nn.Module) -> torch.device:
    """Where the tracked parameters lie; if there are none, the model's; if that has none, the default device.

    Raises:
        ValueError: on several devices, or on none.
    """
    candidates = (tracked, model.parameters(), model.buffers(), [torch.empty(0)])
    found = next(devices for tensors in candidates if (devices := {tensor.device for tensor in tensors}))
    if len(found) > 1:
        raise ValueError(
            "a monitor counts on one device; the parameters are on "
            f"{', '.join(sorted(map(str, found)))}: make a monitor for each device, with include=..."
        )
    (device,) = found
    if device.type not in SUPPORTED:
        remedy = "materialize it first, with model.to_empty(device=...)"
        raise ValueError(
            f"a monitor counts on the CPU or on a CUDA or ROCm device; the model is on {device}: "
            + (remedy if device.type == "meta" else "move it there, with model.to(device)")
        )
    return device
