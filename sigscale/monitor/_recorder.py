"""The device side of a monitor: counts for all tracked tensors, and a ring of their summaries.

Which step is measured, and which slot of the ring it goes to, is decided on the device, see `kernels.record`,
so that CUDA graphs and compiled code serve every step: the host learns from the ticket what the ring holds.
Every half round the ring is copied to the host, behind the work queued so far and without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..kernels import device as devices
from ..kernels import record, summary
from ..kernels.record import Records, Wanted
from ..kernels.reference_sketch import bin_count
from ..kernels.sketch import count_many
from ._rows import Rows
from .history import Array, Record


class Statistics(NamedTuple):
    """The statistics recorded for each row."""

    quantiles: tuple[float, ...]
    thresholds: tuple[float, ...]
    magnitude: bool
    mantissa_bits: int

    @property
    def columns(self) -> int:
        return len(summary.STATISTICS) + len(self.quantiles) + len(self.thresholds)


class Copy(NamedTuple):
    """A copy of ring and ticket on its way to the host."""

    ring: Tensor
    ticket: Tensor


class Recorder:
    """Records on `device` for rows, to which others may be added; the ring holds `slots` steps.

    The host keeps account of the steps as well, and skips what the device would; after the capture of a CUDA
    graph, whose replays it does not see, it skips nothing.
    """

    def __init__(
        self, device: torch.device, statistics: Statistics, rows: Rows, slots: int, every: int = 1
    ) -> None:
        self.device, self.statistics, self.rows = device, statistics, rows
        self.slots, self.every = slots, every
        self.arrived: list[Record] = []  # on the host
        self.lost = 0  # steps that were overwritten before they were copied
        self.captured = False  # whether a CUDA graph counts or records here
        self.taken = 0  # steps that the host has, or has lost
        self.calls, self.newest = 0, -1  # steps made, and the last one measured, as far as the host knows
        self._is_due = self._is_paused = False
        self._since_copy = 0
        self._in_flight: devices.InFlight[Copy] = devices.InFlight(device)
        self._spare: list[Copy] = []
        self.records: Records = self._allocated(len(rows))
        q, thresholds = (summary.on_device(n, device) for n in (statistics.quantiles, statistics.thresholds))
        self._wanted = Wanted(q, thresholds, statistics.mantissa_bits, statistics.magnitude, every)
        self.finish(self.records, None)  # whatever is compiled or copied to the device once, is now
        self.go_on(0)

    def load(self, dtypes: Iterable[torch.dtype]) -> None:
        """Load the kernels that count gradients of these types now; loading fails during graph capture."""
        if devices.is_gpu(self.device):
            counts, m = self.records.counts, self.statistics.mantissa_bits
            for dtype in dtypes:
                two = torch.zeros(2, dtype=dtype, device=self.device)
                count_many(counts, [0, 0], [two, two[1:]], m)  # aligned or not
            counts.zero_()

    def grow(self, names: Sequence[str]) -> None:
        """Add rows for parameters, keeping counts and records."""
        if self.captured or self.capturing:
            raise RuntimeError(
                "parameters were added to the model after a CUDA graph was captured, which has no room for "
                "their rows: make a new monitor and capture the graph again"
            )
        rows, room = len(self.rows) + len(names), len(self.records.counts)
        if rows > room:
            self.records = self._allocated(max(rows, 2 * room), self.records)
        self.rows.add(names)

    @property
    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured, so the device computes nothing now."""
        return devices.is_capturing(self.device)

    def is_idle(self) -> bool:
        """Whether the host knows that the step in progress is not measured."""
        return not (self._is_due or self.captured or self.capturing)

    def discard(self) -> None:
        """Forget what the step in progress has counted."""
        self.records.counts.zero_()

    def pause(self) -> None:
        """Measure no step, from the one in progress on."""
        self.discard()
        self.records.ticket[record.ON].zero_()
        self.records.ticket[record.PAUSED].fill_(1)
        self._is_paused, self._is_due = True, False

    def resume(self) -> None:
        """End a pause."""
        ticket = self.records.ticket
        ticket[record.PAUSED].zero_()
        ticket[record.ON].copy_(ticket[record.CALLS] % self.every == 0)
        self._is_paused, self._is_due = False, self.calls % self.every == 0

    def go_on(self, calls: int) -> None:
        """Continue after so many steps."""
        self.calls, self.newest = calls, -1
        self.records.ticket[record.CALLS].fill_(calls)
        self.resume()

    def count(self, records: Records, gradients: Mapping[int, Tensor]) -> None:
        """Add each gradient to its row of the counts, if the step is measured."""
        m = self.statistics.mantissa_bits
        count_many(records.counts, [*gradients], [*gradients.values()], m, records.ticket)

    def finish(self, records: Records, factors: Tensor | None) -> None:
        """End a step: summarize counts of values times factors (rows,) into the ring, if it is measured."""
        factors = records.scale if factors is None else factors.contiguous()
        record.finish(records, factors, self.rows.layout, self._wanted)
        if self.capturing:
            self.captured = True
            return
        measured = self._is_due or self.captured
        if measured:
            self.newest = self.calls
        self.calls += 1
        self._is_due = self.calls % self.every == 0 and not self._is_paused
        self._since_copy += measured
        if 2 * self._since_copy >= self.slots:
            self._send(records)

    def take(self, *, wait: bool = False) -> None:
        """Put what has reached the host to the records; all there is, if it may `wait` for the device."""
        if wait and (self._since_copy or self.captured):
            self._send(self.records)
        for copy in self._in_flight.landed(wait=wait):
            self._keep(copy.ring.numpy(), copy.ticket.numpy())
            if copy.ring.shape == self.records.ring.shape:
                self._spare.append(copy)

    def shares_below(self, threshold: float) -> list[float]:
        """The share of each row's magnitudes below a threshold, in the last step measured; waits."""
        there = slice(len(self.rows))
        values = summary.distribution(self.records.last[there], self.statistics.mantissa_bits, magnitude=True)
        thresholds = summary.on_device((threshold,), self.device) * self.records.scale[there, None]
        shares: list[float] = summary.fraction_of_bins_below(values, thresholds)[:, 0].tolist()
        return shares

    def _send(self, records: Records) -> None:
        self._since_copy = 0
        copy = self._spare.pop() if self._spare else self._buffers(records)
        copy.ring.copy_(records.ring, non_blocking=True)
        copy.ticket.copy_(records.ticket, non_blocking=True)
        self._in_flight.add(copy)

    def _keep(self, ring: Array, ticket: npt.NDArray[np.int64]) -> None:
        """Put those steps to the records that the ring holds and the host has not yet."""
        made = int(ticket[record.MADE])
        if self.captured:
            self.calls = int(ticket[record.CALLS])
        first = max(self.taken, made - self.slots)
        self.lost += first - self.taken
        self.taken = made
        if first < made:
            slots = np.arange(first, made) % self.slots
            values = ring[slots]
            values[(values[:, :, 0] == 0) | np.isnan(values[:, :, 0])] = np.nan
            values[np.isnan(values)] = np.nan  # the same bits for each
            self.arrived.append((ticket[record.HEAD :][slots], values))

    def _buffers(self, records: Records) -> Copy:
        pinned = devices.is_gpu(self.device)
        ring, ticket = (
            torch.empty(there.shape, dtype=there.dtype, device="cpu", pin_memory=pinned)
            for there in (records.ring, records.ticket)
        )
        return Copy(ring, ticket)

    @torch.inference_mode(False)
    def _allocated(self, rows: int, old: Records | None = None) -> Records:
        """Records with room for so many rows, and what was in the old ones."""
        bins, columns = bin_count(self.statistics.mantissa_bits), self.statistics.columns
        counts = torch.zeros(rows, bins, dtype=torch.int64, device=self.device)
        scale = torch.ones(rows, dtype=torch.float64, device=self.device)
        ring = torch.full((self.slots, rows, columns), torch.nan, dtype=torch.float64, device=self.device)
        ticket = torch.zeros(record.HEAD + self.slots, dtype=torch.int64, device=self.device)
        new = Records(counts, torch.zeros_like(counts), scale, ring, ticket if old is None else old.ticket)
        if old is not None:
            there = slice(len(old.counts))
            for mine, its in zip(new[:3], old[:3], strict=True):
                mine[there] = its
            ring[:, there] = old.ring
        self._spare = [self._buffers(new), self._buffers(new)] if devices.is_gpu(self.device) else []
        return new
