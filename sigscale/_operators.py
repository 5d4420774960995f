"""Counting as operations that PyTorch's dispatcher knows, so that compiled and traced graphs can hold them.

    count_                     counts += histogram of x
    backward_count_            dx = g f'(x / alpha), and counts += histogram of dx, in one kernel
    learned_backward_count_    the same with an alpha that learns, and the gradient of alpha

They change `counts`, unless there is an `on` and on[0] is 0, which is why no compiler drops, repeats or
reorders them. Eager mode calls the kernels directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .kernels import activation, learned, sketch
from .kernels.functions import FUNCTIONS


def count(counts: Tensor, on: Tensor | None, x: Tensor, m: int) -> None:
    if x.numel():
        sketch.count(counts, x, m, on)


def backward_count(
    counts: Tensor,
    on: Tensor | None,
    g: Tensor,
    saved: Tensor,
    function: str,
    alpha: float,
    from_output: bool,
    m: int,
) -> Tensor:
    f = FUNCTIONS[function]
    return activation.backward(f, g, saved, alpha, from_output=from_output, counts=counts, m=m, on=on)


def learned_backward_count(
    counts: Tensor, on: Tensor | None, g: Tensor, x: Tensor, alpha: Tensor, function: str, m: int
) -> tuple[Tensor, Tensor]:
    f = FUNCTIONS[function]
    dx, dalpha = learned.backward(f, g, x, alpha, dx=True, dalpha=True, counts=counts, m=m, on=on)
    return dx, dalpha  # type: ignore[return-value]


def refuse_batched(*args: Any) -> NoReturn:
    raise RuntimeError(
        "gradients batched by vmap (is_grads_batched, jacobian(vectorize=True), torch.func.vmap) cannot be "
        "counted: leave grad_sketch out, or close the monitor, for this call"
    )


library = torch.library.Library("sigscale", "FRAGMENT")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operation that changes counts; `fake` makes results without values."""
    name = schema.split("(")[0]
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout))
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"sigscale::{name}", fake, lib=library)
    torch.library.register_vmap(f"sigscale::{name}", refuse_batched, lib=library)
    library.impl(name, refuse_batched, "Batched")  # of PyTorch's first vmap
    library.impl(name, torch.library.fallthrough_kernel, "Autograd")


register(
    "count_(Tensor(a!) counts, Tensor? on, Tensor x, int m) -> ()",
    count,
    lambda counts, on, x, m: None,
)
register(
    "backward_count_(Tensor(a!) counts, Tensor? on, Tensor g, Tensor saved, str function, float alpha, "
    "bool from_output, int m) -> Tensor",
    backward_count,
    lambda counts, on, g, saved, *rest: torch.empty_like(saved),
)
register(
    "learned_backward_count_(Tensor(a!) counts, Tensor? on, Tensor g, Tensor x, Tensor alpha, str function, "
    "int m) -> (Tensor, Tensor)",
    learned_backward_count,
    lambda counts, on, g, x, alpha, *rest: (torch.empty_like(x), torch.empty_like(alpha)),
)
