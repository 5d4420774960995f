"""The hooks of a monitor: they count the gradient with respect to the input of activation modules.

A tap counts in the backward pass only, so recomputing a forward pass counts nothing. In copies of a model,
by copy or pickle, the hooks do nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._autograd import count_gradient, counted
from .._checks import DTYPES
from ..kernels.device import is_capturing
from ..nn.activation import Activation, check_free
from ..sketch import QuantileSketch


class Hook:
    """A hook of a module, whose copies do nothing."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return inert, ()


def inert() -> Callable[..., None]:
    return no_hook


def no_hook(*arguments: Any) -> None:
    pass


class CountInput(Hook):
    """Forward pre-hook of a module, with a sketch that counts the gradient of its input."""

    def __init__(self, name: str, sketch: QuantileSketch) -> None:
        self.name = name
        self.sketch: QuantileSketch | None = sketch

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        x: Any = args[0] if args else kwargs.get("input")
        if self.sketch is None or not measurable(x, self.name):
            return None
        if getattr(module, "inplace", False):
            count_overwritten(x, self.sketch)
            return None
        if args:
            return (counted(x, self.sketch), *args[1:]), kwargs
        return args, {**kwargs, "input": counted(x, self.sketch)}


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
    if not (isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()):
        return False
    if x.dtype not in DTYPES or x.is_nested or x.layout is not torch.strided:
        kind = "a nested tensor" if x.is_nested else f"{x.dtype}, {x.layout}"
        raise TypeError(
            "a monitor counts dense gradients of dtype float16, bfloat16, float32 or float64; "
            f"the input of {name!r} is {kind}: leave it out with exclude={name!r}"
        )
    return True


class RowSketch(QuantileSketch):
    """A sketch whose counts are a row of others; a copy of the module that has it has none."""

    note_capture: Callable[[], None]

    def point_to(self, counts: Tensor, note_capture: Callable[[], None]) -> None:
        """Count there; `note_capture` is called when a CUDA graph is captured that does."""
        self._counts, self.note_capture = counts, note_capture

    def counts_on(self, device: torch.device) -> Tensor:
        if is_capturing(device):
            self.note_capture()
        return super().counts_on(device)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Tap:
    """An activation module and the sketch that counts the gradient of its input."""

    def __init__(self, module: nn.Module, name: str, mantissa_bits: int) -> None:
        self.module, self.sketch = module, RowSketch(mantissa_bits)
        self.hook: CountInput | None = None
        if not isinstance(module, Activation):
            self.hook = CountInput(name, self.sketch)
            self.handle = module.register_forward_pre_hook(self.hook, with_kwargs=True)
        self.listen(True)

    def listen(self, on: bool) -> None:
        """Start or stop counting."""
        if self.hook is not None:
            self.hook.sketch = self.sketch if on else None
        elif vars(self.module).get("grad_sketch") in (None, self.sketch):  # else the user's own
            vars(self.module).pop("grad_sketch", None)
            if on:
                vars(self.module)["grad_sketch"] = self.sketch

    def close(self) -> None:
        if self.hook is not None:
            self.handle.remove()
        self.listen(False)


def forget_compiled(taps: Sequence[Tap]) -> None:
    """Make torch.compile look again at modules with new hooks, which it otherwise overlooks."""
    if any(tap.hook for tap in taps) and "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def check_trackable(
    modules: Sequence[tuple[str, nn.Module]],
    tensors: Sequence[tuple[str, nn.Parameter]],
    taken: set[nn.Module | nn.Parameter],
) -> None:
    """Raise ValueError if there is nothing to measure, or something is measured already."""
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
    check_free(modules)
