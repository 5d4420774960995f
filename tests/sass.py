"""Reading a compiled kernel: its machine instructions, and those that a full block executes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import triton

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def disassemble(cubin: bytes, folder: Path) -> dict[int, tuple[bool, str, str]]:
    """Address -> (is predicated, opcode, operands) of the only function in a CUDA binary."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "--dump-sass", binary], capture_output=True, text=True, check=True).stdout
    return {int(m[1], 16): (bool(m[2]), m[3], m[4]) for m in LINE.finditer(text)}


def full_block(program: dict[int, tuple[bool, str, str]]) -> list[str]:
    """Opcodes on the path of an unmasked block: the one from entry to exit whose global loads are widest."""
    following = dict(zip(program, list(program)[1:], strict=False))

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

    def load_width(path: tuple[str, ...]) -> int:
        return max(128 if ".128" in op else 64 if ".64" in op else 32 for op in path if op.startswith("LDG"))

    return list(max(paths(next(iter(program)), ()), key=load_width))
