"""The hooks of a monitor: they count the gradient with respect to the input of activation modules.

A tap counts in the backward pass only, so recomputing a forward pass counts nothing. Copies of a model, by
copy or pickle, are ordinary models without a monitor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import DTYPES
from .._counting import count_gradient, counted, takes_part
from .._overlay import class_over, uncover
from ..kernels.device import is_capturing
from ..nn.activation import Activation, check_free
from ..sketch import QuantileSketch


class RowSketch(QuantileSketch):
    """A sketch whose counts are a row of others; a copy of the module that has it has none."""

    name: str
    note_capture: Callable[[], None]

    def point_to(self, counts: Tensor, note_capture: Callable[[], None]) -> None:
        """Count there; `note_capture` is called when a CUDA graph is captured that does."""
        self._counts, self.note_capture = counts, note_capture

    def allocate(self, device: torch.device) -> None:
        """A row has its counts; and torch.compile is free to use one graph for several of them."""

    def counts_on(self, device: torch.device) -> Tensor:
        if is_capturing(device):
            self.note_capture()
        return super().counts_on(device)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


@cache
def counting_class(base: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of `base` whose grad_sketch counts the gradient of their input."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        sketch: RowSketch | None = self.grad_sketch  # type: ignore[assignment]
        x: Any = args[0] if args else kwargs.get("input")
        if sketch is None or not measurable(x, sketch.name):
            return base.forward(self, *args, **kwargs)
        overwrites = getattr(self, "inplace", False)
        if overwrites and not torch.compiler.is_compiling():
            count_overwritten(x, sketch)
            return base.forward(self, *args, **kwargs)
        inside = counted(x, sketch)
        inside = inside.clone() if overwrites else inside
        y = base.forward(self, inside, *args[1:], **{n: v for n, v in kwargs.items() if n != "input"})
        return x.copy_(y) if overwrites else y

    return class_over(base, {"forward": forward, "grad_sketch": None}, hidden=("grad_sketch",))


def count_overwritten(x: Tensor, sketch: QuantileSketch) -> None:
    """Count the gradient with respect to the values that x has now, where they are about to be overwritten.

    A hook of x keeps to these values, but for a view: overwriting it rewrites the history of its base, whose
    hooks stay.
    """
    base = x._base
    if base is None or not base.requires_grad:
        x.register_hook(lambda g: count_gradient(sketch, g))
        return
    view = x.size(), x.stride(), x.storage_offset() - base.storage_offset()
    size, stride = base.size(), base.stride()

    def count(g: Tensor) -> None:
        if g.stride() != stride:
            g = torch.empty_strided(size, stride, dtype=g.dtype, device=g.device).copy_(g)
        count_gradient(sketch, g.as_strided(*view))

    base.register_hook(count)


def measurable(x: Any, name: str) -> bool:
    """Whether x takes part in a backward pass; TypeError if it does and cannot be counted."""
    if not (isinstance(x, Tensor) and takes_part(x)):
        return False
    if x.dtype not in DTYPES or x.is_nested or x.layout is not torch.strided:
        kind = "a nested tensor" if x.is_nested else f"{x.dtype}, {x.layout}"
        raise TypeError(
            "a monitor counts dense gradients of dtype float16, bfloat16, float32 or float64; "
            f"the input of {name!r} is {kind}: leave it out with exclude={name!r}"
        )
    return True


class Tap:
    """An activation module and the sketch that counts the gradient of its input."""

    def __init__(self, module: nn.Module, name: str, mantissa_bits: int) -> None:
        self.module, self.sketch = module, RowSketch(mantissa_bits)
        self.sketch.name = name
        kind: Any = type(module)
        if not isinstance(module, Activation):
            module.__class__ = counting_class(kind)
        self.listen(True)

    def listen(self, on: bool) -> None:
        """Start or stop counting."""
        if vars(self.module).get("grad_sketch") in (None, self.sketch):  # else the user's own
            vars(self.module).pop("grad_sketch", None)
            if on:
                vars(self.module)["grad_sketch"] = self.sketch

    def close(self) -> None:
        self.listen(False)
        uncover(self.module)


def check_trackable(
    modules: Sequence[tuple[str, nn.Module]],
    tensors: Sequence[tuple[str, nn.Parameter]],
    taken: set[nn.Module | nn.Parameter],
) -> None:
    """Raise ValueError if there is nothing to measure, or something is measured already or cannot be."""
    if not (modules or tensors):
        raise ValueError(
            "the model must have parameters or elementwise activation modules to measure; got none that are "
            "selected: use modules such as sigscale.nn.Tanh rather than functions, widen include=, narrow "
            "exclude=, or leave activations and parameters True"
        )
    for name, thing in (*modules, *tensors):
        if thing in taken:
            raise ValueError(
                f"a tensor is measured by one monitor at a time; got {name!r}, which an open one measures: "
                "close() that one first, or leave it out with exclude=..."
            )
    for name, module in modules:
        if "forward" in vars(module) and not isinstance(module, Activation):
            raise ValueError(
                f"a monitor counts where the class computes; the forward of the module {name!r} was replaced "
                f"on the object: remove that, or leave it out with exclude={name!r}"
            )
    check_free(modules)
