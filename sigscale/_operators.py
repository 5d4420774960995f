"""Counting as operations that PyTorch's dispatcher knows, so that compiled and traced graphs can hold them.

    count_                     counts += histogram of x
    backward_count_            dx = g f'(x / alpha), and counts += histogram of dx, in one kernel
    learned_backward_count_    the same with an alpha that learns, and the gradient of alpha

They change `counts`, which is why no compiler drops, repeats or reorders them. Eager mode calls the kernels
directly.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from .kernels import activation, learned, sketch
from .kernels.functions import FUNCTIONS

SCHEMAS = (
    "count_(Tensor(a!) counts, Tensor x, int m) -> ()",
    "backward_count_(Tensor(a!) counts, Tensor g, Tensor saved, str function, float alpha, bool from_output, "
    "int m) -> Tensor",
    "learned_backward_count_(Tensor(a!) counts, Tensor g, Tensor x, Tensor alpha, str function, int m) "
    "-> (Tensor, Tensor)",
)


def count(counts: Tensor, x: Tensor, m: int) -> None:
    if x.numel():
        sketch.count(counts, x, m)


def backward_count(
    counts: Tensor, g: Tensor, saved: Tensor, function: str, alpha: float, from_output: bool, m: int
) -> Tensor:
    f = FUNCTIONS[function]
    return activation.backward(f, g, saved, alpha, from_output=from_output, counts=counts, m=m)


def learned_backward_count(
    counts: Tensor, g: Tensor, x: Tensor, alpha: Tensor, function: str, m: int
) -> tuple[Tensor, Tensor]:
    f = FUNCTIONS[function]
    dx, dalpha = learned.backward(f, g, x, alpha, dx=True, dalpha=True, counts=counts, m=m)
    return dx, dalpha  # type: ignore[return-value]


def refuse_batched(*args: Any) -> NoReturn:
    raise RuntimeError(
        "gradients batched by vmap (is_grads_batched, jacobian(vectorize=True), torch.func.vmap) cannot be "
        "counted: leave grad_sketch out, or close the monitor, for this call"
    )


library = torch.library.Library("sigscale", "FRAGMENT")
for schema in SCHEMAS:
    library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
for name, implementation, fake in (
    ("count_", count, lambda counts, x, m: None),
    ("backward_count_", backward_count, lambda counts, g, saved, *rest: torch.empty_like(saved)),
    (
        "learned_backward_count_",
        learned_backward_count,
        lambda counts, g, x, alpha, *rest: (torch.empty_like(x), torch.empty_like(alpha)),
    ),
):
    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)
    torch.library.register_fake(f"sigscale::{name}", fake, lib=library)
    torch.library.register_vmap(f"sigscale::{name}", refuse_batched, lib=library)
    library.impl(name, refuse_batched, "Batched")  # of PyTorch's first vmap
    library.impl(name, torch.library.fallthrough_kernel, "Autograd")
