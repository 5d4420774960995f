"""The device side of a monitor: counts for all tracked tensors, and a ring of their summaries.

    counts      (rows, bins) int64      of the step in progress: totals, then activations, then parameters
    last        (rows, bins) int64      of the last step measured
    scale       (rows,) float64         what the values of the last step were multiplied by
    ring        (slots, rows, columns)  summaries of the last steps measured
    made        (1,) int64              how many steps were measured

A step writes the slot `made` modulo the number of slots. That position is computed on the device, so that a
CUDA graph replays it: the host learns from `made` what the ring holds. Every half round the ring is copied to
the host, behind the work queued so far and without waiting for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..kernels import device as devices
from ..kernels import summary
from ..kernels.reference_sketch import bin_count
from ..kernels.sketch import count_many
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
    """A copy of ring and `made` on its way to the host."""

    ring: Tensor
    made: Tensor
    arrived: torch.Event | None


class Recorder:
    """Counts and ring on `device`, for `rows` rows and more later; the ring holds `slots` steps."""

    def __init__(self, device: torch.device, statistics: Statistics, rows: int, slots: int) -> None:
        self.device, self.statistics, self.rows, self.slots = device, statistics, 0, slots
        with torch.inference_mode(False):
            self.made = torch.zeros(1, dtype=torch.int64, device=device)
        self.records: list[Record] = []  # on the host
        self.lost = 0  # steps that were overwritten before they were copied
        self.captured = False
        self.taken = 0  # steps that the host has, or has lost
        self._since_copy = 0
        self._under_way: deque[Copy] = deque()
        self._spare: list[Copy] = []
        self.counts = self.last = self.scale = self.ring = torch.empty(0)
        self._allocate(rows)
        self.rows = rows
        self._q = summary.on_device(statistics.quantiles, device)
        self._thresholds = summary.on_device(statistics.thresholds, device)
        self._summaries()  # whatever is compiled or copied to the device once, is now

    def load(self, dtypes: Iterable[torch.dtype]) -> None:
        """Load the kernels that count gradients of these types now; loading fails during graph capture."""
        if devices.is_gpu(self.device):
            for dtype in dtypes:
                two = torch.zeros(2, dtype=dtype, device=self.device)
                aligned_or_not = [two, two[1:]]
                count_many(self.counts, [0, 0], aligned_or_not, self.statistics.mantissa_bits)
            self.counts.zero_()

    def grow(self, rows: int) -> None:
        """Make room for new rows, keeping counts and records."""
        if self.captured or self.capturing:
            raise RuntimeError(
                "parameters were added to the model after a CUDA graph was captured, which has no room for "
                "their rows: make a new monitor and capture the graph again"
            )
        if rows > len(self.counts):
            self._allocate(max(rows, 2 * len(self.counts)))
        self.rows = rows

    def note_capture(self, every: int) -> None:
        """Note that a CUDA graph that counts here is being captured; RuntimeError unless every=1."""
        if every > 1:
            raise RuntimeError(
                f"a CUDA graph repeats one step, and every={every} would measure all or none of its "
                "replays: make the monitor with every=1 to capture a step with it"
            )
        self.captured = True

    def record(self, scale: Tensor | None) -> None:
        """End a step: summarize the counts of values times scale (rows,) into the ring, and clear them."""
        rows = self.rows
        if scale is not None:
            self.scale[:rows].copy_(scale)
        slot = self.made.remainder(self.slots)
        self.ring[:, :rows].index_copy_(0, slot, self._summaries().unsqueeze(0))
        self.made.add_(1)
        self.last[:rows].copy_(self.counts[:rows])
        self.counts[:rows].zero_()
        if self.capturing:
            return
        self._since_copy += 1
        if 2 * self._since_copy >= self.slots:
            self._send()

    @property
    def capturing(self) -> bool:
        """Whether a CUDA graph is being captured, so the device computes nothing now."""
        return devices.is_capturing(self.device)

    def take(self, *, wait: bool = False) -> None:
        """Put what has reached the host to the records; all there is, if it may `wait` for the device."""
        if wait and (self._since_copy or self.captured):
            self._send()
        while self._under_way:
            copy = self._under_way[0]
            if copy.arrived is not None and not copy.arrived.query():
                if not wait:
                    return
                copy.arrived.synchronize()
            self._keep(copy.ring.numpy(), int(copy.made.numpy()[0]))
            self._under_way.popleft()
            if copy.ring.shape == self.ring.shape:
                self._spare.append(copy)

    def shares_below(self, threshold: float) -> list[float]:
        """The share of each row's magnitudes below a threshold, in the last step measured; waits."""
        m, rows = self.statistics.mantissa_bits, self.rows
        values = summary.distribution(self.last[:rows], m, magnitude=True)
        thresholds = summary.on_device((threshold,), self.device) * self.scale[:rows, None]
        shares: list[float] = summary.fraction_of_bins_below(values, thresholds)[:, 0].tolist()
        return shares

    def _summaries(self) -> Tensor:
        """(rows, columns) of the counts."""
        counts, scale, m = self.counts[: self.rows], self.scale[: self.rows], self.statistics.mantissa_bits
        if self.statistics.magnitude:
            return summary.summarize(counts, scale, self._q, self._thresholds, m, magnitude=True)
        # Shares below a threshold are of magnitudes all the same.
        none = self._q[:0]
        signed = summary.summarize(counts, scale, self._q, none, m, magnitude=False)
        shares = summary.summarize(counts, scale, none, self._thresholds, m, magnitude=True)
        return torch.cat([signed, shares[:, len(summary.STATISTICS) :]], 1)

    def _send(self) -> None:
        self._since_copy = 0
        copy = self._spare.pop() if self._spare else self._buffers()
        copy.ring.copy_(self.ring, non_blocking=True)
        copy.made.copy_(self.made, non_blocking=True)
        devices.mark(copy.arrived, self.device)
        self._under_way.append(copy)

    def _keep(self, ring: Array, made: int) -> None:
        """Put those steps to the records that the ring holds, of `made` in all, and the host has not yet."""
        first = max(self.taken, made - self.slots)
        self.lost += first - self.taken
        self.taken = made
        if first < made:
            numbers = np.arange(first, made, dtype=np.int64)
            values = ring[numbers % self.slots]
            values[(values[:, :, 0] == 0) | np.isnan(values[:, :, 0])] = np.nan
            values[np.isnan(values)] = np.nan  # the same bits for each
            self.records.append((numbers, values))

    def _buffers(self) -> Copy:
        pinned = devices.is_gpu(self.device)
        ring = torch.empty(self.ring.shape, dtype=self.ring.dtype, device="cpu", pin_memory=pinned)
        made = torch.empty(1, dtype=torch.int64, device="cpu", pin_memory=pinned)
        return Copy(ring, made, devices.arrival(self.device))

    @torch.inference_mode(False)
    def _allocate(self, rows: int) -> None:
        """Tensors for so many rows, with what was in those before."""
        bins, columns = bin_count(self.statistics.mantissa_bits), self.statistics.columns
        counts = torch.zeros(rows, bins, dtype=torch.int64, device=self.device)
        last = torch.zeros_like(counts)
        scale = torch.ones(rows, dtype=torch.float64, device=self.device)
        ring = torch.full((self.slots, rows, columns), torch.nan, dtype=torch.float64, device=self.device)
        old = self.rows
        if old:
            counts[:old].copy_(self.counts[:old])
            last[:old].copy_(self.last[:old])
            scale[:old].copy_(self.scale[:old])
            ring[:, :old].copy_(self.ring[:, :old])
        self.counts, self.last, self.scale, self.ring = counts, last, scale, ring
        self._spare = [self._buffers(), self._buffers()] if devices.is_gpu(self.device) else []
