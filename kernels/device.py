"""Which accelerator there is: the only file that asks.

CUDA and HIP tensors are computed by the Triton kernels; CPU tensors by the plain-PyTorch twins or, where
TRITON_INTERPRET=1 was set before the import, by the kernels in Triton's interpreter. On any other device
(MPS, XPU, meta) activations are plain PyTorch arithmetic, and counting and selecting are refused.
"""

from __future__ import annotations

import ctypes
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, wraps
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from ._triton import INTERPRETED

P = ParamSpec("P")
T = TypeVar("T")

HIP = torch.version.hip is not None
SUPPORTED = ("cpu", "cuda")  # types of device; ROCm's is "cuda" too
RELAXED = 2  # of the modes in which CUDA and HIP capture: forbids a thread nothing
_captured: dict[int, object] = {}  # what CUDA graphs read, by its id


def takes_kernel(x: Tensor) -> bool:
    """Whether a Triton kernel computes x, not its plain-PyTorch twin."""
    return x.is_cuda or (INTERPRETED and x.is_cpu)


def is_supported(x: Tensor) -> bool:
    """Whether x is on a device that kernels or their twins are tested on."""
    return x.is_cuda or x.is_cpu


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


def current_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which work of a GPU is queued now."""
    return torch.cuda.current_stream(device)


def arrival(device: torch.device) -> torch.Event | None:
    """An event behind the work queued on a GPU's current stream; None where nothing is queued."""
    return current_stream(device).record_event() if is_gpu(device) else None


class InFlight(Generic[T]):
    """What copies to the host bring, in order, as they arrive."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._queue: deque[tuple[T, torch.Event | None]] = deque()

    def add(self, item: T) -> None:
        """Add an item that is there when the work queued so far is done."""
        self._queue.append((item, arrival(self._device)))

    def landed(self, *, wait: bool) -> Iterator[T]:
        """Those that are there, taken from the queue one by one; all, if it may `wait` for the device."""
        while self._queue:
            item, event = self._queue[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._queue.popleft()
            yield item


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
    return device.type == "cuda" and not HIP


def made_once(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache the tensors that a function of hashable arguments makes.

    They are made outside the first caller's context (inference mode, a default device, fake tensors, the
    capture of a CUDA graph), since every later caller gets them too, on any stream and in any graph.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @lru_cache(maxsize)
        @wraps(function)
        def shared(*args: P.args, **kwargs: P.kwargs) -> T:
            with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"):
                return made_aside(_gpu_among(args, kwargs), lambda: function(*args, **kwargs))

        @lru_cache(maxsize)
        def used_on(stream: torch.cuda.Stream, *args: P.args, **kwargs: P.kwargs) -> T:
            result = shared(*args, **kwargs)  # type: ignore[arg-type]
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):  # evicted, its memory waits for what this stream has queued
                    tensor.record_stream(stream)
            return result

        @wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            device = _gpu_among(args, kwargs)
            if device is None:
                return shared(*args, **kwargs)  # type: ignore[arg-type]
            if is_capturing(device):
                return kept_for_replays(shared(*args, **kwargs))  # type: ignore[arg-type]
            return used_on(current_stream(device), *args, **kwargs)  # type: ignore[arg-type]

        return made

    return decorate


def _gpu_among(args: tuple[object, ...], kwargs: dict[str, object]) -> torch.device | None:
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, torch.device) and argument.type == "cuda":
            return argument
    return None


def made_aside(device: torch.device | None, make: Callable[[], T]) -> T:
    """What `make` makes on a GPU, on a private stream: complete on return, and in no CUDA graph."""
    if device is None:
        return make()
    current, own = current_stream(device), _private_streams(device)
    is_aside = current in own and not is_capturing(device)
    stream = current if is_aside else next(stream for stream in own if stream != current)
    with outside_captures():
        with torch.cuda.stream(stream):
            result = make()
        stream.synchronize()
    return result


def kept_for_replays(result: T) -> T:
    """What the CUDA graph being captured reads in every replay; kept as long as the process lives."""
    _captured[id(result)] = result
    return result


@lru_cache
def _private_streams(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
    """Two, since PyTorch has 32 and gives one that is in use, as the current one, again."""
    return torch.cuda.Stream(device), torch.cuda.Stream(device)


@contextmanager
def outside_captures() -> Iterator[None]:
    """Allow this thread to allocate and wait on other streams while one is being captured."""
    if HIP:
        exchange = ctypes.CDLL("libamdhip64.so").hipThreadExchangeStreamCaptureMode
    else:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        exchange = driver.cuThreadExchangeStreamCaptureMode
    mode = ctypes.c_int(RELAXED)
    exchange(ctypes.byref(mode))
    try:
        yield
    finally:
        exchange(ctypes.byref(mode))


def upload(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The numbers as a tensor on the device."""
    return to_device(torch.tensor(numbers, dtype=dtype, device="cpu"), device)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; the copy is queued, not waited for."""
    return tensor.pin_memory().to(device, non_blocking=True) if is_gpu(device) else tensor.to(device)
