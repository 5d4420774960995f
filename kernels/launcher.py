"""Launching a kernel: the first time by Triton, then by a cached call that skips Triton's own launcher.

The binding and hashing of arguments takes Triton longer than the launch itself, and a network of the paper's
size is nothing but launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._triton import require_triton, triton

# What Triton compiles apart, and a cached launch must not mix: pointers that allow 128-bit accesses and those
# that do not, and (for AMD) tensors within the reach of 32-bit byte offsets and larger ones.
ALIGNMENT = 16
OFFSET_REACH = 2**31

# What is written is what runs: no contraction to fused multiply-adds behind the text's back (on which the
# default of Triton differs between versions).
OPTIONS = {"enable_fp_fusion": False}

CachedLaunch = Callable[..., None]
_launches: dict[tuple[Any, ...], CachedLaunch | None] = {}


def launch(
    kernel: Any,
    what: tuple[Any, ...],
    grid: int,
    tensors: tuple[Tensor, ...],
    *arguments: Any,
    num_warps: int,
) -> None:
    """Launch `grid` programs of kernel(*tensors, *arguments); nothing is launched for none.

    Besides the dtype of the first tensor, `what` says all that the kernel is compiled for: with the same
    `what`, dtypes and constants among the arguments are the same. No tensor has more bytes than both the
    first and the last.
    """
    first = tensors[0]
    index = first.get_device()
    if index >= 0 and index != torch.cuda.current_device():
        with torch.cuda.device(index):
            return launch(kernel, what, grid, tensors, *arguments, num_warps=num_warps)
    if grid == 0:
        return None
    far = max(first.nbytes, tensors[-1].nbytes) >= OFFSET_REACH
    if far or any(tensor.data_ptr() % ALIGNMENT for tensor in tensors):
        key = None  # left to Triton's own cache
    else:
        key = (*what, first.dtype, index)
        run = _launches.get(key)
        if run is not None and not _observed():
            return run(grid, *tensors, *arguments)
    require_triton()
    compiled = kernel[(grid,)](*tensors, *arguments, num_warps=num_warps, **OPTIONS)
    if key is not None and key not in _launches:
        _launches[key] = cached_launch(compiled)
    return None


def _observed() -> bool:
    """Whether somebody listens to launches, and Triton's own launcher must do them."""
    runtime = triton.knobs.runtime
    return any(getattr(hook, "calls", hook) for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook))


def cached_launch(compiled: Any) -> CachedLaunch | None:
    """A call that launches a compiled kernel on the current stream; None where Triton has no such way.

    `run` and its arguments are not public in Triton; they are those of 3.6 to 3.9.
    """
    try:
        run, handle, packed = compiled.run, compiled.function, compiled.packed_metadata
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        current_stream = driver.get_current_stream
    except AttributeError:
        return None

    def relaunch(grid: int, *arguments: Any) -> None:
        run(grid, 1, 1, current_stream(device), handle, packed, None, None, None, *arguments)

    return relaunch
