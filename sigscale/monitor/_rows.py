"""Which row of a monitor's counts belongs to whom, and the parameters' gradients that go there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from .._checks import DTYPES
from .._names import Selection, named_parameters
from ._reduction import Reduction

TOTALS = {"activation": "all activations", "parameter": "all parameters"}


class Rows:
    """Totals, activations and parameters, in this order; parameters may come later."""

    def __init__(self, activations: Sequence[str], parameters: Sequence[str] | None) -> None:
        there = bool(activations), parameters is not None
        kinds = [kind for kind, is_there in zip(TOTALS, there, strict=True) if is_there]
        self.totals = len(kinds)
        self.first_parameter = len(kinds) + len(activations)
        self.names = [TOTALS[kind] for kind in kinds] + [*activations]
        self.kinds = ["total"] * len(kinds) + ["activation"] * len(activations)
        self.add(parameters or ())

    def __len__(self) -> int:
        return len(self.names)

    def add(self, parameters: Iterable[str]) -> None:
        new = [*parameters]
        self.names += new
        self.kinds += ["parameter"] * len(new)
        self.of = {name: row for row, name in enumerate(self.names)}

    def are_parameters(self, device: torch.device) -> Tensor:
        """Whether each row is of parameters, (rows,)."""
        mask = torch.zeros(len(self), dtype=torch.bool, device=device)
        mask[self.first_parameter :] = True
        if TOTALS["parameter"] in self.names:
            mask[self.totals - 1] = True
        return mask

    def sum_up(self, counts: Tensor) -> None:
        """Fill the rows of the totals, of counts (rows, bins)."""
        for row, name in enumerate(self.names[: self.totals]):
            of_parameters = name == TOTALS["parameter"]
            first, last = (
                (self.first_parameter, len(self)) if of_parameters else (self.totals, self.first_parameter)
            )
            torch.sum(counts[first:last], 0, out=counts[row])


class ParameterGradients:
    """The gradients of the selected parameters (None: of none), whichever the model has at the time."""

    def __init__(
        self, model: nn.Module, selection: Selection | None, reduction: Reduction, device: torch.device
    ) -> None:
        self._model, self._reduction, self._device = model, reduction, device
        self._selection = selection
        self._selected: dict[str, bool] = {}

    def tracked(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Selected parameters that are trained, or have been."""
        if self._selection is None:
            return
        for name, parameter in named_parameters(self._model):
            selected = self._selected.get(name)
            if selected is None:
                selected = self._selected[name] = name in self._selection
            if selected and (parameter.requires_grad or parameter.grad is not None):
                yield name, parameter

    def now(self) -> dict[str, Tensor | None]:
        """For each tracked parameter what this process counts of its gradient, None if nothing.

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
