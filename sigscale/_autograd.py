"""The autograd Functions around the kernels, and the choice between these and plain arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _compiled as compiled
from ._checks import is_plain
from ._counting import count_gradient, counted, is_batched
from ._sharding import beside
from .kernels import activation, learned, reference
from .kernels.functions import Function
from .sketch import QuantileSketch

Settings = tuple[Function, float, bool, QuantileSketch | None]


class Activation(torch.autograd.Function):
    """y = alpha f(x / alpha), keeping x or y for the backward pass, which counts dx if there is a sketch.

    Where x is kept and dx counted, x is an output too: when the backward pass is differentiated, the gradient
    that reaches x through it arrives here, and is counted together with the one through y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, settings: Settings) -> Tensor | tuple[Tensor, Tensor]:
        function, alpha, keep_output, sketch = ctx.settings = settings  # in one: each argument takes time
        y = activation.forward(function, x, alpha)
        if keep_output or sketch is None:
            ctx.save_for_backward(y if keep_output else x)
            return y
        return y, _kept_as_output(ctx, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, direct: Tensor | None = None) -> tuple[Tensor | None, None]:
        (saved,) = _saved_tensors(ctx)
        function, alpha, keep_output, sketch = ctx.settings
        if g is not None and direct is None and _by_kernel(g):
            counting = _counting(sketch, saved)
            dx = activation.backward(function, g, saved, alpha, from_output=keep_output, **counting)
            return dx, None
        composed: Tensor | None = None
        if g is not None:
            composed = reference.composed_backward(function, g, saved, alpha, from_output=keep_output)
        return _counted_sum(composed, direct, sketch), None


class LearnedActivation(torch.autograd.Function):
    """y = alpha f(x / alpha), also differentiable with respect to alpha; keeps x for the backward pass."""

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
        if g is not None and direct is None and _by_kernel(g):
            dx, dalpha = learned.backward(function, g, x, alpha, **wanted, **_counting(sketch, x))
            return dx, dalpha, None, None
        dx, dalpha = None, None
        if g is not None:
            dx, dalpha = reference.composed_learned_backward(function, g, x, alpha, **wanted)
        return _counted_sum(dx, direct, sketch), dalpha, None, None


def _counting(sketch: QuantileSketch | None, like: Tensor) -> dict[str, Any]:
    """The arguments that make a kernel count."""
    return {} if sketch is None else sketch.counted_on(like.device)


def _counted_sum(dx: Tensor | None, direct: Tensor | None, sketch: QuantileSketch | None) -> Tensor | None:
    """The gradient with respect to x, through y and directly, counted if there is a sketch."""
    total = dx + direct if dx is not None and direct is not None else (direct if dx is None else dx)
    if sketch is not None and total is not None:
        count_gradient(sketch, total)
    return total


def _kept_as_output(ctx: Any, x: Tensor, *others: Tensor) -> Tensor:
    """A view of x to return as an output of the node; saved, with others, for the backward pass."""
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
            'An activation of sigscale keeps its input with save="input" and, by default, for 16-bit types. '
            'If y = f(x); x += y overwrote it: save="output" keeps the output instead, and x = x + y '
            "overwrites nothing"
        ) from error


def activate(
    function: Function, x: Tensor, alpha: float | Tensor, save: str | None, sketch: QuantileSketch | None
) -> Tensor:
    """alpha f(x / alpha) of checked arguments, differentiable any number of times."""
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
    outputs = Activation.apply(x, (function, alpha, keep_output, sketch))
    return outputs if sketch is None else _first(outputs)  # a call takes time


def _keeps_output(function: Function, dtype: torch.dtype, alpha: float, save: str | None) -> bool:
    keep_output = save == "output" if save else dtype.itemsize > 2
    if keep_output and dtype is torch.float16:
        return _is_exact_in_float16(function, alpha)
    return keep_output


def _first(outputs: Any) -> Tensor:
    return outputs[0] if type(outputs) is tuple else outputs  # type: ignore[no-any-return]


def _is_exact_in_float16(function: Function, alpha: float) -> bool:
    """Whether float16 holds the output in full precision, so that the slope can be computed from it."""
    limits = torch.finfo(torch.float16)
    return limits.smallest_normal <= alpha and alpha * max(-function.lower, function.upper) <= limits.max


def _by_kernel(g: Tensor) -> bool:
    """Whether kernels can take a gradient.

    In grad mode the backward pass is itself differentiated; under vmap, g is a batch of gradients; compiled
    autograd traces plain operations.
    """
    return type(g) is Tensor and not (
        is_compiling() or torch.is_grad_enabled() or g.is_neg() or is_batched(g)
    )
