"""Where a tensor is computed and how a kernel is launched: device choice, layout, grids, cached launches.

CUDA and HIP tensors go through the Triton kernels, CPU tensors through the plain-PyTorch twin or, where
TRITON_INTERPRET=1 was set before the import, through the kernels in Triton's interpreter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._optional import INTERPRETED, require_triton, triton
from .pointwise import backward_kernel, forward_kernel
from .registry import Function

NUM_WARPS = 4
THREADS = 32 * NUM_WARPS
# By bytes an element. A thread takes 32 bytes of a forward's input, and half of that of each input of a
# 16-bit backward, which holds both in fp32. Chosen without a GPU at hand.
FORWARD_BLOCK = {2: 16 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}
BACKWARD_BLOCK = {2: 8 * THREADS, 4: 8 * THREADS, 8: 4 * THREADS}
# What Triton compiles apart, and a cached launch must not mix: pointers that allow 128-bit accesses and those
# that do not, and (for AMD) tensors within the reach of 32-bit byte offsets and larger ones.
ALIGNMENT = 16
OFFSET_REACH = 2**31

# What is written is what runs: no contraction to fused multiply-adds behind the text's back (on which the
# default of Triton differs between versions).
OPTIONS = {"num_warps": NUM_WARPS, "enable_fp_fusion": False}


def forward(function: Function, x: Tensor, alpha: float) -> Tensor:
    """alpha f(x / alpha), with the strides that torch.tanh(x) would have."""
    if not takes_kernel(x):
        return reference.forward(function, x, alpha)
    x = dense(x)
    y = torch.empty_like(x)
    block = FORWARD_BLOCK[x.element_size()]
    _launch((function, "forward"), forward_kernel, function.value, block, alpha, x, y)
    return y


def backward(function: Function, g: Tensor, saved: Tensor, alpha: float, *, from_output: bool) -> Tensor:
    """g f'(x / alpha), from saved = x or, if `from_output`, from saved = alpha f(x / alpha)."""
    if not takes_kernel(saved):
        return reference.backward(function, g, saved, alpha, from_output=from_output)
    saved = dense(saved)
    dx = torch.empty_like(saved)
    if g.stride() != saved.stride():
        g = torch.empty_like(saved).copy_(g)
    slope = function.slope_from_output if from_output else function.slope
    block = BACKWARD_BLOCK[saved.element_size()]
    _launch((function, from_output), backward_kernel, slope, block, alpha, g, saved, dx)
    return dx


def takes_kernel(x: Tensor) -> bool:
    """Whether x is computed by a Triton kernel, not by its twin."""
    return x.is_cuda or (INTERPRETED and x.is_cpu)


def dense(x: Tensor) -> Tensor:
    """x itself if its elements fill a block of memory in some order of dimensions, else a copy that does."""
    if x.is_contiguous():
        return x
    like = torch.empty_like(x)  # keeps the strides of a dense tensor, and only of a dense one
    return x if like.stride() == x.stride() else like.copy_(x)


@lru_cache(maxsize=1024)
def scalar_bits(alpha: float) -> tuple[int, int]:
    """The bits of alpha and of 1 / alpha as float64, which is how kernels receive them."""
    return struct.unpack("<2q", struct.pack("<2d", alpha, 1.0 / alpha))


CachedLaunch = Callable[..., None]
_launches: dict[tuple[Any, ...], CachedLaunch | None] = {}


def _launch(
    what: tuple[Any, ...], kernel: Any, device_function: Any, block: int, alpha: float, *tensors: Tensor
) -> None:
    """Launch one program a block over tensors that are dense and alike in layout, dtype and device."""
    first = tensors[0]
    index = first.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return _launch(what, kernel, device_function, block, alpha, *tensors)
    n = first.numel()
    if n == 0:
        return None
    grid = -(-n // block)
    arguments = (*tensors, n, *scalar_bits(alpha), device_function, block)
    if n * first.element_size() >= OFFSET_REACH or any(t.data_ptr() % ALIGNMENT for t in tensors):
        key = None  # left to Triton's own cache
    else:
        key = (what, first.dtype, index)
        run = _launches.get(key)
        if run is not None and not _observed():
            return run(grid, *arguments)
    require_triton()
    compiled = kernel[(grid,)](*arguments, **OPTIONS)
    if key is not None and key not in _launches:
        _launches[key] = cached_launch(compiled)
    return None


def _observed() -> bool:
    """Whether somebody listens to launches, and Triton's own launcher must do them."""
    runtime = triton.knobs.runtime
    return any(getattr(hook, "calls", hook) for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook))


def cached_launch(compiled: Any) -> CachedLaunch | None:
    """A call that launches a compiled kernel on the current stream; None where Triton has no such way.

    `run` and its arguments are not public in Triton; they are those of 3.6 to 3.9. What it saves is the
    binding and hashing of arguments, which takes longer than the launch itself.
    """
    try:
        run, handle, packed = compiled.run, compiled.function, compiled.packed_metadata
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        current_stream = driver.get_current_stream
    except AttributeError:
        return None

    def launch(grid: int, *arguments: Any) -> None:
        run(grid, 1, 1, current_stream(device), handle, packed, None, None, None, *arguments)

    return launch
