"""What a monitor measures: the rows of its counts, and the gradients for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import activation

from .._checks import DTYPES
from .._names import Selection, named_modules, named_parameters
from .._sharding import Reduction
from ..kernels.device import SUPPORTED
from ..kernels.record import Layout
from ..nn.activation import Activation

TOTALS = {"activation": "all activations", "parameter": "all parameters"}


class Rows:
    """The layout of the counts: totals, activations, parameters, in this order; parameters may be added."""

    def __init__(self, activations: Sequence[str], parameters: Sequence[str] | None) -> None:
        there = bool(activations), parameters is not None
        kinds = [kind for kind, is_there in zip(TOTALS, there, strict=True) if is_there]
        self.totals, self._first_parameter = len(kinds), len(kinds) + len(activations)
        self.names = [TOTALS[kind] for kind in kinds] + [*activations]
        self.kinds = ["total"] * len(kinds) + ["activation"] * len(activations)
        self.add(parameters or ())

    def __len__(self) -> int:
        return len(self.names)

    @property
    def layout(self) -> Layout:
        return Layout(len(self), self.totals, self._first_parameter)

    @property
    def activations(self) -> slice:
        """The rows of the activations."""
        return slice(self.totals, self._first_parameter)

    @property
    def single(self) -> slice:
        """The rows of single tensors, all but the totals."""
        return slice(self.totals, len(self))

    def add(self, parameters: Iterable[str]) -> None:
        new = [*parameters]
        self.names += new
        self.kinds += ["parameter"] * len(new)
        self.of = {name: row for row, name in enumerate(self.names)}

    def are_parameters(self, device: torch.device) -> Tensor:
        """For each row, whether it belongs to parameters: (rows,)."""
        mask = torch.zeros(len(self), dtype=torch.bool, device=device)
        mask[self._first_parameter :] = True
        if TOTALS["parameter"] in self.names:
            mask[self.totals - 1] = True
        return mask


class ParameterGradients:
    """The gradients of the selected parameters (None: of none) that the model has at the time."""

    def __init__(
        self, model: nn.Module, selection: Selection | None, reduction: Reduction, device: torch.device
    ) -> None:
        self.model, self._reduction, self._device = model, reduction, device
        self._selection = selection
        self._selected: dict[str, bool] = {}

    def tracked(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Selected parameters that are or were trained."""
        if self._selection is None:
            return
        for name, parameter in named_parameters(self.model):
            selected = self._selected.get(name)
            if selected is None:
                selected = self._selected[name] = name in self._selection
            if selected and (parameter.requires_grad or parameter.grad is not None):
                yield name, parameter

    def now(self) -> dict[str, Tensor | None]:
        """For each tracked parameter, the part of its gradient that this process counts; None if nothing.

        Raises:
            TypeError, ValueError: a gradient cannot be counted.
        """
        return {name: self._part(name, parameter.grad) for name, parameter in self.tracked()}

    def _part(self, name: str, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:
            return None
        part = self._reduction.part(gradient)
        if part is None:
            return None
        if part.layout is not torch.strided or part.dtype not in DTYPES:
            kind = f"layout {part.layout}" if part.layout is not torch.strided else f"dtype {part.dtype}"
            raise TypeError(
                "a monitor counts dense gradients of dtype float16, bfloat16, float32 or float64; "
                f"that of the parameter {name!r} has {kind}: leave it out with exclude={name!r}"
            )
        if part.device != self._device:
            raise ValueError(
                f"the monitor counts on {self._device}, where the model was; the gradient of the parameter "
                f"{name!r} is on {part.device}: make the monitor after moving the model"
            )
        return part.resolve_neg()


ACTIVATIONS = (
    Activation,
    *(activation.CELU, activation.ELU, activation.GELU, activation.Hardshrink, activation.Hardsigmoid),
    *(activation.Hardswish, activation.Hardtanh, activation.LeakyReLU, activation.LogSigmoid),
    *(activation.Mish, activation.PReLU, activation.ReLU, activation.ReLU6, activation.RReLU),
    *(activation.SELU, activation.Sigmoid, activation.SiLU, activation.Softplus, activation.Softshrink),
    *(activation.Softsign, activation.Tanh, activation.Tanhshrink, activation.Threshold),
)


def named_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The elementwise activation modules; a model that is one itself goes by the name of its class."""
    for name, module in named_modules(model):
        if isinstance(module, ACTIVATIONS):
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
