"""The activations in a graph of torch.compile: autograd Functions of operations that it can trace.

Where no kernel counts the gradient, it is plain arithmetic, which Inductor fuses with its neighbors; as in
eager mode, the slope comes from the input or the output, so that gradients of 16-bit types survive.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._checks import is_exporting
from ._counting import counted, counts_in_graph, takes_part
from .kernels import device, reference
from .kernels.functions import FUNCTIONS, Function
from .sketch import QuantileSketch


class CompiledActivation(torch.autograd.Function):
    """y = alpha f(x / alpha), keeping x or y for the backward pass, which counts dx if there are counts."""

    @staticmethod
    def forward(
        x: Tensor,
        counts: Tensor | None,
        on: Tensor | None,
        name: str,
        alpha: float,
        keep_output: bool,
        m: int,
    ) -> Tensor:
        return reference.composed(FUNCTIONS[name], x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.counts, ctx.on, ctx.name, ctx.alpha, ctx.keep_output, ctx.m = inputs
        ctx.save_for_backward(output if ctx.keep_output else x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (saved,) = ctx.saved_tensors
        if ctx.counts is None:
            function = FUNCTIONS[ctx.name]
            dx = reference.composed_backward(function, g, saved, ctx.alpha, from_output=ctx.keep_output)
        else:
            dx = torch.ops.sigscale.backward_count_(
                ctx.counts, ctx.on, g, saved, ctx.name, ctx.alpha, ctx.keep_output, ctx.m
            )
        return dx, None, None, None, None, None, None


class CompiledLearnedActivation(torch.autograd.Function):
    """y = alpha f(x / alpha), differentiable with respect to alpha as well; keeps x."""

    @staticmethod
    def forward(
        x: Tensor, alpha: Tensor, counts: Tensor | None, on: Tensor | None, name: str, m: int
    ) -> Tensor:
        return reference.composed(FUNCTIONS[name], x, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, alpha, ctx.counts, ctx.on, ctx.name, ctx.m = inputs
        ctx.save_for_backward(x, alpha)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = ctx.saved_tensors
        if ctx.counts is None:
            function = FUNCTIONS[ctx.name]
            dx, dalpha = reference.composed_learned_backward(function, g, x, alpha, dx=True, dalpha=True)
        else:
            dx, dalpha = torch.ops.sigscale.learned_backward_count_(
                ctx.counts, ctx.on, g, x, alpha, ctx.name, ctx.m
            )
        return dx, dalpha, None, None, None, None


def is_compiled(x: Tensor) -> bool:
    """Whether torch.compile traces an ordinary tensor, outside of torch.func transforms."""
    return (
        torch.compiler.is_compiling()
        and not is_exporting()
        and not torch._C._are_functorch_transforms_active()
        and type(x) in (Tensor, torch.nn.Parameter)
        and device.is_supported(x)
    )


def activate(
    function: Function, x: Tensor, alpha: float, keep_output: bool, sketch: QuantileSketch | None
) -> Tensor:
    """alpha f(x / alpha) in the graph that torch.compile traces."""
    x, counts, on, m = _counting(x, sketch)
    return CompiledActivation.apply(x, counts, on, function.name, alpha, keep_output, m)  # type: ignore[no-any-return]


def activate_learned(function: Function, x: Tensor, alpha: Tensor, sketch: QuantileSketch | None) -> Tensor:
    """The same with an alpha that learns."""
    x, counts, on, m = _counting(x, sketch)
    return CompiledLearnedActivation.apply(x, alpha, counts, on, function.name, m)  # type: ignore[no-any-return]


def _counting(x: Tensor, sketch: QuantileSketch | None) -> tuple[Tensor, Tensor | None, Tensor | None, int]:
    """x, and what a kernel that computes and counts dx needs; without kernels, x counts its gradient."""
    if sketch is not None and not device.takes_kernel(x):
        x, sketch = counted(x, sketch), None
    if sketch is None or not takes_part(x):
        return x, None, None, 0
    return x, counts_in_graph(sketch, x.device), sketch.switch, sketch.mantissa_bits
