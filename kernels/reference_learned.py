"""The plain-PyTorch twin of the kernels with an alpha that learns, for a layer or for each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .functions import Function

TABLE = 1 << 18  # 16-bit values from which on a table that serves one step pays
FAR = 2.0**60  # of abs(u), beyond which u f'(u) is 0 or its limit, and an infinite u would make NaN of it


def forward(function: Function, x: Tensor, alpha: Tensor) -> Tensor:
    """alpha f(x / alpha), laid out as torch.tanh(x) would be."""
    scale = float(alpha) if alpha.numel() == 1 else alpha
    return reference.forward(function, x, scale, table=TABLE)


def backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """g f'(u) and, summed over what shares an alpha, g (f(u) - u f'(u)), with u = x / alpha."""
    shared = alpha.numel() == 1
    scale = reference.scale_of(function, x, float(alpha) if shared else alpha)
    in_x = torch.empty_like(x) if dx else x  # x where nothing is written
    total = torch.zeros(alpha.numel(), dtype=torch.float64)
    rooms = reference.Room(), reference.Room()
    for part, incoming, result in reference.parts(shared, x, g, in_x):
        u = scale.over_alpha(part, rooms[0].like(part))
        s = reference.slope(function, part, rooms[1].like(part).copy_(u), scale)
        if dalpha:
            terms = _alpha_slope(function, u.clamp_(-FAR, FAR), s).mul_(incoming)
            total += terms.sum([d for d in range(terms.ndim) if d != 1 or shared]).double()
        if dx:
            torch.mul(s, incoming, out=result) if result.dtype is s.dtype else result.copy_(s.mul_(incoming))
    return in_x if dx else None, total.to(alpha.dtype).view_as(alpha) if dalpha else None


def _alpha_slope(function: Function, u: Tensor, s: Tensor) -> Tensor:
    """f(u) - u f'(u) with s = f'(u)."""
    if function.torch_alpha_slope is None or u.dtype == torch.float64:
        return torch.addcmul(function.torch_value(u), u, s, value=-1)
    return function.torch_alpha_slope(u, s)


def composed_backward(
    function: Function, g: Tensor, x: Tensor, alpha: Tensor, *, dx: bool, dalpha: bool
) -> tuple[Tensor | None, Tensor | None]:
    """As `backward`, in PyTorch operations that are differentiable in grad mode."""
    wide, g_wide = reference.widened(x), reference.widened(g)
    u = wide / reference.by_channel(alpha, x).to(wide.dtype)
    slope = function.torch_slope(u)
    in_x = (g_wide * slope).to(g.dtype) if dx else None
    if not dalpha:
        return in_x, None
    u = u.clamp(-FAR, FAR)
    terms = g_wide * (function.torch_value(u) - u * slope)
    total = terms.sum([d for d in range(terms.ndim) if d != 1 or alpha.numel() == 1])
    return in_x, total.to(alpha.dtype).view_as(alpha)
