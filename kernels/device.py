"""Which accelerator there is: the only file that asks.

CUDA and HIP tensors are computed by the Triton kernels; CPU tensors by the plain-PyTorch twins or, where
TRITON_INTERPRET=1 was set before the import, by the kernels in Triton's interpreter. On any other device
(MPS, XPU, meta) activations are plain PyTorch arithmetic, and counting and selecting are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ._triton import INTERPRETED

P = ParamSpec("P")
T = TypeVar("T")

SUPPORTED = ("cpu", "cuda")  # types of device; ROCm's is "cuda" too
_captured: list[Tensor] = []  # sources of copies inside CUDA graphs, kept as long as these may be replayed


def takes_kernel(x: Tensor) -> bool:
    """Whether a Triton kernel computes x, not its plain-PyTorch twin."""
    return x.is_cuda or (INTERPRETED and x.is_cpu)


def is_supported(x: Tensor) -> bool:
    """Whether x is on a device that kernels or their twins are tested on."""
    return x.is_cpu or x.is_cuda


def check_supported(device: torch.device, name: str) -> None:
    """Raise ValueError for a device that neither counts nor selects; meta passes, having no values."""
    if device.type not in SUPPORTED and device.type != "meta":
        raise ValueError(
            f"{name} takes CPU, CUDA and ROCm tensors; got one on {device}: move it with x.cpu()"
        )


def is_gpu(device: torch.device) -> bool:
    """Whether work on this device is queued, so that copies need pinned memory and events."""
    return device.type == "cuda"


def is_capturing(device: torch.device) -> bool:
    """Whether the device's work is being captured into a CUDA graph, so that it computes nothing now."""
    return (
        device.type == "cuda"
        and not torch.compiler.is_compiling()
        and torch.cuda.is_current_stream_capturing()
    )


def is_current(index: int) -> bool:
    """Whether a launch would go to the device that `Tensor.get_device` numbers `index`."""
    return index < 0 or index == torch.cuda.current_device()


def current(index: int) -> AbstractContextManager[None]:
    """Make the device with this number the current one."""
    return torch.cuda.device(index)


def arrival(device: torch.device) -> torch.Event | None:
    """An event that `mark` sets behind the work queued on a GPU; None where nothing is queued."""
    return torch.cuda.Event() if is_gpu(device) else None


def mark(event: torch.Event | None, device: torch.device) -> None:
    """Set the event behind the work queued on the device's current stream."""
    if event is not None:
        event.record(torch.cuda.current_stream(device))


def device_of_backend(backend: str) -> torch.device:
    """The device whose tensors a torch.distributed backend communicates."""
    return torch.device("cuda" if "nccl" in backend else "cpu")


@lru_cache
def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 for the interpreter, where another program only costs time."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def has_shared_counters(device: torch.device) -> bool:
    """Whether kernels count in shared memory, by inline PTX: on NVIDIA GPUs."""
    return device.type == "cuda" and torch.version.hip is None


def made_once(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache the tensors that a function of hashable arguments makes.

    They are made outside the first caller's context (inference mode, a default device, fake tensors), since
    every later caller gets them too. What is made during the capture of a CUDA graph has no values yet and is
    not kept.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def plainly(*args: P.args, **kwargs: P.kwargs) -> T:
            with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"):
                return function(*args, **kwargs)

        @lru_cache(maxsize)
        def cached(stream: int, *args: P.args, **kwargs: P.kwargs) -> T:
            return plainly(*args, **kwargs)

        @wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            stream = 0  # another one might read before the copies queued on this one have arrived
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, torch.device) and argument.type == "cuda":
                    if torch.cuda.is_current_stream_capturing():
                        return plainly(*args, **kwargs)
                    stream = torch.cuda.current_stream(argument).cuda_stream
            return cached(stream, *args, **kwargs)  # type: ignore[arg-type]

        return made

    return decorate


def upload(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor on the device."""
    return to_device(torch.tensor(numbers, dtype=dtype, device="cpu"), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; the copy is queued, not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = tensor.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _captured.append(pinned)
    return pinned.to(device, non_blocking=True)
