"""The autograd Functions over the kernels, and the decision when they are needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _compiled as compiled
from ._checks import is_plain
from ._counting import count_gradient, counted, is_batched
from ._sharding import beside
from .kernels import activation, learned, reference, reference_learned
from .kernels.functions import Function
from .sketch import QuantileSketch


class Activation(torch.autograd.Function):
    """y = alpha f(x / alpha), keeping x or y for the backward pass, which counts dx if there is a sketch.

    Where x is kept and dx counted, x is an output as well: if the backward pass is differentiated, what it
    gives x arrives here, and is counted in one with what comes through y.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        function: Function,
        alpha: float,
        keep_output: bool,
        sketch: QuantileSketch | None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        y = activation.forward(function, x, alpha)
        ctx.settings = function, alpha, keep_output, sketch
        if keep_output or sketch is None:
            ctx.save_for_backward(y if keep_output else x)
            return y
        return y, _kept_as_output(ctx, x)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, direct: Tensor | None = None
    ) -> tuple[Tensor | None, None, None, None, None]:
        (saved,) = _saved_tensors(ctx)
        function, alpha, keep_output, sketch = ctx.settings
        if g is None or direct is not None or not _by_kernel(g):
            dx = direct
            if g is not None:
                dx = reference.composed_backward(function, g, saved, alpha, from_output=keep_output)
                dx = dx if direct is None else dx + direct
            if sketch is not None and dx is not None:
                count_gradient(sketch, dx)
        elif sketch is None:
            dx = activation.backward(function, g, saved, alpha, from_output=keep_output)
        else:
            dx = activation.backward(
                function, g, saved, alpha, from_output=keep_output, **sketch.counted_on(saved.device)
            )
        return dx, None, None, None, None


class LearnedActivation(torch.autograd.Function):
    """y = alpha f(x / alpha), differentiable with respect to alpha as well; keeps x for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, function: Function, sketch: QuantileSketch | None
    ) -> Tensor | tuple[Tensor, Tensor]:
        y = learned.forward(function, x, alpha)
        ctx.settings = function, sketch
        if sketch is None:
            ctx.save_for_backward(x, alpha)
            return y
        return y, _kept_as_output(ctx, x, alpha)

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, direct: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, alpha = _saved_tensors(ctx)
        function, sketch = ctx.settings
        wanted: dict[str, Any] = {"dx": ctx.needs_input_grad[0], "dalpha": ctx.needs_input_grad[1]}
        if not wanted["dx"]:
            sketch = None
        if g is None or direct is not None or not _by_kernel(g):
            dx, dalpha = direct, None
            if g is not None:
                dx, dalpha = reference_learned.composed_backward(function, g, x, alpha, **wanted)
                dx = dx if dx is None or direct is None else dx + direct
            if sketch is not None and dx is not None:
                count_gradient(sketch, dx)
        elif sketch is None:
            dx, dalpha = learned.backward(function, g, x, alpha, **wanted)
        else:
            dx, dalpha = learned.backward(function, g, x, alpha, **wanted, **sketch.counted_on(x.device))
        return dx, dalpha, None, None


def _kept_as_output(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
    """A view of x that is an output of the node, and saved with others for its backward pass."""
    kept = x.view_as(x)
    ctx.save_for_backward(kept, *others)
    ctx.set_materialize_grads(False)
    return kept


def _saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise RuntimeError(
            f"{error}\n"
            'An activation of sigscale keeps its input with save="input" or, by default, in 16 bits. '
            'If y = f(x); x += y overwrote that: save="output" keeps the output instead, and x = x + y '
            "overwrites nothing"
        ) from error


def activate(
    function: Function, x: Tensor, alpha: float | Tensor, save: str | None, sketch: QuantileSketch | None
) -> Tensor:
    """alpha f(x / alpha) of checked arguments, differentiable as often as wanted."""
    if sketch is not None and sketch.is_idle():
        sketch = None
    if not is_plain(x) or (isinstance(alpha, Tensor) and not is_plain(alpha)):
        if not compiled.is_compiled(x):
            alpha = beside(alpha, x) if isinstance(alpha, Tensor) else alpha
            return reference.composed(function, x if sketch is None else counted(x, sketch), alpha)
        if isinstance(alpha, Tensor):
            return compiled.activate_learned(function, x, alpha, sketch)
        return compiled.activate(function, x, alpha, _keeps_output(function, x.dtype, alpha, save), sketch)
    if isinstance(alpha, Tensor):
        if not ((x.requires_grad or alpha.requires_grad) and torch.is_grad_enabled()):
            return learned.forward(function, x, alpha)
        return _first(LearnedActivation.apply(x, alpha, function, sketch))
    if not (x.requires_grad and torch.is_grad_enabled()):
        return activation.forward(function, x, alpha)
    keep_output = _keeps_output(function, x.dtype, alpha, save)
    return _first(Activation.apply(x, function, alpha, keep_output, sketch))


def _keeps_output(function: Function, dtype: torch.dtype, alpha: float, save: str | None) -> bool:
    keep_output = save == "output" if save else dtype.itemsize > 2
    if keep_output and dtype is torch.float16:
        return _is_exact_in_float16(function, alpha)
    return keep_output


def _first(outputs: Any) -> Tensor:
    return outputs[0] if type(outputs) is tuple else outputs  # type: ignore[no-any-return]


def _is_exact_in_float16(function: Function, alpha: float) -> bool:
    """Whether float16 holds the output to its full precision, so that the slope can be had from it."""
    limits = torch.finfo(torch.float16)
    return limits.smallest_normal <= alpha and alpha * max(-function.lower, function.upper) <= limits.max


def _by_kernel(g: Tensor) -> bool:
    """Whether kernels can take a gradient on.

    In grad mode the backward pass itself is to be differentiated; under vmap, g is several gradients; and
    compiled autograd traces plain operations.
    """
    return not torch.compiler.is_compiling() and (
        type(g) is Tensor and not (torch.is_grad_enabled() or is_batched(g) or g.is_neg())
    )
