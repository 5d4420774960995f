"""The end of a monitored step, on the device alone: one kernel, and its plain-PyTorch twin.

    finish_kernel    each row of counts: its statistics into a slot of the ring; moved to `last`, and cleared
                     the totals: the same with the sums of their rows
                     the ticket: advanced; whether the next step counts is decided

A program takes one row and adds it to its total; the last one to do so takes the total, and the last of these
the ticket. Counts are integers, so that the order does not matter. A step that is not measured changes the
ticket only.

The ticket, int64, begins with these words, before the number of the step in each slot of the ring:

    ON         whether the step in progress is measured: the switch of all kernels that count
    PAUSED     whether none is
    CALLS      how many steps were made
    MADE       how many of them were measured; the next goes to the slot MADE modulo the number of slots
    ARRIVED    how many programs have finished their row, for each total, and how many their total
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import device, launcher, summary
from ._triton import tl, triton
from .counters import CHUNK
from .math import constant
from .sketch import constexpr_bin_count
from .summary import LEADING, summarize_row

ON, PAUSED, CALLS, MADE, ARRIVED = range(5)
HEAD = 8  # words before the steps' numbers
WORDS = tuple(map(constant, (ON, PAUSED, CALLS, MADE, ARRIVED, HEAD)))
ON_WORD, PAUSED_WORD, CALLS_WORD, MADE_WORD, ARRIVED_WORD, HEAD_WORDS = WORDS


class Records(NamedTuple):
    """What a step changes."""

    counts: Tensor  # (rows, bins) int64: of the step in progress; totals first, then two groups of rows
    last: Tensor  # (rows, bins) int64: of the last step measured
    scale: Tensor  # (rows,) float64: what the values of that step were multiplied by
    ring: Tensor  # (slots, rows, columns) float64: summaries of the last steps measured
    ticket: Tensor  # (HEAD + slots,) int64


class Layout(NamedTuple):
    """Which rows there are: the totals; those of the first total; from `second` on, those of the last."""

    rows: int
    totals: int  # 1 or 2
    second: int

    def members(self, total: int) -> slice:
        first = self.second if total else self.totals
        return slice(first, self.rows if total == self.totals - 1 else self.second)


@triton.jit
def move_row(counts_ptr, last_ptr, total_ptr, M: tl.constexpr, ADD: tl.constexpr):
    """Move a row's counts to `last`, and add them to its total's."""
    for start in range(0, constexpr_bin_count(M), CHUNK):
        position = start + tl.arange(0, CHUNK)
        there = position < constexpr_bin_count(M)
        counted = tl.load(counts_ptr + position, mask=there, other=0)
        tl.store(last_ptr + position, counted, mask=there)
        tl.store(counts_ptr + position, tl.zeros_like(counted), mask=there)
        if ADD:
            tl.atomic_add(total_ptr + position, counted, mask=there & (counted != 0), sem="relaxed")
    tl.debug_barrier()


@triton.jit
def arrive(ticket_ptr, word, count):
    """Whether all others of `count` programs have come here; what they have written is there then."""
    tl.debug_barrier()
    return tl.atomic_add(ticket_ptr + ARRIVED_WORD + word, 1, sem="acq_rel") == count - 1


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
    ring_ptr,
    last_ptr,
    ticket_ptr,
    factors_ptr,
    scale_ptr,
    q_ptr,
    thresholds_ptr,
    lower_ptr,
    upper_ptr,
    counts_ptr,
    room: tl.int64,
    rows: tl.int64,
    totals: tl.int64,
    second: tl.int64,
    slots: tl.int64,
    every: tl.int64,
    M: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    K: tl.constexpr,
    T: tl.constexpr,
    WIDTH: tl.constexpr,
):
    BINS: tl.constexpr = constexpr_bin_count(M)
    row = tl.program_id(0).to(tl.int64)
    total = tl.where(row < totals, row, tl.where(row < second, 0, totals - 1))
    on = tl.load(ticket_ptr + ON_WORD)
    ring_ptr += (tl.load(ticket_ptr + MADE_WORD) % slots) * room * (LEADING + K + T)
    if (on != 0) & (row >= totals):
        move_row(counts_ptr + row * BINS, last_ptr + row * BINS, counts_ptr + total * BINS, M, True)
        scale = tl.load(factors_ptr + row)
        tl.store(scale_ptr + row, scale)
        summarize_row(
            ring_ptr + row * (LEADING + K + T), last_ptr + row * BINS, scale,
            q_ptr, thresholds_ptr, lower_ptr, upper_ptr, M, MAGNITUDE, K, T, WIDTH,
        )  # fmt: skip
    members = tl.where(total == totals - 1, rows, second) - tl.where(total == 0, totals, second)
    if arrive(ticket_ptr, total, members + 1):
        if on != 0:
            move_row(counts_ptr + total * BINS, last_ptr + total * BINS, counts_ptr, M, False)
            scale = tl.load(factors_ptr + total)
            tl.store(scale_ptr + total, scale)
            summarize_row(
                ring_ptr + total * (LEADING + K + T), last_ptr + total * BINS, scale,
                q_ptr, thresholds_ptr, lower_ptr, upper_ptr, M, MAGNITUDE, K, T, WIDTH,
            )  # fmt: skip
        if arrive(ticket_ptr, 2, totals):
            advance(ticket_ptr, on, slots, every)


def finish(
    records: Records,
    factors: Tensor,
    q: Tensor,
    thresholds: Tensor,
    layout: Layout,
    *,
    m: int,
    magnitude: bool,
    every: int,
) -> None:
    """End a step of values times `factors` (rows,); the steps 0, every, 2 every ... are measured."""
    counts, last, scale, ring, ticket = records
    if not device.takes_kernel(counts):
        return finish_plainly(records, factors, q, thresholds, layout, m=m, magnitude=magnitude, every=every)
    k, t = len(q), len(thresholds)
    lower, upper = summary.edges_on(counts.device, m, magnitude=magnitude)
    width = summary.width_of(lower)
    return launcher.launch(
        finish_kernel,
        ("finish", m, magnitude, k, t),
        layout.rows,
        (ring, last, ticket, factors, scale, q, thresholds, lower, upper, counts),
        *(ring.shape[1], *layout, len(ring), every, m, magnitude, k, t, width),
        num_warps=min(width // 256, 32),
    )


def finish_plainly(
    records: Records,
    factors: Tensor,
    q: Tensor,
    thresholds: Tensor,
    layout: Layout,
    *,
    m: int,
    magnitude: bool,
    every: int,
) -> None:
    """The kernel's twin in plain PyTorch, which reads the ticket."""
    ticket, there = records.ticket, slice(layout.rows)
    on, paused, calls, made = ticket[:ARRIVED].tolist()
    if on:
        counts, slot = records.counts[there], made % len(records.ring)
        for total in range(layout.totals):
            torch.sum(counts[layout.members(total)], 0, out=counts[total])
        factors = factors[there]
        table = summary.summarize_plainly(counts, factors, q, thresholds, m, magnitude=magnitude)
        records.ring[slot, there] = table
        records.scale[there] = factors
        records.last[there] = counts
        counts.zero_()
        ticket[HEAD + slot] = calls
        ticket[MADE] = made + 1
    ticket[CALLS] = calls + 1
    ticket[ON] = (calls + 1) % every == 0 and not paused
