"""Launching a kernel: the first time through Triton, then by a cached call that skips Triton's own launcher.

Binding and hashing arguments takes Triton longer than the launch itself, and a network of the paper's size is
nothing but launches.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import device
from ._triton import require_triton, triton

# Triton compiles these cases apart, and a cached launch must not mix them: pointers that allow 128-bit
# accesses and those that do not, and (for AMD) tensors within the reach of 32-bit byte offsets and larger
# ones.
ALIGNMENT = 16
OFFSET_REACH = 2**31

# The kernel's text is what runs: no contraction into fused multiply-adds, whose default differs between
# versions of Triton.
OPTIONS = {"enable_fp_fusion": False}

VERSIONS_READ = ("3.6", "3.7", "3.8", "3.9")  # of Triton, whose private launch call `cached_launch` uses


class CachedLaunch(NamedTuple):
    """A compiled kernel, the call of Triton that launches it, and the one that finds a device's stream."""

    run: Callable[..., None]
    function: Any
    packed_metadata: Any
    current_stream: Callable[[int], Any]
    device_index: int


_launches: dict[tuple[Any, ...], CachedLaunch | None] = {}


def launch(
    kernel: Any,
    what: tuple[Any, ...],
    grid: int,
    tensors: tuple[Tensor, ...],
    *arguments: Any,
    num_warps: int,
) -> None:
    """Launch `grid` programs of kernel(*tensors, *arguments); none for an empty grid.

    Besides the dtype of the first tensor, `what` names everything the kernel is compiled for: with the same
    `what`, dtypes and constants among the arguments are the same. No tensor has more bytes than both the
    first and the last.
    """
    first = tensors[0]
    index = first.get_device()
    if not device.is_current(index):
        with device.current(index):
            return launch(kernel, what, grid, tensors, *arguments, num_warps=num_warps)
    if grid == 0:
        return None
    addresses = [tensor.data_ptr() for tensor in tensors]
    together = 0
    for address in addresses:
        together |= address
    if together % ALIGNMENT or (device.HIP and max(first.nbytes, tensors[-1].nbytes) >= OFFSET_REACH):
        key = None  # left to Triton's own cache
    else:
        key = what, first.dtype, index
        cached = _launches.get(key)
        if cached is not None and not _observed():
            run, function, packed, current_stream, index = cached
            stream = current_stream(index)
            return run(grid, 1, 1, stream, function, packed, None, None, None, *addresses, *arguments)
    require_triton()
    compiled = kernel[(grid,)](*tensors, *arguments, num_warps=num_warps, **OPTIONS)
    if key is not None and key not in _launches:
        _launches[key] = cached_launch(compiled)
    return None


def _observed() -> bool:
    """Whether a profiler hooks into launches, so that Triton's own launcher must make them."""
    runtime = triton.knobs.runtime
    before, after = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(getattr(before, "calls", before) or getattr(after, "calls", after))


def cached_launch(compiled: Any) -> CachedLaunch | None:
    """What launches a compiled kernel on the current stream; None to leave launches to Triton.

    `run` and its arguments are private to Triton: only versions whose source was read are trusted with them.
    For a tensor they take its address, which saves asking the tensor and the driver for it.
    """
    if ".".join(triton.__version__.split(".")[:2]) not in VERSIONS_READ:
        return None
    try:
        of_kernel = compiled.run, compiled.function, compiled.packed_metadata
        driver = triton.runtime.driver.active
        return CachedLaunch(*of_kernel, driver.get_current_stream, driver.get_current_device())
    except AttributeError:  # as in the interpreter, which compiles nothing
        return None


def dense(x: Tensor) -> Tensor:
    """x itself if its elements fill a block of memory in some order of dimensions, else a copy that does."""
    if x.is_contiguous():
        return x
    like = torch.empty_like(x)  # keeps the strides of a dense tensor, and only of a dense one
    return x if like.stride() == x.stride() else like.copy_(x)


@lru_cache(maxsize=1024)
def bits(number: float) -> int:
    """A number's bits as float64, by which kernels receive it: Triton passes a Python float as float32."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


@lru_cache(maxsize=1024)
def scalar_bits(alpha: float) -> tuple[int, int]:
    """The bits of alpha and of 1 / alpha."""
    return bits(alpha), bits(1.0 / alpha)
