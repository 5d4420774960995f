"""Kernels compiled without a GPU: their machine instructions, and those that a full block executes."""

from __future__ import annotations

import re
import subprocess
import tempfile
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import triton

from sigscale.kernels import launcher

TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}
LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def compiled(kernel, target, num_warps, pointers, constants):
    """The kernel as it would be compiled for aligned tensors; arguments without a type are int64."""
    names = kernel.arg_names
    signature = {name: pointers.get(name, "i64") for name in names} | dict.fromkeys(constants, "constexpr")
    divisible = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in pointers}
    if target == "gfx942":  # as Triton's launcher finds them for tensors within 2 GiB
        for hints in divisible.values():
            hints.append(["tt.pointer_range", 32])
    source = triton.compiler.ASTSource(kernel, signature=signature, constexprs=constants, attrs=divisible)
    gpu = triton.backends.compiler.GPUTarget(*TARGETS[target])
    return triton.compile(source, target=gpu, options={"num_warps": num_warps} | launcher.OPTIONS)


def disassemble(cubin: bytes) -> dict[int, tuple[bool, str, str]]:
    """Address -> (is predicated, opcode, operands) of the only function in a CUDA binary."""
    text = _cuobjdump(cubin)
    return {int(m[1], 16): (bool(m[2]), m[3], m[4]) for m in LINE.finditer(text)}


@lru_cache(maxsize=2)
def _cuobjdump(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "--dump-sass", "--dump-resource-usage", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resident(binary, warps: int) -> int:
    """How many programs an H100's multiprocessor holds at a time, by registers, threads and shared memory."""
    usage = _cuobjdump(binary.asm["cubin"])
    registers, declared = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "SHARED"))
    of_a_warp = -(-32 * registers // 256) * 256  # registers are given to warps by 256
    return min(
        65536 // of_a_warp // warps, 64 // warps, (228 << 10) // (declared + binary.metadata.shared + 1024)
    )


def full_block(program: dict[int, tuple[bool, str, str]]) -> list[str]:
    """Opcodes on the path of an unmasked block: the one from entry to exit whose global loads are widest."""
    following = dict(pairwise(program))

    def paths(address: int, trail: tuple[str, ...]) -> list[tuple[str, ...]]:
        while True:
            predicated, opcode, operands = program[address]
            trail = (*trail, opcode)
            if opcode == "EXIT" and not predicated:
                return [trail]
            if opcode == "BRA":
                target = int(re.search(r"0x([0-9a-f]+)", operands)[1], 16)
                if target <= address:  # a loop or the trap behind the last exit
                    return []
                if predicated:
                    return paths(following[address], trail) + paths(target, trail)
                address = target
            else:
                address = following[address]

    return list(max(paths(next(iter(program)), ()), key=_load_width))


Ways = dict[tuple[bool, int], tuple[str, ...]]  # opcodes on a way, by what `full_loop` chooses by


def full_loop(program: dict[int, tuple[bool, str, str]], through: str = "") -> list[str]:
    """Opcodes of a round of the loop over full blocks: the shortest cycle through the widest global loads.

    If possible, one with an opcode that begins with `through`.
    """
    following = dict(pairwise(program))

    def kind(way: tuple[str, ...]) -> tuple[bool, int]:
        return any(opcode.startswith(through) for opcode in way), _load_width(way)

    def rounds(address: int, head: int, known: dict[int, Ways]) -> Ways:
        """The shortest way from here back to the head for each width of loads on it."""
        if address in known:
            return known[address]
        start, trail, found = address, (), {}
        while address in program:
            predicated, opcode, operands = program[address]
            trail = (*trail, opcode)
            if opcode == "EXIT" and not predicated:
                break
            target = int(re.search(r"0x([0-9a-f]+)", operands)[1], 16) if opcode == "BRA" else None
            if target == head:
                found = {kind(trail): trail}
                break
            if target is not None and target < address:
                break
            if target is not None and predicated:
                ways = [rounds(following[address], head, known), rounds(target, head, known)]
                for rest in (rest for way in ways for rest in way.values()):
                    whole = (*trail, *rest)
                    if kind(whole) not in found or len(whole) < len(found[kind(whole)]):
                        found[kind(whole)] = whole
                break
            address = following.get(address) if target is None else target
        known[start] = found
        return found

    heads = {
        int(re.search(r"0x([0-9a-f]+)", operands)[1], 16)
        for address, (_, opcode, operands) in program.items()
        if opcode == "BRA" and int(re.search(r"0x([0-9a-f]+)", operands)[1], 16) < address
    }
    cycles = [cycle for head in heads for cycle in rounds(head, head, {}).values()]
    return list(max(cycles, key=lambda cycle: (*kind(cycle), -len(cycle))))


def _load_width(path: tuple[str, ...]) -> int:
    widths = [128 if ".128" in op else 64 if ".64" in op else 32 for op in path if op.startswith("LDG")]
    return max(widths, default=0)
