"""Exact order statistics without a sort: wanted values are found digit by digit, the highest first.

Values order like the unsigned integers that `sort_key` makes of their bits, NaN behind infinity. A pass reads
x once and counts, for each of J wanted ranks, the next digit of the keys that begin with the digits found so
far, the rank's prefix; then each prefix gets the digit into which its rank falls.

    sample_kernel          the first digits of a sample of a large tensor, counted
    mark_kernel            by them, the first digits of values that later passes are likely to want
    digit_kernel           counts[row of a prefix, digit] += 1 over the keys that begin like the prefix; the
                           first pass over a large tensor gathers the values whose digit is marked
    narrow_kernel          appends a digit to each prefix; the last makes the prefix the value's key
    multi_select_kernel    the quantiles of many small tensors: a program does all of that, and interpolates,
                           for one of them, in digits of 8 bits

For one tensor, fp32 takes three passes (13, 10 and 9 bits), 16-bit types two, fp64 seven. Behind the first,
passes read the gathered values, as a rule a tenth to a fifth of x, if these hold all that are wanted, else x
again: a wrong guess costs time only. Equal prefixes share a row of counters. Where these are in shared
memory, a hash table without collisions finds a key's prefix, among many as quickly as among two; elsewhere
the key is compared with each.

The host decides nothing and only integers are added: the passes can be captured in a CUDA graph, their number
does not depend on the data, and the result does not depend on the order in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import counters, device, launcher, multi_tensor, reference_select
from ._triton import tl, triton
from .counters import (
    CHUNK,
    add_counters,
    append_digit,
    barrier,
    clear,
    count_portably,
    increment,
    open_counters,
    read,
    spare_word,
)
from .math import constant, fma, narrow, widen
from .multi_tensor import tensor_at

DIGIT = 10  # bits of a digit after the first, at most
BYTE = constant(8)  # bits of a digit of `multi_select_kernel`
RANKS = 10  # found at a time in one tensor, so that their counters fit the 48 KiB that a kernel may declare
QUANTILES = 15  # found at a time in many tensors, for the same reason
CURSOR = constant(16)  # bytes for the number of values that a program has gathered
TABLE = constant(4096)  # bytes of a program's table of prefixes, in front of its counters
AS_MANY_COUNTERS = 4  # mantissa bits of a sketch, for the geometry of programs
MANY_COUNTERS = 5  # the same of `multi_select_kernel`: 16 warps for one tensor
WARPS = counters.WARPS[AS_MANY_COUNTERS]
PROGRAMS = 3  # per multiprocessor, as many as it holds at a time
GATHERED = 1 << 25  # bytes of a tensor from which on the first pass gathers; smaller ones stay in caches
SAMPLE_BITS = 16  # of the number of values in a sample
MOST = 1 / 4  # of a sample: where more is marked, nothing is gathered
ROOM = 3  # there is room for one of so many values, in each program a multiple of UNIT less the last UNIT
UNIT = 64
PLACES = constant(UNIT)


def digits(width: int) -> list[tuple[int, int]]:
    """(shift, bits) of a key's digits, the highest first, which tells infinity from NaN."""
    first = 12 if width == 16 else 13
    shift = width - first
    found = [(shift, first)]
    while shift:
        bits = -(-shift // -(-shift // DIGIT))  # even
        shift -= bits
        found.append((shift, bits))
    return found


@triton.jit
def sort_key(x, NAN_LAST: tl.constexpr):
    """An unsigned integer (uint64 for fp64, else uint32) that orders like x; -0 comes before +0.

    NaN comes last or, without NAN_LAST, at one end or the other.
    """
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) | -0x8000000000000000)
        is_nan = (bits & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
        key = (tl.where(is_nan, -1, key) if NAN_LAST else key).to(tl.uint64, bitcast=True)
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) | -0x80000000)
        key = (tl.where(x != x, -1, key) if NAN_LAST else key).to(tl.uint32, bitcast=True)
    else:
        INFINITY: tl.constexpr = 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        key = (bits ^ ((bits >> 31) | -0x8000)) & 0xFFFF
        is_nan = (bits & 0x7FFF) > INFINITY
        key = (tl.where(is_nan, 0xFFFF, key) if NAN_LAST else key).to(tl.uint32, bitcast=True)
    return key


@triton.jit
def value_of_key(key, DTYPE: tl.constexpr):
    """The value with the sort key `key`, an int64."""
    if DTYPE == tl.float64:
        bits = tl.where(key < 0, key ^ -0x8000000000000000, ~key)
        value = bits.to(tl.float64, bitcast=True)
    elif DTYPE == tl.float32:
        bits = tl.where(key >= 0x80000000, key - 0x80000000, ~key & 0xFFFFFFFF)
        value = bits.to(tl.int32).to(tl.float32, bitcast=True)
    else:
        bits = tl.where(key >= 0x8000, key - 0x8000, ~key & 0xFFFF)
        value = bits.to(tl.int16).to(DTYPE, bitcast=True)
    return value


@triton.constexpr_function
def key_type(dtype):
    return tl.uint64 if dtype.primitive_bitwidth == 64 else tl.uint32


@triton.jit
def rows_of(prefix, prefixes, J: tl.constexpr):
    """Each prefix's row of counters: the number of lesser ones among the first J, so that equals share."""
    lesser = prefixes[None, :] < prefix[:, None]
    return tl.sum((lesser & (tl.arange(0, prefixes.shape[0])[None, :] < J)).to(tl.int32), axis=1)


@triton.jit
def slot_of(prefix, multiplier):
    """Where in the table a prefix has its entry of 8 bytes (fp64: 16): at the top bits of a product."""
    LONG: tl.constexpr = prefix.dtype == tl.uint64
    return ((prefix * multiplier) >> (56 if LONG else 23)).to(tl.int32) * (16 if LONG else 8)


@triton.jit
def enter_prefixes(base, prefix, row, shift, KEY: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr):
    """Fill the zeroed table, if there is one; return a multiplier with which no two prefixes share a slot.

    An entry is a prefix, followed by zeros for the digits to come, and the address of its row of counters.
    What no prefix enters stays 0, or 1 in the first slot: prefixes that belong into other slots.
    """
    prefix = prefix.to(KEY)
    one, other = prefix[:, None], prefix[None, :]
    state = tl.full((), 0, KEY)
    multiplier = state
    shared_slots = tl.full((), 1 if SHARED else 0, tl.int32)
    while shared_slots > 0:  # a few times at most
        state = state * 1664525 + 1013904223
        multiplier = state | (tl.full((), 1, KEY) << (KEY.primitive_bitwidth - 1)) | 1
        same = slot_of(one, multiplier) == slot_of(other, multiplier)
        shared_slots = tl.sum((same & (one != other)).to(tl.int32))
    if SHARED:
        write(base - TABLE, tl.full((), 1, KEY) << shift << BITS, base)
        barrier()
        write(base - TABLE + slot_of(prefix, multiplier), prefix << shift << BITS, base + (row << (BITS + 2)))
        barrier()
    return multiplier


@triton.jit
def write(address, prefix, counters):
    LONG: tl.constexpr = prefix.dtype == tl.uint64
    tl.inline_asm_elementwise(
        "st.shared.b64 [$1], $2; st.shared.b32 [$1+8], $3; mov.u32 $0, 0;"
        if LONG
        else "st.shared.v2.b32 [$1], {$2, $3}; mov.u32 $0, 0;",
        "=r,r,l,r" if LONG else "=r,r,r,r",
        [address, prefix, counters],
        tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def look_up(address, KEY: tl.constexpr):
    LONG: tl.constexpr = KEY == tl.uint64
    return tl.inline_asm_elementwise(
        "ld.shared.b64 $0, [$2]; ld.shared.b32 $1, [$2+8];" if LONG else "ld.shared.v2.b32 {$0, $1}, [$2];",
        "=&l,=r,r" if LONG else "=r,=r,r",
        [address],
        (tl.uint64 if LONG else tl.uint32, tl.int32),
        is_pure=False,
        pack=1,
    )


@triton.jit
def row_by_comparing(above, prefix, row):
    """The row of the prefix that `above` is, or -1."""
    found = tl.full(above.shape, -1, tl.int32)
    lane = tl.arange(0, prefix.shape[0])
    for j in tl.static_range(prefix.shape[0]):
        like = above == tl.sum(tl.where(lane == j, prefix, 0)).to(above.dtype)
        found = tl.where(like, tl.sum(tl.where(lane == j, row, 0)), found)
    return found


@triton.jit
def counter_of(key, shift, base, wanted, BITS: tl.constexpr, SHARED: tl.constexpr):
    """The counter of each key's digit (an address in shared memory, else a number); whether it has one."""
    multiplier, prefix, row = wanted
    above = key >> shift >> BITS
    if SHARED:
        entry, counters = look_up(base - TABLE + slot_of(above, multiplier), key.dtype)
        digit = (key ^ entry) >> shift
        found = digit < (1 << BITS)
        counter = counters + digit.to(tl.int32) * 4
    else:
        like = row_by_comparing(above, prefix, row)
        found = like >= 0
        counter = (like << BITS) + ((key >> shift) & ((1 << BITS) - 1)).to(tl.int32)
    return counter, found


@triton.constexpr_function
def append(size, pack):
    """PTX that stores the marked ones of `pack` values of `size` bytes, at places that it reserves."""
    text = "{ .reg .pred p; .reg .b32 place; .reg .b32 many; .reg .b64 address; mov.u32 many, 0; "
    for i in range(pack):
        text += f"add.u32 many, many, ${pack + i}; "
    text += f"setp.ne.u32 p, many, 0; mov.u32 place, 0; @p atom.shared.add.u32 place, [${2 * pack}], many; "
    text += f"min.u32 place, place, ${3 * pack}; mad.wide.u32 address, place, {size}, ${4 * pack}; "
    for i in range(pack):
        text += f"setp.ne.u32 p, ${pack + i}, 0; @p st.global.b{8 * size} [address], ${5 * pack + i}; "
        text += f"mad.wide.u32 address, ${pack + i}, {size}, address; mov.u32 ${i}, 0; "
    return text + "}"


@triton.constexpr_function
def operands(size, pack):
    """The constraints of `append`: results; marks, cursor, and limit; room; values."""
    value = "l" if size == 8 else "r"
    return "=r," * pack + "r," * 3 * pack + "l," * pack + f"{value}," * (pack - 1) + value


@triton.jit
def gather(x, digit, mask, base, gathered, BITS: tl.constexpr):
    """Append the values with a marked first digit to the program's room, as long as there is some."""
    room_ptr, room = gathered
    SIZE: tl.constexpr = x.dtype.primitive_bitwidth // 8
    marks = tl.inline_asm_elementwise(
        "ld.shared.u8 $0, [$1];", "=r,r", [base - (1 << BITS) + digit], tl.int32, is_pure=False, pack=1
    )
    marks = marks if mask is None else tl.where(mask, marks, 0)
    value = x.to(tl.int64 if SIZE == 8 else tl.int32, bitcast=True)
    tl.inline_asm_elementwise(
        append(SIZE, 32 // SIZE),
        operands(SIZE, 32 // SIZE),
        [marks, base - (1 << BITS) - CURSOR, room - PLACES, room_ptr, value],
        tl.int32,
        is_pure=False,
        pack=32 // SIZE,
    )


@triton.jit
def fill_marks(base, marks_ptr, BITS: tl.constexpr):
    """Copy the marks to shared memory, a byte for each digit in front of the counters."""
    words_ptr = marks_ptr.to(tl.pointer_type(tl.int32))
    for first in range(0, (1 << BITS) // 4, CHUNK):
        word = first + tl.arange(0, CHUNK)
        tl.inline_asm_elementwise(
            "st.shared.b32 [$1], $2; mov.u32 $0, 0;",
            "=r,r,r",
            [base - (1 << BITS) + word * 4, tl.load(words_ptr + word)],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    barrier()


@triton.jit
def count_digits(
    x, mask, counts, shift, base, wanted, gathered, NAN_LAST: tl.constexpr,
    BITS: tl.constexpr, ROWS: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """Count the digits of one tile under the mask (None: everywhere).

    Without shared memory they are added to `counts`, a pointer or a tensor, which is returned.
    """
    key = sort_key(x, NAN_LAST)
    if wanted is None:
        digit = (key >> shift).to(tl.int32)
        counter = base + digit * 4 if SHARED else digit
        counted = mask
        if gathered is not None:
            gather(x, digit, mask, base, gathered, BITS)
    else:
        counter, found = counter_of(key, shift, base, wanted, BITS, SHARED)
        counted = found if mask is None else found & mask
    if SHARED:
        if counted is not None:
            counter = tl.where(counted, counter, spare_word(base, ROWS << BITS))
        increment(counter)
    elif counts.dtype.is_ptr():
        count_portably(counts, counter, counted, ROWS << BITS)
    else:
        counts += tl.histogram(counter, ROWS << BITS, mask=counted)
    return counts


@triton.jit
def count_tiles(
    x_ptr, start, n, step, counts, shift, base, wanted, gathered, NAN_LAST: tl.constexpr,
    BITS: tl.constexpr, ROWS: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the digits of the tiles of x[:n] that begin at start, start + step, ..."""
    offs = tl.arange(0, BLOCK)
    while start + BLOCK <= n:
        x = tl.load(x_ptr + start + offs)
        counts = count_digits(x, None, counts, shift, base, wanted, gathered, NAN_LAST, BITS, ROWS, SHARED)
        start += step
    if start < n:
        mask = offs < n - start
        x = tl.load(x_ptr + start + offs, mask=mask)
        counts = count_digits(x, mask, counts, shift, base, wanted, gathered, NAN_LAST, BITS, ROWS, SHARED)
    return counts


@triton.jit(do_not_specialize=["n"])
def sample_kernel(
    x_ptr, counts_ptr,
    n: tl.int64,
    SHIFT: tl.constexpr, BITS: tl.constexpr, SAMPLE_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the first digits of values at one random place in each of 2^SAMPLE_BITS equal parts of x."""
    base = open_counters(1 << BITS, True)
    part = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    random = ((part * -1640531527) & 0x7FFFFFFF).to(tl.int64)  # of Fibonacci hashing
    place = (part * n >> SAMPLE_BITS) + (random * (n >> SAMPLE_BITS) >> 31)
    x = tl.load(x_ptr + place)
    count_digits(x, None, counts_ptr, SHIFT, base, None, None, True, BITS, 1, True)
    add_counters(base, counts_ptr, 1 << BITS)


@triton.jit
def mark_kernel(
    counts_ptr, q_ptr, marks_ptr,
    K: tl.constexpr, BITS: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """Mark the digits that lie within four standard deviations of a quantile of the sample."""
    digit = tl.arange(0, 1 << BITS)
    counts = tl.load(counts_ptr + digit).to(tl.int32)
    through = tl.cumsum(counts, axis=0)
    n = tl.sum(tl.where(digit + 1 < 1 << BITS, counts, 0)).to(tl.float32)  # without NaN
    marks = tl.zeros([1 << BITS], tl.int1)
    for k in range(K):
        q = tl.load(q_ptr + k).to(tl.float32)
        margin = 4.0 * tl.sqrt(q * (1.0 - q) * n) + 4.0
        marks |= (through > q * n - margin) & (through - counts <= q * n + margin)
    marked = tl.sum(tl.where(marks, counts, 0))
    tl.store(marks_ptr + digit, (marks & (marked <= MOST)).to(tl.int8))


@triton.jit
def holds_all(prefix, marks_ptr, lengths_ptr, KNOWN: tl.constexpr, BITS: tl.constexpr):
    """Whether the values gathered are all that begin with these prefixes, of KNOWN bits."""
    marks = tl.load(marks_ptr + (prefix >> (KNOWN - BITS))).to(tl.int32)
    return (tl.min(marks, axis=0) > 0) & (tl.load(lengths_ptr + tl.num_programs(0)) == 0)


@triton.jit(do_not_specialize=["n", "units"])
def digit_kernel(
    x_ptr, counts_ptr, prefix_ptr, marks_ptr, lengths_ptr, gathered_ptr,
    n: tl.int64, units: tl.int64,
    SHIFT: tl.constexpr, BITS: tl.constexpr, J: tl.constexpr, GATHERS: tl.constexpr, SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """With GATHERS, the number of bits of the first digit, it gathers values, or reads those gathered.

    lengths[i] says how many values program i has found; behind all lengths stands whether one is too large.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    KNOWN: tl.constexpr = DTYPE.primitive_bitwidth - SHIFT - BITS
    FIRST: tl.constexpr = KNOWN == 0
    WORDS: tl.constexpr = (1 if FIRST else J) << BITS
    FRONT: tl.constexpr = ((1 << BITS) + CURSOR if GATHERS else 0) if FIRST else TABLE
    base = open_counters(WORDS + FRONT // 4, SHARED) + FRONT
    program = tl.program_id(0).to(tl.int64)
    start, end, step = program * BLOCK, n, tl.num_programs(0).to(tl.int64) * BLOCK
    room = units * PLACES
    wanted = None
    gathered = None
    if FIRST:
        if GATHERS:
            fill_marks(base, marks_ptr, BITS)
            gathered = gathered_ptr + program * room, room.to(tl.int32)
    else:
        prefix = tl.load(prefix_ptr + tl.minimum(tl.arange(0, 16), J - 1))
        row = rows_of(prefix, prefix, J)
        wanted = enter_prefixes(base, prefix, row, SHIFT, key_type(DTYPE), BITS, SHARED), prefix, row
        if GATHERS and holds_all(prefix, marks_ptr, lengths_ptr, KNOWN, GATHERS):
            x_ptr, start, step = gathered_ptr, program * room, tl.full((), BLOCK, tl.int64)
            end = start + tl.load(lengths_ptr + program)
    count_tiles(
        x_ptr, start, end, step, counts_ptr, SHIFT, base, wanted, gathered, FIRST,
        BITS, 1 if FIRST else J, SHARED, BLOCK,
    )  # fmt: skip
    if SHARED:
        add_counters(base, counts_ptr, WORDS)
    if FIRST and GATHERS > 0:
        length = read(base - FRONT).to(tl.int64)
        tl.store(lengths_ptr + program, length)
        tl.store(lengths_ptr + tl.num_programs(0), 1, mask=length > room - PLACES)


@triton.jit
def narrow_kernel(
    values_ptr, counts_ptr, prefix_ptr, rank_ptr, next_prefix_ptr, next_rank_ptr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Program j appends a digit to the j-th prefix; after the last digit it stores the value."""
    DTYPE: tl.constexpr = values_ptr.dtype.element_ty
    ABOVE: tl.constexpr = DTYPE.primitive_bitwidth - SHIFT - BITS
    j = tl.program_id(0) + tl.arange(0, 1)
    known = tl.zeros([1], tl.int64)
    row = tl.zeros([1], tl.int32)
    if ABOVE > 0:
        known = tl.load(prefix_ptr + j)
        row = rows_of(known, tl.load(prefix_ptr + tl.minimum(tl.arange(0, 16), J - 1)), J)
    counts = tl.load(counts_ptr + (row << BITS)[:, None] + tl.arange(0, 1 << BITS)[None, :])
    prefix, rank = append_digit(known, tl.load(rank_ptr + j), counts, BITS)
    # Only the first digit puts all NaN last; in the ranges of -infinity and NaN, digits are known.
    if ABOVE > 0:
        extreme = (known == negative_infinity(DTYPE) >> (SHIFT + BITS)) | (known == (1 << ABOVE) - 1)
        prefix = tl.where(extreme, (known << BITS) | ((1 << BITS) - 1), prefix)
    if SHIFT == 0:
        tl.store(values_ptr + j, value_of_key(prefix, DTYPE))
    else:
        tl.store(next_prefix_ptr + j, prefix)
        tl.store(next_rank_ptr + j, rank)


@triton.constexpr_function
def negative_infinity(dtype):
    """Its key."""
    return (1 << dtype.fp_mantissa_width) - 1


@triton.jit
def multi_select_kernel(
    out_ptr, addresses_ptr, sizes_ptr, ranks_ptr, weights_ptr,
    K: tl.constexpr, LANES: tl.constexpr, INTERPOLATED: tl.constexpr, ALIGNED: tl.constexpr,
    SHARED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program i finds the K quantiles of tensor i, which lie between the order statistics ranks[i, k, :]."""
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    KEY: tl.constexpr = key_type(DTYPE)
    WORDS: tl.constexpr = LANES << BYTE
    tensor = tl.program_id(0)
    x_ptr = tensor_at(addresses_ptr, tensor, out_ptr, ALIGNED)
    n = tl.load(sizes_ptr + tensor).to(tl.int32)
    lane = tl.arange(0, LANES)
    rank = tl.load(ranks_ptr + tensor * (2 * K) + lane, mask=lane < 2 * K, other=0).to(tl.int32)
    rank = tl.where(lane < 2 * K, rank, n - 1)  # the greatest value tells whether there is a NaN
    prefix = tl.zeros([LANES], tl.int64)
    base = open_counters(WORDS + TABLE // 4, SHARED) + TABLE
    shift = tl.full((), DTYPE.primitive_bitwidth, KEY)
    for place in range(DTYPE.primitive_bitwidth // BYTE):
        shift -= BYTE
        row = rows_of(prefix, prefix, LANES)
        start = tl.full((), 0, tl.int32)
        of_rows = (row << BYTE)[:, None] + tl.arange(0, 1 << BYTE)[None, :]
        if SHARED and place > 0:
            clear(base - TABLE, WORDS + TABLE // 4)
        wanted = enter_prefixes(base, prefix, row, shift, KEY, BYTE, SHARED), prefix, row
        counts = 0 if SHARED else tl.zeros([WORDS], tl.int32)
        counts = count_tiles(
            x_ptr, start, n, BLOCK, counts, shift, base, wanted, None, True, BYTE, LANES, SHARED, BLOCK
        )
        if SHARED:
            barrier()
            counts = read(base + of_rows * 4)
            barrier()
        else:
            counts = tl.reshape(tl.gather(counts, tl.reshape(of_rows, [WORDS]), 0), [LANES, 1 << BYTE])
        prefix, rank = append_digit(prefix, rank, counts, BYTE)

    value = widen(value_of_key(prefix, DTYPE))
    has_nan = tl.max((value != value).to(tl.int32), axis=0) > 0
    below, above = tl.split(tl.reshape(value, [LANES // 2, 2]))
    k = tl.arange(0, LANES // 2)
    if INTERPOLATED:  # by the formula of torch.lerp
        weight = tl.load(weights_ptr + tensor * K + k, mask=k < K, other=0.0)
        nearer = tl.where(tl.abs(weight) < 0.5, below, above)
        below = fma(weight - tl.where(tl.abs(weight) < 0.5, 0.0, 1.0), above - below, nearer)
    result = tl.where(has_nan, float("nan"), below)
    tl.store(out_ptr + tensor * K + k, narrow(result, DTYPE), mask=k < K)


class Selection:
    """Order statistics of all values of x, which is not empty; NaN ranks behind infinity.

    Two steps, since ranks may depend on how many values are not NaN, which only the device knows: making the
    selection takes the first pass over x, which counts NaN; `order_statistics(ranks)` takes the others. The
    ranks should be near those of the quantiles q, if given, by which the first pass chooses what to gather,
    except in 16 bits, where a single pass is left.
    """

    def __init__(self, x: Tensor, q: Tensor | None = None) -> None:
        x = launcher.dense(x)
        self.x = x.as_strided((x.numel(),), (1,))
        if device.takes_kernel(x):
            self._passes = digits(8 * x.element_size())
            bins = 1 << self._passes[0][1]
            self._gathered = self._marked(q, bins)
            self._first = torch.zeros(bins, dtype=torch.int64, device=x.device)
            self._count(self._first, self._first, 1, *self._passes[0])
            self.nans = self._first[-1]
        else:
            self.nans = torch.count_nonzero(self.x != self.x)

    @property
    def valid(self) -> Tensor:
        """The number of values that are not NaN, 0-d on x's device."""
        return self.x.numel() - self.nans

    def order_statistics(self, ranks: Tensor) -> Tensor:
        """The values of these ranks, at most RANKS: int64, from 0 on."""
        x, ranks = self.x, ranks.contiguous()
        if not device.takes_kernel(x):
            return reference_select.order_statistics(x, ranks, self.nans)
        j = ranks.numel()
        values, prefixes = torch.empty_like(x[:1]).expand(j).contiguous(), torch.empty_like(ranks)
        sizes = [j << bits for _, bits in self._passes[1:]]
        others = torch.zeros(sum(sizes), dtype=torch.int64, device=x.device).split(sizes)
        for (shift, bits), counted in zip(self._passes, (self._first, *others), strict=True):
            if counted is not self._first:
                self._count(counted, prefixes, j, shift, bits)
            state = values, counted, prefixes, ranks
            prefixes, ranks = torch.empty_like(ranks), torch.empty_like(ranks)
            constants = (shift, bits, j)
            tensors = (*state, prefixes, ranks)
            launcher.launch(narrow_kernel, ("narrow", *constants), j, tensors, *constants, num_warps=WARPS)
        return values

    def _marked(self, q: Tensor | None, bins: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Marks by a sample, lengths, and room for the values of a tensor that is large enough."""
        x, (shift, bits) = self.x, self._passes[0]
        if q is None or x.nbytes < GATHERED or x.element_size() == 2:
            return None
        grid, block, shared = counters.geometry(x, AS_MANY_COUNTERS, PROGRAMS)
        if not shared:
            return None
        counts = torch.zeros(bins + grid + 1, dtype=torch.int64, device=x.device)
        marks = torch.empty(bins, dtype=torch.int8, device=x.device)
        programs, sampled = (1 << SAMPLE_BITS) // block, (shift, bits, SAMPLE_BITS, block)
        tensors, what = (x, counts), ("sample", *sampled)
        launcher.launch(sample_kernel, what, programs, tensors, x.numel(), *sampled, num_warps=WARPS)
        marked = (q.numel(), bits, int(MOST * (1 << SAMPLE_BITS)))
        launcher.launch(
            mark_kernel, ("mark", q.dtype, *marked), 1, (counts, q, marks), *marked, num_warps=WARPS
        )
        room = -(-x.numel() // (ROOM * grid * UNIT)) * UNIT
        return marks, counts[bins:], x.new_empty(grid * room)

    def _count(self, counts: Tensor, prefixes: Tensor, j: int, shift: int, bits: int) -> None:
        grid, block, shared = counters.geometry(self.x, AS_MANY_COUNTERS, PROGRAMS)
        marks, lengths, room = self._gathered or (counts, counts, self.x)
        constants = (shift, bits, j, self._passes[0][1] if self._gathered else 0, shared, block)
        launcher.launch(
            digit_kernel,
            ("digit", *constants),
            grid,
            (self.x, counts, prefixes, marks, lengths, room),
            *(self.x.numel(), room.numel() // (UNIT * grid), *constants),
            num_warps=WARPS,
        )


def quantiles_of_many(tensors: Sequence[Tensor], between: Tensor, weight: Tensor | None) -> Tensor:
    """Quantiles (tensors, k) of tensors of one dtype and alignment, in one launch; NaN if a tensor has one.

    A quantile is the weighted mean of two order statistics, of the ranks `between` (tensors, k, 2), `weight`
    (tensors, k) being that of the second; without `weight`, it is the first. The tensors are on a device with
    kernels, dense, not empty, and small; k is at most QUANTILES.
    """
    first = tensors[0]
    k = between.shape[1]
    out = torch.empty(len(tensors), k, dtype=first.dtype, device=first.device)
    sizes = multi_tensor.sizes(tuple(tensor.numel() for tensor in tensors), first.device)
    addresses = multi_tensor.addresses(tensors, first.device)
    _, block, shared = counters.geometry(first, MANY_COUNTERS)
    constants = (
        k,
        32 if 2 * k >= 16 else 16,
        weight is not None,
        multi_tensor.is_aligned(tensors),
        shared,
        block,
    )
    launcher.launch(
        multi_select_kernel,
        ("select many", *constants),
        len(tensors),
        (out, addresses, sizes, between, out if weight is None else weight),
        *constants,
        num_warps=counters.WARPS[MANY_COUNTERS],
    )
    return out
