"""The example's convolution of many networks, compiled for real targets without a GPU."""

from __future__ import annotations

import pytest

triton = pytest.importorskip("triton")
from sigscale.kernels import convolution
from sigscale.kernels._triton import INTERPRETED
from tests.oracles import sass

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

SIDES = (32, 16, 8)


def compiled(monkeypatch, kernel, target, dtype, **constants):
    monkeypatch.setitem(sass.launcher.OPTIONS, "enable_fp_fusion", True)  # as the example launches it
    names = [name for name in kernel.arg_names if name.endswith("_ptr")]
    wide = {"sums_ptr": "*fp64" if dtype == "fp64" else "*fp32", "weight_ptr": f"*{dtype}"}
    pointers = {name: wide.get(name, f"*{dtype}") for name in names}
    return sass.compiled(kernel, target, convolution.OPTIONS["num_warps"], pointers, constants)


def kernels(side):
    block = {"SIDE": side, "BLOCK": convolution.PIXELS_A_PROGRAM}
    yield convolution.convolution_kernel, {**block, "BACKWARD": False}
    yield convolution.convolution_kernel, {**block, "BACKWARD": True}
    gradient = {"SIDE": side, "TAPS": convolution.TAPS, "TILE": convolution.TILE}
    yield convolution.weight_gradient_kernel, gradient


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiles(monkeypatch, target, dtype):
    for kernel, constants in kernels(SIDES[0]):
        assert compiled(monkeypatch, kernel, target, dtype, **constants).kernel[:4] == b"\x7fELF"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_hopper_machine_code(monkeypatch, tmp_path, dtype, side):
    """No local memory, and no more arithmetic than 81 fused products for 3 values."""
    threads = 32 * convolution.OPTIONS["num_warps"]
    pixels = convolution.PIXELS_A_PROGRAM // threads
    for kernel, constants in kernels(side):
        found = compiled(monkeypatch, kernel, "sm_90", dtype, **constants)
        opcodes = [op for _, op, _ in sass.disassemble(found.asm["cubin"]).values()]
        assert not [op for op in opcodes if op.startswith(("LDL", "STL"))], "local memory"
        fused = opcodes.count("FFMA")
        print(f"{kernel.__name__} {dtype} {side}: {len(opcodes)} instructions, {fused} FFMA")
        if "BLOCK" in constants:
            assert fused == 81 * pixels
