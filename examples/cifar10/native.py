"""The training step of stacked networks on a CPU, compiled from `step.cpp` where there is a compiler."""

from __future__ import annotations

import ctypes
import hashlib
import io
import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import sigscale as ss
from examples.cifar10 import networks
from examples.cifar10.pipelines import NaiveTanh

SOURCE = Path(__file__).with_name("step.cpp")
CONVOLUTION, POOL, DENSE = range(3)
FUNCTIONS: dict[type[nn.Module], int] = {
    nn.ReLU: 1,
    nn.Tanh: 2,
    nn.Sigmoid: 3,
    ss.nn.Tanh: 2,
    ss.nn.Sigmoid: 3,
    ss.nn.Arctan: 4,
    ss.nn.Softsign: 5,
    NaiveTanh: 2,
}
DTYPES = {torch.float32: "step_float", torch.float64: "step_double"}


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "function", "input", "output", "weights", "biases")),
        *((name, ctypes.c_double) for name in ("alpha", "gain")),
    ]


class Task(ctypes.Structure):
    """That of `step.cpp`: P a pointer, N a number."""

    _fields_ = [
        (f"_{i}", ctypes.c_int64 if kind == "N" else ctypes.c_void_p)
        for i, kind in enumerate("PNNPPNNPPNPPNNPNNPP")
    ]


class NotNativeError(RuntimeError):
    """Why steps cannot be made natively."""


def _build(name: str, folder: str) -> Path:
    """The library, compiled in a folder."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA
    from torch.utils import cpp_extension

    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        cpp_extension.load(
            name,
            [os.fspath(SOURCE)],
            extra_cflags=["-O3", "-march=native"],
            build_directory=folder,
            is_python_module=False,
        )
    return Path(folder, f"{name}.so")


@cache
def library() -> ctypes.CDLL:
    """The compiled functions, which are built once and kept in PyTorch's cache of extensions."""
    machine = f"{platform.node()} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    digest = hashlib.sha256(SOURCE.read_bytes() + machine.encode()).hexdigest()
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "torch_extensions")
    built = root / f"sigscale_cifar10_{digest[:16]}.so"
    try:
        if not built.exists():
            root.mkdir(parents=True, exist_ok=True)
            # Not in a folder that others use: a build that is killed leaves its lock there, and they wait.
            with TemporaryDirectory(dir=root, prefix=f"{built.stem}.") as folder:
                os.replace(_build(built.stem, folder), built)
        return ctypes.CDLL(os.fspath(built))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise NotNativeError(str(error).partition("\n")[0]) from error


class Step:
    """Losses, hits and gradients of one batch of every network of a `networks.join`.

    Args:
        network: made of layers that `layers_of` knows.
        to_floats: how uint8 images become what the networks take.
        seeds: how many networks.

    Raises:
        NotNativeError: there is no compiler, or it cannot build, or there is an unknown layer.
    """

    def __init__(self, network: nn.Sequential, to_floats: Callable[[Tensor], Tensor], seeds: int) -> None:
        self._layers, self._sources, size = layers_of(network)
        dtype = next(network.parameters()).dtype
        self._function = getattr(library(), DTYPES[dtype])
        levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 1, 1)
        self._levels = to_floats(levels)[:, :, 0, 0].T.to(dtype).contiguous()
        self._gradients = torch.empty(seeds, size, dtype=dtype)
        sides = [layer.input for layer in self._layers if layer.kind != DENSE]
        maps = sum(6 * (side + 2) ** 2 for side in sides)
        features = sum(2 * (layer.input + layer.output) for layer in self._layers if layer.kind == DENSE)
        threads, lanes = min(torch.get_num_threads(), seeds), 64 // dtype.itemsize
        self._memory = torch.zeros(threads, (maps + features) * lanes, dtype=dtype)
        self._losses = torch.empty(seeds, dtype=torch.float64)
        self._hits = torch.empty(seeds, dtype=torch.int64)

    def __call__(
        self, images: Tensor, labels: Tensor, order: Tensor, *, backward: bool
    ) -> tuple[Tensor, Tensor]:
        """The mean loss and the number of hits of each network, overwritten by the next call.

        Args:
            images, labels: all of them, uint8 (n, 3, 32, 32) and int64 (n,).
            order: (seeds, batch) int64, which of them each network takes.
            backward: whether gradients of the losses are left on the parameters.
        """
        tensors = [tensor for source in self._sources for tensor in source.tensors() if tensor is not None]
        weights = torch.cat([tensor.detach().flatten(1) for tensor in tensors], 1)
        task = Task(
            *(images.data_ptr(), images.stride(1), images.stride(3), labels.data_ptr()),
            *(order.data_ptr(), order.stride(0), order.shape[1], self._levels.data_ptr()),
            *(ctypes.addressof(self._layers), len(self._layers), weights.data_ptr()),
            *(self._gradients.data_ptr() if backward else None, weights.shape[1], len(weights)),
            *(self._memory.data_ptr(), self._memory.shape[1], len(self._memory)),
            *(self._losses.data_ptr(), self._hits.data_ptr()),
        )
        self._function(ctypes.byref(task))
        if backward:
            parts = self._gradients.split([tensor[0].numel() for tensor in tensors], 1)
            gradients = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
            torch.autograd.backward(tensors, gradients)
        return self._losses, self._hits


def _can_take(last: list[Layer], module: nn.Module) -> bool:
    """Whether the last layer's output goes through a function natively."""
    is_free = bool(last) and last[0].kind != POOL and not last[0].function
    return is_free and not getattr(module, "learnable", False) and getattr(module, "save", None) != "input"


def layers_of(network: nn.Sequential) -> tuple[ctypes.Array[Layer], list[networks.Stacked], int]:
    """The layers of a joined network, those with weights and biases, and how many numbers these are.

    Raises:
        NotNativeError: names the first layer that is not known.
    """
    layers: list[Layer] = []
    sources: list[networks.Stacked] = []
    size, side = 0, 32
    for name, module in network.named_children():
        # A monitor puts a subclass over the classes of PyTorch.
        kind = next((FUNCTIONS[base] for base in type(module).__mro__ if base in FUNCTIONS), None)
        if isinstance(module, (networks.StackedConv2d, networks.StackedLinear)):
            weight, bias = module.tensors()
            dense = isinstance(module, networks.StackedLinear)
            what = (DENSE, 0, weight.shape[2], weight.shape[1]) if dense else (CONVOLUTION, 0, side, side)
            biases = -1 if bias is None else size + weight[0].numel()
            layers.append(Layer(*what, size, biases, 1.0, 1.0))
            size += sum(tensor[0].numel() for tensor in (weight, bias) if tensor is not None)
            sources.append(module)
        elif kind and _can_take(layers[-1:], module):
            gain = getattr(module, "alpha", 1.0)
            alpha = 1.0 if isinstance(module, NaiveTanh) else gain
            layers[-1].function, layers[-1].alpha, layers[-1].gain = kind, alpha, gain
        elif isinstance(module, nn.MaxPool2d):
            layers.append(Layer(POOL, 0, side, side // 2, 0, -1, 1.0, 1.0))
            side //= 2
        elif not isinstance(module, networks.StackedFlatten):
            raise NotNativeError(f"no native code for {name}, {module}")
    return (Layer * len(layers))(*layers), sources, size
