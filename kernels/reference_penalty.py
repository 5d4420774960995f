"""The weight penalty in plain PyTorch: its value, its gradient, and the twin of the kernel that adds it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]  # what torch._foreach functions take
PLAIN = {Tensor, torch.nn.Parameter}  # others, such as DTensor, manage memory themselves

# PyTorch's CPU norms add sequentially in fp32 and lose digits on longer tensors (for 1e8 Gaussian numbers,
# 46 % of the sum of magnitudes); norms of pieces do not.
PIECE = 1 << 12


def value(parameters: Tensors, l2: float, l1: float) -> Tensor:
    """l2 / 2 sum theta^2 + l1 sum |theta|, 0-d, fp32 (fp64 for fp64), of tensors of one type and device."""
    exact = exact_dtype(parameters[0])
    if type(parameters[0]) not in PLAIN:
        total = _sum_of_shards(parameters, l2, l1, exact)
        return total.full_tensor() if hasattr(total, "full_tensor") else total
    pieces = list(_pieces(parameters))
    total = torch.zeros((), dtype=exact, device=parameters[0].device)
    if l2:
        norms = torch.stack(torch._foreach_norm(pieces, 2, dtype=exact))
        total = total + 0.5 * l2 * norms.square().sum()
    if l1:
        total = total + l1 * torch.stack(torch._foreach_norm(pieces, 1, dtype=exact)).sum()
    return total


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor's values are computed."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _pieces(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    for parameter in parameters:
        if parameter.is_cpu and parameter.numel() > PIECE:
            yield from parameter.detach().reshape(-1).split(PIECE)
        else:
            yield parameter


def _sum_of_shards(parameters: Tensors, l2: float, l1: float, exact: torch.dtype) -> Tensor:
    """The value by sums, which sharded tensors reduce over shards only at the end."""
    parts = []
    for parameter in (parameter.to(exact) for parameter in parameters):
        if l2:
            parts.append(0.5 * l2 * parameter.square().sum())
        if l1:
            parts.append(l1 * parameter.abs().sum())
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def gradients(parameters: Tensors, l2: float, l1: float, factor: Tensor | None = None) -> Tensors:
    """factor (l2 theta + l1 sign(theta)), in fp32 or fp64, of tensors of one type; differentiable."""
    exact = [parameter.to(exact_dtype(parameter)) for parameter in parameters]
    if not l1:
        found = torch._foreach_mul(exact, l2)
    else:
        found = torch._foreach_mul(_signs(exact), l1)
        if l2:
            found = torch._foreach_add(found, exact, alpha=l2)
    return found if factor is None else torch._foreach_mul(found, factor)


def _signs(parameters: Tensors) -> Tensors:
    if type(parameters[0]) in PLAIN:
        return torch._foreach_sign(parameters)
    return [parameter.sign() for parameter in parameters]  # all that DTensor has in torch 2.11


def add_penalty(into: Tensors, parameters: Tensors, l2: float, l1: float, scale: Tensor | None) -> None:
    """into += scale (l2 theta + l1 sign(theta)), in place, of tensors of one type and device."""
    first = parameters[0]
    narrow = first.dtype.itemsize == 2
    if scale is not None or (narrow and (type(first) not in PLAIN or (l2 and l1))):
        torch._foreach_add_(into, gradients(parameters, l2, l1, scale))
        return
    for factor, tensors in ((l2, parameters), (l1, _signs(parameters) if l1 else ())):
        if factor and narrow:  # a CPU addition rounds alpha to 16 bits, 1e-8 to 0, but not value
            ones = [torch.ones((), dtype=first.dtype, device=first.device)] * len(into)
            torch._foreach_addcmul_(into, tensors, ones, value=factor)
        elif factor:
            torch._foreach_add_(into, tensors, alpha=factor)
