"""A weight penalty in plain PyTorch: its value, its gradient, and the kernel's twin, which adds that."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]  # what torch._foreach functions take
PLAIN = {Tensor, torch.nn.Parameter}  # others, such as DTensor, have ideas of their own about memory


def value(parameters: Tensors, l2: float, l1: float) -> Tensor:
    """l2 / 2 sum theta^2 + l1 sum |theta|, 0-d, fp32 (fp64 for fp64), of tensors of one type and device."""
    first = parameters[0]
    if first.is_cpu or type(first) not in PLAIN:
        return by_sums(parameters, l2, l1)
    exact = exact_dtype(first)
    total = torch.zeros((), dtype=exact, device=first.device)
    if l2:
        norms = torch.stack(torch._foreach_norm(parameters, 2, dtype=exact))
        total = total + 0.5 * l2 * norms.square().sum()
    if l1:
        total = total + l1 * torch.stack(torch._foreach_norm(parameters, 1, dtype=exact)).sum()
    return total


def exact_dtype(tensor: Tensor) -> torch.dtype:
    """The type in which a tensor's values are computed."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def by_sums(parameters: Tensors, l2: float, l1: float) -> Tensor:
    """The value by sums: on a CPU they add up pairwise, where norms lose digits one value after the other.

    Of sharded tensors they stay sums of the shards until these meet at the end.
    """
    total: Tensor | None = None
    for parameter in parameters:
        theta = parameter.to(exact_dtype(parameter))
        for factor, part in ((0.5 * l2, theta.square), (l1, theta.abs)):
            if factor:
                term = factor * part().sum(dtype=torch.float64)
                total = term if total is None else total + term
    assert total is not None
    total = total.to(exact_dtype(parameters[0]))
    return total.full_tensor() if hasattr(total, "full_tensor") else total


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
    return [parameter.sign() for parameter in parameters]  # which DTensor of torch 2.11 has alone


def add_penalty(into: Tensors, parameters: Tensors, l2: float, l1: float, scale: Tensor | None) -> None:
    """into += scale (l2 theta + l1 sign(theta)), in place, of tensors of one type and device."""
    first = parameters[0]
    narrow = first.dtype.itemsize == 2
    if scale is not None or (narrow and (type(first) not in PLAIN or (l2 and l1))):
        torch._foreach_add_(into, gradients(parameters, l2, l1, scale))
        return
    for factor, tensors in ((l2, parameters), (l1, _signs(parameters) if l1 else ())):
        if factor and narrow:  # alpha of an addition on a CPU is rounded to 16 bits, 1e-8 to 0; value is not
            ones = [torch.ones((), dtype=first.dtype, device=first.device)] * len(into)
            torch._foreach_addcmul_(into, tensors, ones, value=factor)
        elif factor:
            torch._foreach_add_(into, tensors, alpha=factor)
