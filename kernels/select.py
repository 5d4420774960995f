"""Exact order statistics without a sort: wanted values are found digit by digit, the highest first.

Values order like the unsigned integers that `sort_key` makes of their bits, NaN behind infinity. A pass reads
x once and counts, for each of J wanted ranks, the next digit of the keys that begin with the digits found so
far; `narrow_kernel` then finds the digit into which the rank falls. fp32 takes three passes (12, 10 and 10
bits), 16-bit types two, fp64 seven.

    digit_kernel           counts[j, digit] += 1 over the keys that begin like the j-th prefix      reads x
    narrow_kernel          appends a digit to each prefix; the last makes the prefix the value's key
    multi_select_kernel    values[tensor, j] = order statistic ranks[tensor, j] of many small tensors: each
                           program finds one, bit by bit, reading its tensor from the cache once per bit

Ranks ascend, so that equal prefixes are neighbors; the first of them counts for all. Where counters are in
shared memory, a hash table without collisions behind them finds a key's prefix, among ten as quickly as among
two; elsewhere the key is compared with each.

The host decides nothing and only integers are added: the passes can be captured in a CUDA graph, their number
does not depend on the data, and the result does not depend on the order in which programs run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import counters, device, launcher, multi_tensor, reference_select
from ._triton import tl, triton
from .counters import CHUNK, add_counted, barrier, count_portably, increment, open_counters, read, spare_word
from .multi_tensor import tensor_at

DIGIT = 10  # bits of a digit after the first, at most
RANKS = 10  # found at a time, so that their counters fit the 48 KiB that a kernel may declare
TABLE = 1024  # words of a program's table of prefixes
AS_MANY_COUNTERS = 4  # mantissa bits of a sketch, for the geometry of programs
PROGRAMS = 3  # per multiprocessor, as many as it holds at a time
WARPS, TILE = 8, 2048  # of `multi_select_kernel`


def digits(width: int) -> list[tuple[int, int]]:
    """(shift, bits) of a key's digits, the highest first, which tells infinity from NaN."""
    first = 13 if width == 64 else 12
    shift = width - first
    found = [(shift, first)]
    while shift:
        bits = -(-shift // -(-shift // DIGIT))  # even, so that 4 bits are left beside what is above the last
        shift -= bits
        found.append((shift, bits))
    return found


@triton.jit
def sort_key(x):
    """An unsigned integer (uint64 for fp64, else uint32) that orders like x, NaN last; -0 comes before +0."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        is_nan = (bits & 0x7FFFFFFFFFFFFFFF) > 0x7FF0000000000000
        key = tl.where(is_nan, -1, bits ^ ((bits >> 63) | -0x8000000000000000)).to(tl.uint64, bitcast=True)
    elif x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        key = tl.where(x != x, -1, bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    else:
        INFINITY: tl.constexpr = 0x7F80 if x.dtype == tl.bfloat16 else 0x7C00
        bits = x.to(tl.int16, bitcast=True).to(tl.int32)
        is_nan = (bits & 0x7FFF) > INFINITY
        key = tl.where(is_nan, 0xFFFF, (bits ^ ((bits >> 31) | -0x8000)) & 0xFFFF).to(tl.uint32, bitcast=True)
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
def words_of(bits, j, first, shared):
    """Words of a program's counters and, behind them, of its table of prefixes."""
    counted = (1 if first else j) << bits
    return counted, counted + (0 if first or not shared else TABLE)


@triton.jit
def slot_of(prefix, multiplier):
    """The place of a prefix in the table: the top bits of a product."""
    return ((prefix * multiplier) >> (55 if prefix.dtype == tl.uint64 else 22)).to(tl.int32)


@triton.jit
def enter_prefixes(table, prefix_ptr, KEY: tl.constexpr, ABOVE: tl.constexpr, J: tl.constexpr):
    """Fill the zeroed table; return a multiplier by which no two of the prefixes share a slot.

    An entry is a prefix of ABOVE bits, and above them the number of the first prefix like it. What no prefix
    enters stays 0, or 1 in the first slot: prefixes that belong into other slots.
    """
    j = tl.minimum(tl.arange(0, 16), J - 1)
    prefix = tl.load(prefix_ptr + j)
    one, other = prefix[:, None], tl.load(prefix_ptr + j)[None, :]
    state = tl.full((), 0, KEY)
    multiplier = state
    shared_slots = tl.full((), 1, tl.int32)
    while shared_slots > 0:  # one multiplier in five at most
        state = state * 1664525 + 1013904223
        multiplier = state | (tl.full((), 1, KEY) << (KEY.primitive_bitwidth - 1)) | 1
        same = slot_of(one.to(KEY), multiplier) == slot_of(other.to(KEY), multiplier)
        shared_slots = tl.sum((same & (one != other)).to(tl.int32))
    number = tl.sum((other < one).to(tl.int32), axis=1)
    entry = prefix.to(KEY) | (number.to(KEY) << ABOVE)
    write(table, tl.full((), 1, KEY))
    barrier()
    write(table + slot_of(prefix.to(KEY), multiplier) * (KEY.primitive_bitwidth // 8), entry)
    barrier()
    return multiplier


@triton.jit
def write(address, value):
    if value.dtype == tl.uint64:
        tl.inline_asm_elementwise(
            "st.shared.b64 [$1], $2; mov.u32 $0, 0;",
            "=r,r,l",
            [address, value],
            tl.int32,
            is_pure=False,
            pack=1,
        )
    else:
        tl.inline_asm_elementwise(
            "st.shared.b32 [$1], $2; mov.u32 $0, 0;",
            "=r,r,r",
            [address, value],
            tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def look_up(table, slot, KEY: tl.constexpr):
    if KEY == tl.uint64:
        entry = tl.inline_asm_elementwise(
            "{ .reg .b32 a; mad.lo.u32 a, $2, 8, $1; ld.shared.b64 $0, [a]; }",
            "=l,r,r", [table, slot], tl.uint64, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        entry = tl.inline_asm_elementwise(
            "{ .reg .b32 a; mad.lo.u32 a, $2, 4, $1; ld.shared.b32 $0, [a]; }",
            "=r,r,r", [table, slot], tl.uint32, is_pure=False, pack=1,
        )  # fmt: skip
    return entry


@triton.jit
def row_by_comparing(above, prefix_ptr, J: tl.constexpr):
    """The number of the first prefix like `above`, or -1."""
    row = tl.full(above.shape, -1, tl.int32)
    last = tl.full((), -1, tl.int64)
    for j in range(J):
        prefix = tl.load(prefix_ptr + j)
        if prefix != last:  # most repeat the one before: a quantile's two order statistics
            row = tl.where(above == prefix.to(above.dtype), j, row)
        last = prefix
    return row


@triton.jit
def count_digits(
    base,
    counts_ptr,
    prefix_ptr,
    multiplier,
    x,
    mask,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Count the digits of one tile under the mask (None: everywhere)."""
    ALL: tl.constexpr = words_of(BITS, J, FIRST, SHARED)
    key = sort_key(x)
    KEY: tl.constexpr = key.dtype
    digit = ((key >> SHIFT) & ((1 << BITS) - 1)).to(tl.int32)
    counted = mask
    address = base + digit * 4
    if not FIRST:
        above = key >> (SHIFT + BITS)
        if SHARED:
            ABOVE: tl.constexpr = key_bits(x.dtype.primitive_bitwidth, SHIFT, BITS)
            matched = above ^ look_up(base + ALL[0] * 4, slot_of(above, multiplier), KEY)
            found = (matched & ((1 << ABOVE) - 1)) == 0
            address += (matched >> (ABOVE - BITS - 2)).to(tl.int32)  # where found, the row's counters
        else:
            row = row_by_comparing(above, prefix_ptr, J)
            found = row >= 0
            digit += row << BITS
        counted = found if mask is None else found & mask
    if SHARED:
        if counted is not None:
            address = tl.where(counted, address, spare_word(base, ALL[1]))
        increment(address)
    else:
        count_portably(counts_ptr, digit, counted, ALL[0])


@triton.constexpr_function
def key_bits(width, shift, bits):
    """Bits of a key above a digit."""
    return width - shift - bits


@triton.jit(do_not_specialize=["n"])
def digit_kernel(
    x_ptr,
    counts_ptr,
    prefix_ptr,
    n: tl.int64,
    SHIFT: tl.constexpr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    ALL: tl.constexpr = words_of(BITS, J, FIRST, SHARED)
    WORDS: tl.constexpr = ALL[0]
    WIDTH: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth
    base = open_counters(ALL[1], SHARED)
    multiplier = 0
    if SHARED and not FIRST:
        KEY: tl.constexpr = tl.uint64 if WIDTH == 64 else tl.uint32
        multiplier = enter_prefixes(base + WORDS * 4, prefix_ptr, KEY, key_bits(WIDTH, SHIFT, BITS), J)
    offs = tl.arange(0, BLOCK)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start + BLOCK <= n:
        x = tl.load(x_ptr + start + offs)
        count_digits(base, counts_ptr, prefix_ptr, multiplier, x, None, SHIFT, BITS, J, FIRST, SHARED)
        start += tl.num_programs(0) * BLOCK
    if start < n:
        mask = offs < n - start
        x = tl.load(x_ptr + start + offs, mask=mask)
        count_digits(base, counts_ptr, prefix_ptr, multiplier, x, mask, SHIFT, BITS, J, FIRST, SHARED)
    if SHARED:
        barrier()
        for first in range(0, WORDS, CHUNK):
            word = first + tl.arange(0, CHUNK)
            counted = read(base + tl.minimum(word, WORDS - 1) * 4)
            add_counted(counts_ptr, word, counted, word < WORDS)


@triton.jit
def narrow_kernel(
    values_ptr,
    counts_ptr,
    prefix_ptr,
    rank_ptr,
    next_prefix_ptr,
    next_rank_ptr,
    BITS: tl.constexpr,
    J: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Program j appends a digit to the j-th prefix; after the last digit it stores the value."""
    j = tl.program_id(0)
    prefix = tl.full((), 0, tl.int64)
    row = tl.full((), 0, tl.int32)
    if not FIRST:
        prefix = tl.load(prefix_ptr + j)
        for i in tl.static_range(J):
            row = tl.where(tl.load(prefix_ptr + (J - 1 - i)) == prefix, J - 1 - i, row)
    digit = tl.arange(0, 1 << BITS)
    counts = tl.load(counts_ptr + (row << BITS) + digit)
    rank = tl.load(rank_ptr + j)
    found = tl.sum((tl.cumsum(counts) <= rank).to(tl.int32))
    prefix = (prefix << BITS) | found.to(tl.int64)
    if LAST:
        tl.store(values_ptr + j, value_of_key(prefix, values_ptr.dtype.element_ty))
    else:
        before = tl.sum(tl.where(digit < found, counts, 0))
        tl.store(next_prefix_ptr + j, prefix)
        tl.store(next_rank_ptr + j, rank - before)


@triton.jit
def number_below(x_ptr, n, key, BLOCK: tl.constexpr):
    """The number of n values whose sort key is below `key`, an int64 that holds the key's bits."""
    offs = tl.arange(0, BLOCK)
    below = tl.zeros([BLOCK], tl.int64)
    start = tl.full((), 0, tl.int64)
    while start < n:
        mask = offs < n - start
        keys = sort_key(tl.load(x_ptr + start + offs, mask=mask))
        below += ((keys < key.to(keys.dtype, bitcast=keys.dtype == tl.uint64)) & mask).to(tl.int64)
        start += BLOCK
    return tl.sum(below)


@triton.jit
def multi_select_kernel(
    values_ptr,
    addresses_ptr,
    sizes_ptr,
    ranks_ptr,
    nans_ptr,
    J: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    DTYPE: tl.constexpr = values_ptr.dtype.element_ty
    wanted = tl.program_id(0)
    tensor = wanted // J
    x_ptr = tensor_at(addresses_ptr, tensor, values_ptr, False)
    n = tl.load(sizes_ptr + tensor)
    rank = tl.load(ranks_ptr + wanted)
    found = tl.full((), 0, tl.int64)
    bit = tl.full((), 1, tl.int64) << (WIDTH - 1)
    for _ in range(WIDTH):
        candidate = found | bit
        if number_below(x_ptr, n, candidate, BLOCK) <= rank:
            found = candidate
        bit = (bit >> 1) & 0x7FFFFFFFFFFFFFFF
    tl.store(values_ptr + wanted, value_of_key(found, DTYPE))
    if wanted % J == 0:
        of_nan = tl.full((), -1 if WIDTH == 64 else (1 << WIDTH) - 1, tl.int64)
        tl.store(nans_ptr + tensor, n - number_below(x_ptr, n, of_nan, BLOCK))


class Selection:
    """Order statistics of all values of x, which is not empty; NaN ranks behind infinity.

    Two steps, since ranks may depend on how many values are not NaN, which only the device knows: making the
    selection takes the first pass over x, which counts NaN; `order_statistics(ranks)` takes the others.
    """

    def __init__(self, x: Tensor) -> None:
        x = launcher.dense(x)
        self.x = x.as_strided((x.numel(),), (1,))
        if device.takes_kernel(x):
            self._passes = digits(8 * x.element_size())
            self._first = torch.zeros(1 << self._passes[0][1], dtype=torch.int64, device=x.device)
            _count_digit(self.x, self._first, self._first, 1, *self._passes[0], first=True)
            self.nans = self._first[-1]
        else:
            self.nans = torch.count_nonzero(self.x != self.x)

    @property
    def valid(self) -> Tensor:
        """The number of values that are not NaN, 0-d on x's device."""
        return self.x.numel() - self.nans

    def order_statistics(self, ranks: Tensor) -> Tensor:
        """The values of these ranks, at most RANKS: int64, ascending, from 0 on."""
        x, ranks = self.x, ranks.contiguous()
        if not device.takes_kernel(x):
            return reference_select.order_statistics(x, ranks, self.nans)
        j, counted = ranks.numel(), self._first
        values, prefixes = torch.empty_like(x[:1]).expand(j).contiguous(), torch.empty_like(ranks)
        for shift, bits in self._passes:
            first = shift == self._passes[0][0]
            if not first:
                counted = torch.zeros(j << bits, dtype=torch.int64, device=x.device)
                _count_digit(x, counted, prefixes, j, shift, bits, first=False)
            state = values, counted, prefixes, ranks
            prefixes, ranks = torch.empty_like(ranks), torch.empty_like(ranks)
            constants = (bits, j, first, shift == 0)
            tensors = (*state, prefixes, ranks)
            launcher.launch(narrow_kernel, ("narrow", *constants), j, tensors, *constants, num_warps=4)
        return values


def _count_digit(
    x: Tensor, counts: Tensor, prefixes: Tensor, j: int, shift: int, bits: int, *, first: bool
) -> None:
    grid, block, shared = counters.geometry(x, AS_MANY_COUNTERS, PROGRAMS)
    constants = (shift, bits, j, first, shared, block)
    launcher.launch(
        digit_kernel,
        ("digit", *constants),
        grid,
        (x, counts, prefixes),
        *(x.numel(), *constants),
        num_warps=counters.WARPS[AS_MANY_COUNTERS],
    )


def order_statistics_of_many(tensors: Sequence[Tensor], ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Order statistics ranks (tensors, j) of tensors of one dtype, and each tensor's number of NaN.

    The tensors are on a device with kernels, dense, not empty, and small.
    """
    first = tensors[0]
    values = torch.empty(ranks.shape, dtype=first.dtype, device=first.device)
    nans = torch.empty(len(tensors), dtype=torch.int64, device=first.device)
    sizes = multi_tensor.sizes(tuple(tensor.numel() for tensor in tensors), first.device)
    addresses = multi_tensor.addresses(tensors, first.device)
    constants = (ranks.shape[1], 8 * first.element_size(), TILE)
    launcher.launch(
        multi_select_kernel,
        ("select many", *constants),
        ranks.numel(),
        (values, addresses, sizes, ranks, nans),
        *constants,
        num_warps=WARPS,
    )
    return values, nans
