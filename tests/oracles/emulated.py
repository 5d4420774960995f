"""The path of a GPU without one: CPU tensors, kernels compiled for sm_80, their PTX executed by `ptx.py`."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from sigscale.kernels import counters, device, launcher, multi_tensor
from tests.oracles import ptx, sass

NAMES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int8: "i8", torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def use(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on kernels are emulated; gives the list of the names of those that ran."""
    ran: list[str] = []
    memory = ptx.Memory()

    def place(tensor: torch.Tensor) -> int:
        flat = tensor.detach().as_strided(
            (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0
        )
        memory.place(flat.view(INTEGERS[tensor.element_size()]).numpy())
        return tensor.data_ptr()

    def emulated(kernel, what, grid, tensors, *arguments, num_warps):
        names = kernel.arg_names[: len(tensors)]
        pointers = tuple(zip(names, (f"*{NAMES[tensor.dtype]}" for tensor in tensors), strict=True))
        rest = zip(kernel.params[len(tensors) :], arguments, strict=True)
        constants, numbers = {}, []
        for parameter, argument in rest:
            if parameter.is_constexpr:
                constants[parameter.name] = argument
            else:
                numbers.append(argument)
        if grid:
            ran.append(kernel.__name__)
            text = compiled(kernel, num_warps, pointers, tuple(constants.items()))
            before = len(memory.arrays)
            addresses = [place(tensor) for tensor in tensors]
            ptx.run(text, grid, [*addresses, *numbers, 0, 0], memory)
            del memory.arrays[before:]

    def addresses(tensors, device):
        for tensor in tensors:
            place(tensor)
        return torch.tensor([tensor.data_ptr() for tensor in tensors])

    def geometry(x, m, programs=None):
        block = 32 * counters.WARPS[m] * counters.ELEMENTS[x.element_size()]
        return min(-(-x.numel() // block), 2), block, True

    patch.setattr(device, "takes_kernel", lambda x: True)
    patch.setattr(launcher, "launch", emulated)
    patch.setattr(counters, "geometry", geometry)
    patch.setattr(multi_tensor, "addresses", addresses)
    return ran


@cache
def compiled(kernel, num_warps, pointers, constants) -> str:
    return sass.compiled(kernel, "sm_80", num_warps, dict(pointers), dict(constants)).asm["ptx"]
