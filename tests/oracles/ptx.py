"""A GPU for small tests: executes a kernel's PTX, all threads of a block in step, with NumPy.

It knows the instructions that the counting kernels are compiled to, and refuses others. Blocks run one after
the other. Branches must be taken by all threads of a block or by none, which Triton's are.
"""

from __future__ import annotations

import re

import numpy as np

TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f16": np.float16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "f32": np.float32,
    "b64": np.uint64, "u64": np.uint64, "s64": np.int64, "f64": np.float64,
}  # fmt: skip
STATEMENT = re.compile(r"^(?:@(!?)(%?\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.DOTALL)
COMPARE = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}
TO_INTEGER = {"rmi": np.floor, "rpi": np.ceil}
BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


class Memory:
    """Global memory: NumPy arrays at the addresses that they have."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def place(self, array: np.ndarray) -> int:
        assert array.flags.c_contiguous
        self.arrays.append(array.reshape(-1).view(np.uint8))
        return array.ctypes.data

    def at(self, address: int) -> tuple[np.ndarray, int]:
        """The bytes of the array at an address, and where it begins."""
        for array in self.arrays:
            start = array.ctypes.data
            if start <= address < start + len(array):
                return array, start
        raise AssertionError(f"access beyond all tensors, at {address:#x}")


def run(ptx: str, grid: int, arguments: list[int], memory: Memory) -> None:
    """Execute the only kernel in the text with integer arguments (addresses by `memory.place`)."""
    threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])
    program, labels, words = _parse(ptx[ptx.index(".reqntid") :].split("-- End function")[0])
    for block in range(grid):
        _Block(program, labels, words, threads, block, grid, arguments, memory).run()


def _parse(text: str) -> tuple[list[tuple[str, str, str, list[str]]], dict[str, int], dict[str, int]]:
    """Statements, where labels point, and the shared arrays' offsets."""
    text = re.sub(r"//[^\n]*|^\s*\.loc\b[^\n]*", "", text, flags=re.MULTILINE)
    program: list[tuple[str, str, str, list[str]]] = []
    labels, shared = {}, {}
    offset = 1 << 16  # behind the dynamic shared memory
    text = re.sub(r"\{(?=[^{}]*;)|\}(?=\s*(mov|\n|$))", " ", text[text.index("{") + 1 :])
    for statement in text.split(";"):
        statement = statement.strip()
        while label := re.match(r"(\$?[\w$]+):\s*", statement):
            labels[label[1]] = len(program)
            statement = statement[label.end() :]
        if array := re.match(r"\.shared \.align 16 \.b32 (\w+)\[(\d+)\]", statement):
            shared[array[1]] = offset
            offset += 4 * int(array[2])
        elif statement and not statement.startswith((".", "}")):
            negated, predicate, opcode, operands = STATEMENT.match(statement).groups()
            program.append((negated or "", predicate or "", opcode, _split(operands.strip())))
    return program, labels, shared


class _Block:
    def __init__(self, program, labels, shared, threads, block, grid, arguments, memory) -> None:
        self.program, self.labels, self.memory, self.threads = program, labels, memory, threads
        self.shared = np.full(1 << 18, 0xA5, np.uint8)  # not zeros
        tid = np.arange(threads, dtype=np.uint32)
        full = np.full(threads, 0, np.uint32)
        self.registers = {
            "%tid.x": tid,
            "%laneid": tid % 32,
            "%ctaid.x": full + block,
            "%nctaid.x": full + grid,
        }
        self.registers |= {name: full + offset for name, offset in shared.items()}
        self.registers["global_smem"] = full
        self.arguments = arguments

    def run(self) -> None:
        at = 0
        with np.errstate(all="ignore"):
            while True:
                negated, predicate, opcode, operands = self.program[at]
                mask = np.ones(self.threads, bool)
                if predicate:
                    mask = self.registers[predicate] ^ bool(negated)
                at += 1
                if opcode == "ret":
                    return
                if opcode.startswith("bra"):
                    assert mask.all() or not mask.any(), "threads part at a branch"
                    at = self.labels[operands[0]] if mask.all() else at
                else:
                    self.execute(opcode, operands, mask)

    def value(self, operand: str, kind: str) -> np.ndarray:
        if operand.startswith("0f"):
            found = np.full(self.threads, int(operand[2:], 16), np.uint32)
        elif operand.startswith("0d"):
            found = np.full(self.threads, int(operand[2:], 16), np.uint64)
        elif re.match(r"-?\d", operand):
            found = np.full(self.threads, int(operand.rstrip("U"), 0) & 0xFFFFFFFFFFFFFFFF, np.uint64)
        else:
            found = self.registers[operand]
        if kind == "pred":
            return found
        if kind == "bf16":
            return (found.astype(np.uint32) << 16).view(np.float32)
        size = np.dtype(TYPES[kind]).itemsize
        return found.astype(f"u{size}").view(TYPES[kind])

    def assign(self, name: str, value: np.ndarray, mask: np.ndarray) -> None:
        if value.dtype != bool:
            value = value.view(f"u{value.dtype.itemsize}")
        if not mask.all() and name in self.registers:
            value = np.where(mask, value, self.registers[name].astype(value.dtype))
        self.registers[name] = value

    def execute(self, opcode: str, operands: list[str], mask: np.ndarray) -> None:
        name, *details = opcode.split(".")
        kind = details[-1] if details else ""
        if name in ("ld", "st", "red", "atom"):
            return self.access(name, details, operands, mask)
        if name == "bar":
            return None
        if name in ("shfl", "redux", "vote"):
            return self.across_lanes(name, details, operands, mask)
        if name == "setp":
            result = self.compare(details, operands)
        elif name == "cvt":
            values = [self.value(operand, details[-1]) for operand in operands[1:]]
            if details[0] in TO_INTEGER:
                values = [TO_INTEGER[details[0]](value) for value in values]
            result = self.convert(details[-2], values)
        elif name == "mov" and "{" in operands[0] + operands[1]:
            return self.repack(operands, mask)
        else:
            result = self.compute(name, details, kind, operands[1:])
        return self.assign(operands[0], result, mask)

    def compute(self, name: str, details: list[str], kind: str, operands: list[str]) -> np.ndarray:
        if name == "selp":
            yes, no = (self.value(operand, kind) for operand in operands[:2])
            return np.where(self.registers[operands[2]], yes, no)
        if name in ("shl", "shr"):
            shift = self.value(operands[1], "u32")
            x, bits = self.value(operands[0], kind), 8 * np.dtype(TYPES[kind]).itemsize
            moved = np.left_shift if name == "shl" else np.right_shift
            return moved(x, np.minimum(shift, bits - 1).astype(x.dtype))
        if name == "bfe":
            x, start, length = (self.value(operand, "u32") for operand in operands)
            above = np.uint32(32) - start - length
            return ((x << above).view(TYPES[kind])) >> (above + start).astype(TYPES[kind])
        if name in ("mul", "mad") and "wide" in details:
            wide = "s64" if kind == "s32" else "u64"
            x, y = (self.value(operand, kind).astype(TYPES[wide]) for operand in operands[:2])
            return x * y + (self.value(operands[2], wide) if name == "mad" else TYPES[wide](0))
        if name == "abs" and "16" in kind:  # one or two in a register
            x = self.registers[operands[0]]
            return x & x.dtype.type(0x7FFF if x.itemsize == 2 else 0x7FFF7FFF)
        if name == "popc":
            x = self.value(operands[0], kind)
            return np.unpackbits(x.view(np.uint8).reshape(self.threads, -1), axis=1).sum(1).astype(np.uint32)
        if name == "prmt":
            sources = np.stack([self.value(operand, "b32") for operand in operands[:2]], 1).view(np.uint8)
            selected = [int(self.value(operands[2], "b32")[0]) >> 4 * i & 7 for i in range(4)]
            return np.ascontiguousarray(sources[:, selected]).view(np.uint32).reshape(-1)
        values = [self.value(operand, kind) for operand in operands]
        if name in BITWISE:
            return BITWISE[name](*values)
        simple = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "mov": lambda x: x, "abs": np.abs}
        simple |= {
            "ex2": np.exp2,
            "rcp": np.reciprocal,
            "sqrt": np.sqrt,
            "div": np.divide,
            "rem": np.fmod,
            "min": np.minimum,
            "max": np.maximum,
            "not": np.invert,
            "neg": np.negative,
            "copysign": lambda sign, magnitude: np.copysign(magnitude, sign),
        }
        if name in simple and not (name == "mul" and "hi" in details):
            return simple[name](*values).astype(TYPES.get(kind, bool))
        if name == "fma" or (name == "mad" and "lo" in details):
            wide = {"f32": np.float64, "f64": np.longdouble}.get(kind, values[0].dtype)
            return (values[0].astype(wide) * values[1] + values[2]).astype(values[0].dtype)
        raise NotImplementedError(f"PTX instruction {name}.{'.'.join(details)}")

    def compare(self, details: list[str], operands: list[str]) -> np.ndarray:
        how, kind = details[0], details[-1]
        x, y = (self.value(operand, kind) for operand in operands[1:3])
        if how in ("num", "nan"):
            return (np.isnan(x) | np.isnan(y)) == (how == "nan")
        if how.endswith("u") and kind[0] == "f":
            return getattr(np, COMPARE[how[:-1]])(x, y) | np.isnan(x) | np.isnan(y)
        return getattr(np, COMPARE[how])(x, y)

    def convert(self, to: str, values: list[np.ndarray]) -> np.ndarray:
        if to.endswith("x2"):
            high, low = (self.convert(to[:-2], [value]).view(np.uint16).astype(np.uint32) for value in values)
            return high << 16 | low
        if to == "bf16":
            bits = values[0].view(np.uint32)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            return np.where(np.isnan(values[0]), 0x7FFF, rounded).astype(np.uint16)
        return values[0].astype(TYPES[to])

    def repack(self, operands: list[str], mask: np.ndarray) -> None:
        """mov between a wide register and a vector of narrow ones."""
        if "{" in operands[0]:
            parts = operands[0].strip("{}").replace(" ", "").split(",")
            whole = self.value(operands[1], f"b{32 * len(parts) if len(parts) > 1 else 32}")
            whole = self.registers[operands[1]]
            size = whole.dtype.itemsize // len(parts)
            columns = whole.view(f"u{size}").reshape(self.threads, len(parts))
            for part, column in zip(parts, columns.T, strict=True):
                if part != "_":
                    self.assign(part, np.ascontiguousarray(column), mask)
        else:
            parts = [self.registers[part.strip()] for part in operands[1].strip("{}").split(",")]
            joined = np.stack(parts, 1)
            self.assign(operands[0], joined.view(f"u{joined.itemsize * len(parts)}").reshape(-1), mask)

    def access(self, name: str, details: list[str], operands: list[str], mask: np.ndarray) -> None:
        kind = details[-1]
        *before, where, what = operands if name != "ld" else operands[::-1]
        base, _, offset = where.strip("[] ").replace(" ", "").partition("+")
        if "param" in details:
            number = int(base.rsplit("_", 1)[1])
            return self.assign(what, np.full(self.threads, self.arguments[number], TYPES[kind]), mask)
        shared = any(detail.startswith("shared") for detail in details)
        addresses = self.value(base, "u64") + np.uint64(int(offset or 0) & 0xFFFFFFFFFFFFFFFF)
        size = np.dtype(TYPES[kind]).itemsize
        parts = what.strip("{}").replace(" ", "").split(",")
        for i, part in enumerate(parts):
            if not mask.any():
                if name == "ld" and part not in self.registers:
                    self.assign(part, np.zeros(self.threads, TYPES[kind]), ~mask)
                continue
            data, start = (self.shared, 0) if shared else self.memory.at(int(addresses[mask][0]))
            places = (addresses[mask].astype(np.int64) - start + i * size) // size
            assert (places >= 0).all(), "before the tensor"
            assert not ((addresses[mask].astype(np.int64) - start) % (size * len(parts))).any(), "alignment"
            assert start % size == 0
            cells = data[: len(data) // size * size].view(TYPES[kind])
            if name == "ld":
                value = np.zeros(self.threads, TYPES[kind])
                value[mask] = cells[places]
                self.assign(part, value, mask)
            elif name == "st":
                cells[places] = self.value(part, kind)[mask]
            else:
                assert "add" in details
                added = self.value(part, kind)
                if before:  # one thread after the other
                    old = np.zeros(self.threads, TYPES[kind])
                    for thread, place in zip(np.flatnonzero(mask), places, strict=True):
                        old[thread] = cells[place]
                        cells[place] += added[thread]
                    self.assign(before[0], old, mask)
                else:
                    np.add.at(cells, places, added[mask])
        return None

    def across_lanes(self, name: str, details: list[str], operands: list[str], mask: np.ndarray) -> None:
        assert mask.all()
        if name == "redux":
            x = self.value(operands[1], details[-1]).reshape(-1, 32)
            return self.assign(operands[0], np.repeat(x.sum(1, dtype=x.dtype), 32), mask)
        if name == "vote":
            votes = self.registers[operands[1]].reshape(-1, 32)
            ballots = np.packbits(votes, axis=1, bitorder="little").view(np.uint32).reshape(-1)
            return self.assign(operands[0], np.repeat(ballots, 32), mask)
        target, _, outside = operands[0].partition("|")
        lane = np.arange(self.threads) % 32
        step = self.value(operands[2], "u32").astype(np.int64)
        source = {"bfly": lane ^ step, "up": lane - step, "down": lane + step, "idx": step}[details[1]]
        there = (source >= 0) & (source < 32)
        source = np.where(there, source, lane) + np.arange(self.threads) // 32 * 32
        if outside:
            self.assign(outside, there, mask)
        return self.assign(target, self.value(operands[1], "b32")[source], mask)


def _split(operands: str) -> list[str]:
    """Operands at commas outside of braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", operands)]
