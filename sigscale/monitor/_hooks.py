"""How a stock activation module counts the gradient of its input: by a class laid over its own.

It counts in the backward pass only, so recomputing a forward pass counts nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .._checks import DTYPES
from .._counting import count_gradient, counted, takes_part
from .._overlay import class_over
from ..sketch import QuantileSketch


class NamedSketch(QuantileSketch):
    """A sketch that knows which module it belongs to."""

    name: str


@cache
def counting_class(base: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of `base` whose grad_sketch counts the gradient of their input."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        sketch: NamedSketch | None = self.grad_sketch  # type: ignore[assignment]
        x: Any = args[0] if args else kwargs.get("input")
        if sketch is None or sketch.is_idle() or not measurable(x, sketch):
            return base.forward(self, *args, **kwargs)
        overwrites = getattr(self, "inplace", False)
        if overwrites and not torch.compiler.is_compiling():
            count_overwritten(x, sketch)
            return base.forward(self, *args, **kwargs)
        inside = counted(x, sketch)
        inside = inside.clone() if overwrites else inside
        y = base.forward(self, inside, *args[1:], **{n: v for n, v in kwargs.items() if n != "input"})
        return x.copy_(y) if overwrites else y

    def prepare_scriptable(self: nn.Module) -> NoReturn:  # torch.jit.script asks every module
        raise TypeError(
            f"torch.jit.script cannot compile {base.__name__} while it is monitored: close() the monitor "
            "first, or use torch.compile"
        )

    members = {"forward": forward, "grad_sketch": None, "__prepare_scriptable__": prepare_scriptable}
    return class_over(base, members, hidden=("grad_sketch",))


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


def measurable(x: Any, sketch: NamedSketch) -> bool:
    """Whether x takes part in a backward pass; TypeError if it does and cannot be counted."""
    if not (isinstance(x, Tensor) and takes_part(x)):
        return False
    name = sketch.name
    jagged = x.layout is torch.jagged and not torch.compiler.is_compiling()
    if x.dtype not in DTYPES or not (jagged or (x.layout is torch.strided and not x.is_nested)):
        kind = "a nested tensor" if x.is_nested else f"{x.dtype}, {x.layout}"
        raise TypeError(
            "a monitor counts dense gradients of dtype float16, bfloat16, float32 or float64; "
            f"the input of {name!r} is {kind}: leave it out with exclude={name!r}"
        )
    sketch.check_source(x)
    return True
