"""The 3x3 "same" convolution of 3 channels, for many networks at once.

    y[b, s, o, h, w] = sum over i, dy, dx of  weight[s, o, i, dy, dx] x[b, s, i, h + dy - 1, w + dx - 1]

Libraries treat it as a grouped convolution, whose kernels are built for many channels per group. On a GPU the
kernels below do just the arithmetic needed: a program holds a block of pixels of one network, reads their 27
neighbors (from the first-level cache) and writes 3 values. Elements moved, of N in x:

    convolution_kernel        y, or the gradient of x     reads N, writes N
    weight_gradient_kernel    the gradient of weight      reads x and g, writes 9 sums per program

On a CPU, and without Triton, PyTorch's grouped convolution takes over; in the layout (b, h, w, s, i), whose
vectors run over the networks, it wastes little.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from . import device
from ._triton import HAS_TRITON, tl, triton

PIXELS_A_PROGRAM = 512
TILE = 128  # pixels in one step of the weights' gradient, one per thread
PROGRAMS = 768  # for the weights' gradient, roughly: a few per multiprocessor
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}
TAPS = 16  # 9, rounded up to a power of two


@triton.jit
def shifted(q, dy, dx, SIDE: tl.constexpr):
    """Whether the neighbor (dy, dx) of pixel q lies in the image."""
    row, column = q // SIDE + dy, q % SIDE + dx
    return (row >= 0) & (row < SIDE) & (column >= 0) & (column < SIDE)


@triton.jit
def convolution_kernel(
    x_ptr, weight_ptr, y_ptr, pixels, seeds, SIDE: tl.constexpr, BACKWARD: tl.constexpr, BLOCK: tl.constexpr
):
    """y from x; with BACKWARD, the gradient of x from that of y: a convolution with rotated weights."""
    seed = tl.program_id(1)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image, q = p // (SIDE * SIDE), p % (SIDE * SIDE)
    base = (image.to(tl.int64) * seeds + seed) * (3 * SIDE * SIDE) + q
    weight_ptr += seed * 81
    DTYPE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    y0 = tl.zeros([BLOCK], DTYPE)
    y1 = tl.zeros([BLOCK], DTYPE)
    y2 = tl.zeros([BLOCK], DTYPE)
    for i in tl.static_range(3):
        for tap in tl.static_range(9):
            mask = shifted(q, tap // 3 - 1, tap % 3 - 1, SIDE) & (p < pixels)
            offset = i * SIDE * SIDE + (tap // 3 - 1) * SIDE + tap % 3 - 1
            x = tl.load(x_ptr + base + offset, mask=mask, other=0.0).to(DTYPE)
            if BACKWARD:
                turned = weight_ptr + i * 27 + (8 - tap)
                y0 += x * tl.load(turned).to(DTYPE)
                y1 += x * tl.load(turned + 9).to(DTYPE)
                y2 += x * tl.load(turned + 18).to(DTYPE)
            else:
                straight = weight_ptr + i * 9 + tap
                y0 += x * tl.load(straight).to(DTYPE)
                y1 += x * tl.load(straight + 27).to(DTYPE)
                y2 += x * tl.load(straight + 54).to(DTYPE)
    tl.store(y_ptr + base, y0.to(y_ptr.dtype.element_ty), mask=p < pixels)
    tl.store(y_ptr + base + SIDE * SIDE, y1.to(y_ptr.dtype.element_ty), mask=p < pixels)
    tl.store(y_ptr + base + 2 * SIDE * SIDE, y2.to(y_ptr.dtype.element_ty), mask=p < pixels)


@triton.jit
def weight_gradient_kernel(
    x_ptr, g_ptr, sums_ptr, pixels, share, seeds, SIDE: tl.constexpr, TAPS: tl.constexpr, TILE: tl.constexpr
):
    """The sums of one network and input channel over a share of the pixels: (3 output channels, TAPS)."""
    seed, channel = tl.program_id(1) // 3, tl.program_id(1) % 3
    start = tl.program_id(0) * share
    tap = tl.arange(0, TAPS)[:, None]
    dy, dx = tap // 3 - 1, tap % 3 - 1
    DTYPE: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    sum0 = tl.zeros([TAPS, TILE], DTYPE)
    sum1 = tl.zeros([TAPS, TILE], DTYPE)
    sum2 = tl.zeros([TAPS, TILE], DTYPE)
    for offset in range(0, share, TILE):
        p = start + offset + tl.arange(0, TILE)[None, :]
        image, q = p // (SIDE * SIDE), p % (SIDE * SIDE)
        base = (image.to(tl.int64) * seeds + seed) * (3 * SIDE * SIDE) + q
        there = p < pixels
        mask = shifted(q, dy, dx, SIDE) & there & (tap < 9)
        x = tl.load(x_ptr + base + channel * (SIDE * SIDE) + dy * SIDE + dx, mask=mask, other=0.0).to(DTYPE)
        sum0 += x * tl.load(g_ptr + base, mask=there, other=0.0).to(DTYPE)
        sum1 += x * tl.load(g_ptr + base + SIDE * SIDE, mask=there, other=0.0).to(DTYPE)
        sum2 += x * tl.load(g_ptr + base + 2 * SIDE * SIDE, mask=there, other=0.0).to(DTYPE)
    sums_ptr += (tl.program_id(0) * seeds * 3 + tl.program_id(1)) * (3 * TAPS) + tl.arange(0, TAPS)
    tl.store(sums_ptr, tl.sum(sum0, axis=1))
    tl.store(sums_ptr + TAPS, tl.sum(sum1, axis=1))
    tl.store(sums_ptr + 2 * TAPS, tl.sum(sum2, axis=1))


class Convolution(torch.autograd.Function):
    """x (b, 3 s, h, h) and weight (3 s, 3, 3, 3) -> y (b, 3 s, h, h), by the kernels above."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, backward=False)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        g = g.contiguous()
        dx = _convolve(g, weight, backward=True) if ctx.needs_input_grad[0] else None
        return dx, _weight_gradient(x, g).to(weight.dtype) if ctx.needs_input_grad[1] else None


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution of s networks: x (b, 3 s, h, h) and weight (3 s, 3, 3, 3) -> y (b, 3 s, h, h)."""
    if HAS_TRITON and device.takes_kernel(x):
        return Convolution.apply(x, weight)  # type: ignore[no-any-return]
    return F.conv2d(x, weight, padding=1, groups=len(weight) // 3)


def _convolve(x: Tensor, weight: Tensor, *, backward: bool) -> Tensor:
    seeds, pixels = len(weight) // 3, x.numel() // x.shape[1]
    y = torch.empty_like(x)
    grid = triton.cdiv(pixels, PIXELS_A_PROGRAM), seeds
    convolution_kernel[grid](
        x, weight, y, pixels, seeds, SIDE=x.shape[-1], BACKWARD=backward, BLOCK=PIXELS_A_PROGRAM, **OPTIONS
    )
    return y


def _weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    programs = min(triton.cdiv(PROGRAMS, channels), triton.cdiv(pixels, TILE))
    share = TILE * triton.cdiv(pixels, TILE * programs)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    sums = torch.empty(programs, channels, 3, TAPS, dtype=wide, device=x.device)
    weight_gradient_kernel[programs, channels](
        x, g, sums, pixels, share, channels // 3, SIDE=x.shape[-1], TAPS=TAPS, TILE=TILE, **OPTIONS
    )
    taps = sums.sum(0)[..., :9].view(channels // 3, 3, 3, 3, 3)  # network, input, output, dy, dx
    return taps.transpose(1, 2).reshape(channels, 3, 3, 3)
