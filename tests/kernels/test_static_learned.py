"""The kernels with an alpha that learns, compiled for real targets: what their code must look like."""

from __future__ import annotations

import re
from itertools import product

import pytest

triton = pytest.importorskip("triton")
from sigscale import FUNCTIONS
from sigscale.kernels import activation, counters, learned
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.learned import learned_backward_kernel, learned_forward_kernel
from tests.oracles import sass

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}
SLOTS = {"bf16": 47, "fp32": 93}  # for each element, that a backward pass at 4.3 TB/s leaves an H200


def compiled_backward(name, dtype, target, *, per_channel=False, whole=True, group=None, dx=True, m=0):
    """The kernel as its launcher would compile it, and its elements a thread."""
    function = FUNCTIONS[name]
    shared = target != "gfx942" and m > 0
    warps = counters.WARPS[m] if m else activation.NUM_WARPS
    block = activation.BACKWARD_BLOCK[BYTES[dtype]]
    if m:
        block = 32 * warps * counters.ELEMENTS[BYTES[dtype]] if shared else counters.PORTABLE_TILE
    sums = "*fp64" if dtype == "fp64" else "*fp32"
    pointers = dict.fromkeys(("g_ptr", "x_ptr", "dx_ptr"), f"*{dtype}")
    pointers |= {
        "alpha_ptr": "*fp32",
        "sums_ptr": sums,
        "on_ptr": "*i64",
        "counts_ptr": "*i64" if m else sums,
    }
    constants = {
        "VALUE": function.value,
        "SLOPE": function.slope,
        "ALPHA_SLOPE": function.alpha_slope,
        "PER_CHANNEL": per_channel,
        "WHOLE": whole,
        "DX": dx,
        "GROUP": block if group is None else group,
        "M": m,
        "SHARED": shared,
        "BLOCK": block,
    }
    return sass.compiled(learned_backward_kernel, target, warps, pointers, constants), block // (32 * warps)


def compiled_forward(name, dtype, target, *, per_channel, whole):
    block = activation.FORWARD_BLOCK[BYTES[dtype]]
    pointers = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "alpha_ptr": "*fp32"}
    constants = {"VALUE": FUNCTIONS[name].value, "PER_CHANNEL": per_channel, "WHOLE": whole, "BLOCK": block}
    kernel = sass.compiled(learned_forward_kernel, target, activation.NUM_WARPS, pointers, constants)
    return kernel, block // activation.THREADS


def loop_of(binary, through=""):
    """The round over full tiles; no local memory anywhere, every access of it 128 bits wide."""
    program = sass.disassemble(binary.asm["cubin"])
    assert not [op for _, op, _ in program.values() if op.startswith(("LDL", "STL"))], "local memory"
    loop = sass.full_loop(program, through)
    accesses = [op for op in loop if op.startswith(("LDG", "STG"))]
    assert accesses
    assert all(".128" in op for op in accesses), accesses
    return loop


GEOMETRIES = {
    "layer": {},
    "channels": {"per_channel": True, "group": 64},
    "channels across rows": {"per_channel": True, "group": 1, "whole": False},
    "counted": {"m": 3},
    "channels across rows, counted": {"per_channel": True, "group": 1, "whole": False, "m": 3},
}
BUDGET = {("tanh", "bf16", "layer"): 36, ("tanh", "bf16", "counted"): 44, ("tanh", "fp32", "counted"): 45}
CASES = [
    *product(FUNCTIONS, ["bf16"], ["layer"]),
    ("tanh", "fp32", "layer"),
    *product(["tanh"], ("bf16", "fp32"), [*GEOMETRIES][1:]),
]


@pytest.mark.parametrize(("name", "dtype", "geometry"), CASES)
def test_backward_on_hopper(name, dtype, geometry):
    """dx, the gradient of alpha and the counts in one pass, which memory still limits."""
    binary, elements = compiled_backward(name, dtype, "sm_90", **GEOMETRIES[geometry])
    is_counted, flags = "counted" in geometry, GEOMETRIES[geometry]
    loop = loop_of(binary, "ATOMS" if is_counted else "")
    per_element = len(loop) / elements
    warps = counters.WARPS[3] if is_counted else activation.NUM_WARPS
    resident = sass.resident(binary, warps)
    print(
        f"{name} {dtype} {geometry}: {per_element:.1f} instructions per element, {resident} programs resident"
    )
    assert per_element <= (0.95 if is_counted else 0.9) * SLOTS[dtype]
    assert per_element <= BUDGET.get((name, dtype, geometry), per_element)
    assert resident >= learned.BACKWARD_PROGRAMS[flags.get("per_channel", False), is_counted]
    counted = sum(op.startswith("ATOMS") for op in loop)
    assert counted == (elements if is_counted else 0)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_forward_on_hopper(dtype, per_channel):
    """No more instructions than with a fixed alpha: what alpha gives is found before the loop."""
    binary, elements = compiled_forward(
        "tanh", dtype, "sm_90", per_channel=per_channel, whole=not per_channel
    )
    per_element = len(loop_of(binary)) / elements
    print(f"tanh {dtype}: {per_element:.1f} instructions per element")
    assert per_element <= {"bf16": 16.5, "fp32": 28.4}[dtype]


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("geometry", ["layer", "channels", "channels across rows"])
def test_counters_and_sums_fit_into_shared_memory(geometry, dtype):
    """The counters that the kernel declares, and what Triton adds to share sums among threads."""
    m = learned.COUNTED_BITS
    binary, _ = compiled_backward("softsign", dtype, "sm_90", m=m, **GEOMETRIES[geometry])
    declared = 4 * int(re.search(r"sigscale_counters\[(\d+)\]", binary.asm["ptx"])[1])
    assert declared + binary.metadata.shared <= 48 << 10


@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
@pytest.mark.parametrize("dtype", ["bf16", "fp64"])
def test_compiles(dtype, target):
    for name, m in (("tanh", 0), *([("sigmoid", 3)] if dtype == "bf16" else [])):
        for binary, _ in (
            compiled_backward(name, dtype, target, per_channel=True, group=1, whole=False, m=m),
            compiled_backward(name, dtype, target, dx=False),
            compiled_forward(name, dtype, target, per_channel=True, whole=False),
        ):
            assert binary.kernel[:4] == b"\x7fELF"
