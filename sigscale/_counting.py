"""Counting the gradient of any tensor, and where its counts lie when a graph is to count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _operators as operators
from ._checks import is_exporting
from ._sharding import own_part
from .kernels import device
from .sketch import QuantileSketch

# Of PyTorch's first vmap, on which autograd.functional.jacobian(vectorize=True) still relies.
is_legacy_batchedtensor = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


class CountGradient(torch.autograd.Function):
    """x itself; the backward pass counts the gradient that arrives."""

    @staticmethod
    def forward(x: Tensor, sketch: QuantileSketch) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, QuantileSketch], output: Tensor) -> None:
        ctx.sketch = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, None], x: Tensor, sketch: QuantileSketch) -> tuple[Tensor, Any]:
        return CountGradient.apply(x, sketch), in_dims[0]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        count_gradient(ctx.sketch, g)
        return g, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, _: None) -> Tensor:
        return x_t.view_as(x_t)


class CompiledCount(torch.autograd.Function):
    """`CountGradient` for torch.compile, which refuses a jvp; counts that were saved must not change."""

    @staticmethod
    def forward(x: Tensor, counts: Tensor, on: Tensor | None, m: int, copies: bool) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.counts, ctx.on, ctx.m, ctx.copies = inputs

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        part = own_part(g, copies=ctx.copies)
        if part is not None:
            torch.ops.sigscale.count_(ctx.counts, ctx.on, part, ctx.m)
        return g, None, None, None, None


def counted(x: Tensor, sketch: QuantileSketch) -> Tensor:
    """x, whose gradient the backward pass counts."""
    if not takes_part(x):
        return x
    device.check_supported(x.device, "grad_sketch")
    if not torch.compiler.is_compiling():
        return CountGradient.apply(x, sketch)  # type: ignore[no-any-return]
    if torch._C._are_functorch_transforms_active():
        torch._dynamo.graph_break(  # eager mode evaluates, and refuses to count
            msg="sigscale counts no gradient under torch.func: leave grad_sketch out, or close the monitor"
        )
    counts = counts_in_graph(sketch, x.device)
    settings = sketch.switch, sketch.mantissa_bits, sketch.counts_copies
    return CompiledCount.apply(x, counts, *settings)  # type: ignore[no-any-return]


def takes_part(x: Tensor) -> bool:
    """Whether a backward pass that counts may come to x. Under vmap, x does not tell of one around it.

    An exported program is a copy of the model, which no monitor measures.
    """
    if not torch.is_grad_enabled() or is_exporting():
        return False
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        return False
    return x.requires_grad or torch._C._are_functorch_transforms_active()


def count_gradient(sketch: QuantileSketch, g: Tensor) -> None:
    """Add a gradient to a sketch: now or, where operations are traced, when their graph runs.

    One without values, a fake tensor or one on the meta device, adds nothing.
    """
    if torch.compiler.is_compiling():  # compiled autograd
        count_in_graph(sketch, g)
        return
    _check_countable(g)
    if _is_recorded():
        _record(sketch, g)
    elif not (g.is_meta or _is_fake(g)):
        for part in g.unbind() if g.is_nested else (g,):
            sketch.update(part)


def count_in_graph(sketch: QuantileSketch, g: Tensor) -> None:
    part = own_part(g, copies=sketch.counts_copies)
    if part is not None:
        counts = counts_in_graph(sketch, part.device)
        torch.ops.sigscale.count_(counts, sketch.switch, part, sketch.mantissa_bits)


def _check_countable(g: Tensor) -> None:
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "a gradient cannot be counted under torch.func transforms, which see no single backward pass: "
            "leave grad_sketch out, or close the monitor, for this call"
        )
    if is_batched(g):
        operators.refuse_batched()


def _is_recorded() -> bool:
    """Whether make_fx or AOTAutograd records operations into a graph."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _record(sketch: QuantileSketch, g: Tensor) -> None:
    """Count in a graph that make_fx traces, and that holds the counts as a constant."""
    if not _is_fake(g):
        count_in_graph(sketch, g)
        return
    from torch._guards import detect_fake_mode
    from torch._subclasses.functional_tensor import FunctionalTensor

    if isinstance(g, FunctionalTensor):
        raise RuntimeError(
            "AOTAutograd traced a gradient whose counts are no input of its graph, and would never count it: "
            "use torch.compile, leave grad_sketch out, or close the monitor, for this call"
        )
    mode: Any = detect_fake_mode(g)
    allowed, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        count_in_graph(sketch, g)
    finally:
        mode.allow_non_fake_inputs = allowed


def counts_in_graph(sketch: QuantileSketch, device: torch.device) -> Tensor:
    """The counts, for an operation in a graph, which must find them allocated."""
    sketch.allocate(device)
    return sketch.counts_on(device)


def _is_fake(g: Tensor) -> bool:
    if type(g) is Tensor:
        return False
    from torch._subclasses.fake_tensor import is_fake  # takes a third of a second to import

    return is_fake(g)


def is_batched(g: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or is_legacy_batchedtensor(g)
