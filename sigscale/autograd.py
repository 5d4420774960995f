"""The autograd Function over the kernels, and the decision when it is needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .kernels import launch, reference
from .kernels.registry import Function

# Of PyTorch's first vmap, on which autograd.functional.jacobian(vectorize=True) still relies.
is_legacy_batchedtensor = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda tensor: False)


class Activation(torch.autograd.Function):
    """y = alpha f(x / alpha), keeping x or y for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Function, alpha: float, keep_output: bool) -> Tensor:
        y = launch.forward(function, x, alpha)
        ctx.save_for_backward(y if keep_output else x)
        ctx.settings = function, alpha, keep_output
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        function, alpha, keep_output = ctx.settings
        # In grad mode the backward pass itself is to be differentiated; under vmap, g is several gradients.
        batched = torch._C._are_functorch_transforms_active() or is_legacy_batchedtensor(g)
        by_kernel = type(g) is Tensor and not (torch.is_grad_enabled() or batched or g.is_neg())
        gradient = launch.backward if by_kernel else reference.composed_backward
        return gradient(function, g, saved, alpha, from_output=keep_output), None, None, None


def activate(function: Function, x: Tensor, alpha: float, save: str | None) -> Tensor:
    """alpha f(x / alpha) of checked arguments, differentiable as often as wanted."""
    if not _plain(x):
        return reference.composed(function, x, alpha)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return launch.forward(function, x, alpha)
    keep_output = save == "output" if save else x.dtype.itemsize > 2
    return Activation.apply(x, function, alpha, keep_output)  # type: ignore[no-any-return]


def _plain(x: Tensor) -> bool:
    """Whether x is no more than its memory: not lazy, not a subclass, and nobody traces or transforms."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not x.is_meta
        and not x.is_neg()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and forward_ad._current_level < 0
    )
