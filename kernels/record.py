"""The end of a monitored step, on the device alone: one kernel, and its plain-PyTorch twin.

    finish_kernel    each row of counts: its statistics into a slot of the ring; moved to `last`, and cleared
                     the totals: the same with the sums of their rows
                     the ticket: advanced; whether the next step counts is decided

A program takes one row and adds it to its total, whose own program waits for that; the last one to finish
takes the ticket. At most two programs wait, and only for others, so that all get their turn. Counts are
integers, so that the order does not matter. A step that is not measured changes the ticket only.

The ticket, int64, begins with these words, before the number of the step in each slot of the ring:

    ON         whether the step in progress is measured: the switch of all kernels that count
    PAUSED     whether none is
    CALLS      how many steps were made
    MADE       how many of them were measured; the next goes to the slot MADE modulo the number of slots
    ARRIVED    how many rows have been added to each total, and how many programs have finished
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import device, launcher, summary
from ._triton import tl, triton
from .math import constant
from .sketch import constexpr_bin_count
from .summary import LEADING, summarize_row

ON, PAUSED, CALLS, MADE, ARRIVED = range(5)
HEAD = 8  # words before the steps' numbers
MOVED = constant(2048)  # counts moved at a time
WORDS = tuple(map(constant, (ON, PAUSED, CALLS, MADE, ARRIVED, HEAD)))
ON_WORD, PAUSED_WORD, CALLS_WORD, MADE_WORD, ARRIVED_WORD, HEAD_WORDS = WORDS


class Records(NamedTuple):
    """What a step changes."""

    counts: Tensor  # (rows, bins) int64: of the step in progress; totals first, then two groups of rows
    last: Tensor  # (rows, bins) int64: of the last step measured
    scale: Tensor  # (rows,) float64: what the values of that step were multiplied by
    ring: Tensor  # (slots, rows, columns) float64: summaries of the last steps measured
    ticket: Tensor  # (HEAD + slots,) int64


class Wanted(NamedTuple):
    """What is recorded, and how often."""

    q: Tensor  # float64: quantiles
    thresholds: Tensor  # float64: of magnitudes, below which shares are counted
    m: int  # mantissa bits of the counts
    magnitude: bool
    every: int


class Layout(NamedTuple):
    """Which rows there are: the totals; those of the first total; from `second` on, those of the last."""

    rows: int
    totals: int  # 1 or 2
    second: int

    def members(self, total: int) -> slice:
        first = self.second if total else self.totals
        return slice(first, self.rows if total == self.totals - 1 else self.second)


@triton.jit
def move_row(counts_ptr, last_ptr, total_ptr, adds, M: tl.constexpr):
    """Move a row's counts to `last` and, if it `adds`, add them to its total's."""
    for start in range(0, constexpr_bin_count(M), MOVED):
        position = start + tl.arange(0, MOVED)
        there = position < constexpr_bin_count(M)
        counted = tl.load(counts_ptr + position, mask=there, other=0)
        tl.store(last_ptr + position, counted, mask=there)
        tl.store(counts_ptr + position, tl.zeros_like(counted), mask=there)
        tl.atomic_add(total_ptr + position, counted, mask=there & (counted != 0) & adds, sem="relaxed")
    tl.debug_barrier()


@triton.jit
def advance(ticket_ptr, on, slots, every):
    """End the step, and decide whether the next one is measured."""
    calls = tl.load(ticket_ptr + CALLS_WORD)
    made = tl.load(ticket_ptr + MADE_WORD)
    if on != 0:
        tl.store(ticket_ptr + HEAD_WORDS + made % slots, calls)
        tl.store(ticket_ptr + MADE_WORD, made + 1)
    calls += 1
    tl.store(ticket_ptr + CALLS_WORD, calls)
    paused = tl.load(ticket_ptr + PAUSED_WORD)
    tl.store(ticket_ptr + ON_WORD, ((calls % every == 0) & (paused == 0)).to(tl.int64))
    tl.store(ticket_ptr + ARRIVED_WORD + tl.arange(0, 4), tl.zeros([4], tl.int64), mask=tl.arange(0, 4) < 3)


@triton.jit(do_not_specialize=["room", "rows", "totals", "second", "slots", "every"])
def finish_kernel(
    ring_ptr, last_ptr, ticket_ptr, factors_ptr, scale_ptr, q_ptr, thresholds_ptr, lower_ptr, upper_ptr,
    counts_ptr,
    room: tl.int64, rows: tl.int64, totals: tl.int64, second: tl.int64, slots: tl.int64, every: tl.int64,
    M: tl.constexpr, MAGNITUDE: tl.constexpr, K: tl.constexpr, T: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    BINS: tl.constexpr = constexpr_bin_count(M)
    row = rows - 1 - tl.program_id(0)  # totals come last, and wait for rows only
    is_total = row < totals
    total = tl.where(is_total, row, tl.where(row < second, 0, totals - 1))
    on = tl.load(ticket_ptr + ON_WORD)
    ring_ptr += (tl.load(ticket_ptr + MADE_WORD) % slots) * room * (LEADING + K + T)
    if on != 0:
        members = tl.where(total == totals - 1, rows, second) - tl.where(total == 0, totals, second)
        arrived = tl.where(is_total, 0, members)
        while arrived < members:
            arrived = tl.atomic_add(ticket_ptr + ARRIVED_WORD + total, 0, sem="acquire")
        move_row(counts_ptr + row * BINS, last_ptr + row * BINS, counts_ptr + total * BINS, row >= totals, M)
        tl.atomic_add(ticket_ptr + ARRIVED_WORD + total, 1, sem="release")
        scale = tl.load(factors_ptr + row)
        tl.store(scale_ptr + row, scale)
        summarize_row(
            ring_ptr + row * (LEADING + K + T), last_ptr + row * BINS, scale,
            q_ptr, thresholds_ptr, lower_ptr, upper_ptr, M, MAGNITUDE, K, T, WIDTH,
        )  # fmt: skip
    tl.debug_barrier()
    if tl.atomic_add(ticket_ptr + ARRIVED_WORD + 2, 1, sem="acq_rel") == rows - 1:
        advance(ticket_ptr, on, slots, every)


def finish(records: Records, factors: Tensor, layout: Layout, wanted: Wanted) -> None:
    """End a step of values times `factors` (rows,); the steps 0, every, 2 every ... are measured."""
    counts, last, scale, ring, ticket = records
    if not device.takes_kernel(counts):
        return finish_plainly(records, factors, layout, wanted)
    q, thresholds, m, magnitude, every = wanted
    k, t = len(q), len(thresholds)
    lower, upper = summary.edges_on(counts.device, m, magnitude=magnitude)
    width, warps = summary.extent(lower)
    return launcher.launch(
        finish_kernel,
        ("finish", m, magnitude, k, t),
        layout.rows,
        (ring, last, ticket, factors, scale, q, thresholds, lower, upper, counts),
        *(ring.shape[1], *layout, len(ring), every, m, magnitude, k, t, width),
        num_warps=warps,
    )


def finish_plainly(records: Records, factors: Tensor, layout: Layout, wanted: Wanted) -> None:
    """The kernel's twin in plain PyTorch, which reads the ticket."""
    ticket, there = records.ticket, slice(layout.rows)
    on, paused, calls, made = ticket[:ARRIVED].tolist()
    if on:
        counts, slot = records.counts[there], made % len(records.ring)
        for total in range(layout.totals):
            torch.sum(counts[layout.members(total)], 0, out=counts[total])
        factors = factors[there]
        q, thresholds, m, magnitude, _ = wanted
        table = summary.summarize(counts, factors, q, thresholds, m, magnitude=magnitude)
        records.ring[slot, there] = table
        records.scale[there] = factors
        records.last[there] = counts
        counts.zero_()
        ticket[HEAD + slot] = calls
        ticket[MADE] = made + 1
    ticket[CALLS] = calls + 1
    ticket[ON] = (calls + 1) % wanted.every == 0 and not paused
