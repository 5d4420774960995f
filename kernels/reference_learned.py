"""The plain-PyTorch twin of the kernels with an alpha that learns, one per layer or per channel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import reference
from .functions import Function

CHUNK = 1 << 16  # elements, whose temporaries fit the second-level cache of a core
FAR = 2.0**60  # of abs(u), beyond which u f'(u) is 0 or its limit, and an infinite u would make NaN of it


def forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    return reference.forward(function, x, float(alpha) if alpha.numel() == 1 else alpha)


def backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """With u = x / alpha: g f'(u), and g (f(u) - u f'(u)) summed over the elements that share an alpha."""
    scale = reference.scale_of(function, x, float(alpha) if alpha.numel() == 1 else alpha)
    in_x = torch.empty_like(x) if dx else x  # x where nothing is written
    total = torch.zeros(alpha.numel(), dtype=torch.float64)
    for part, incoming, result in _chunks(alpha.numel() == 1, x, g, in_x):
        u = scale.over_alpha(part)
        s = reference.slope(function, part, u.clone(), scale)
        if dx:
            torch.mul(s, incoming, out=result) if result.dtype == s.dtype else result.copy_(s * incoming)
        if dalpha:
            terms = _alpha_slope(function, u.clamp_(-FAR, FAR), s).mul_(incoming)
            total += terms.sum([d for d in range(terms.ndim) if d != 1 or len(total) == 1]).double()
    return in_x if dx else None, total.to(alpha.dtype).view_as(alpha) if dalpha else None


def _alpha_slope(function: Function, u: Tensor, s: Tensor) -> Tensor:
    """f(u) - u f'(u) with s = f'(u)."""
    t = function.torch_value(u.clone())
    if function.torch_alpha_slope is None or u.dtype == torch.float64:
        return t.addcmul_(u, s, value=-1)
    return function.torch_alpha_slope(u, t, s)


def _chunks(shared: bool, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors in parts of about CHUNK elements: of memory if all share one alpha, else of dimension 0."""
    first = tensors[0]
    n = first.numel()
    if n == 0:
        return
    if shared and len({t.stride() for t in (*tensors, torch.empty_like(first))}) == 1:  # dense, and alike
        tensors, size = tuple(t.as_strided((n,), (1,)) for t in tensors), CHUNK
    else:
        tensors = tuple(torch.atleast_1d(t) for t in tensors)
        size = max(CHUNK * len(tensors[0]) // n, 1)
    yield from zip(*(t.split(size) for t in tensors), strict=True)
