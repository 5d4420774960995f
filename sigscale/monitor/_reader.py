"""The host side of a monitor: its records by step and by name, and the last step as text."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Sequence

from .._checks import warn
from ..kernels import summary
from ..sketch import QuantileSketch
from . import _options as options
from ._loss_scale import unscaled
from ._options import Alarm
from ._recorder import Recorder
from ._rows import Rows
from .history import GradientHistory, Record, assembled, quantile_name


class Reader:
    """Reads a recorder."""

    def __init__(self, recorder: Recorder, rows: Rows, alarm: Alarm | None) -> None:
        self.recorder, self.rows, self.alarm = recorder, rows, alarm
        self.earlier: GradientHistory | None = None
        self._looked = self._lost = 0

    def look(self, *, wait: bool) -> None:
        """Take what has reached the host, and tell what there is to tell."""
        recorder = self.recorder
        recorder.take(wait=wait)
        if recorder.lost > self._lost:
            lost, self._lost = recorder.lost - self._lost, recorder.lost
            warn(
                f"{lost} steps were measured, and overwritten before they were read: the history lacks "
                f"them. The ring holds {recorder.slots} steps: use a larger ring=, or call history() after "
                "at most that many replays of a CUDA graph",
                RuntimeWarning,
            )
        if self.alarm is None:
            return
        statistics, single = recorder.statistics, self.rows.single
        column = len(summary.STATISTICS) + len(statistics.quantiles)
        column += statistics.thresholds.index(self.alarm.below)
        for numbers, values in recorder.arrived[self._looked :]:
            self._looked += 1
            for number, shares in zip(numbers.tolist(), values[:, single, column], strict=True):
                layers = self.rows.names[single][: len(shares)]  # those that had rows at the time
                self.alarm.look(number, layers, shares)

    def history(self) -> GradientHistory:
        """All records."""
        self.look(wait=True)
        recorded = self._assembled(self.recorder.arrived)
        return recorded if self.earlier is None else self.earlier.followed_by(recorded)

    def arrived(self, since: int) -> GradientHistory:
        """The records from step `since` on that have reached the host, without those of a loaded history."""
        if not self.recorder.capturing:
            self.look(wait=False)
        records = self.recorder.arrived
        start = bisect_left(records, since, key=lambda record: record[0][-1])
        found = self._assembled(records[start:])
        new = found.steps >= since
        return dataclasses.replace(found, steps=found.steps[new], values=found.values[new])

    def last(self) -> GradientHistory:
        """The last step that was recorded, if any."""
        self.look(wait=True)
        records = self.recorder.arrived[-1:]
        newest = self._assembled(records) if records or self.earlier is None else self.earlier
        steps, values = newest.steps[-1:], newest.values[-1:]
        return dataclasses.replace(newest, steps=steps, values=values, step_count=self.recorder.calls)

    def _assembled(self, records: Sequence[Record]) -> GradientHistory:
        recorder, rows, statistics = self.recorder, self.rows, self.recorder.statistics
        numbers, values = assembled(records, len(rows), statistics.columns)
        return GradientHistory(
            numbers,
            [*rows.names],
            [*rows.kinds],
            statistics.quantiles,
            statistics.thresholds,
            values,
            statistics.magnitude,
            statistics.mantissa_bits,
            recorder.calls,
        )

    def resume(self, earlier: GradientHistory) -> None:
        """Continue a history."""
        layers = self.rows.names[self.rows.single]
        if not set(layers) & set(earlier.names):
            raise ValueError(
                f"the history must be of this model; got one of {', '.join(earlier.names[:4])}, ..., and the "
                f"model has {', '.join(layers[:4])}, ...: load the file of the same training"
            )
        earlier.followed_by(self.history())
        self.earlier = earlier
        self.recorder.go_on(earlier.step_count)

    def vanishing(self, below: float) -> dict[str, float]:
        threshold = options.check_threshold(below, "below")
        self._check_measured()
        shares = self.recorder.shares_below(threshold)
        layers = self.rows.single
        return dict(zip(self.rows.names[layers], shares[layers], strict=True))

    def sketch(self, name: str) -> QuantileSketch:
        row = self.rows.of.get(name)
        if row is None:
            raise ValueError(
                f"name must be one of {', '.join(self.rows.names)}; got {name!r}: "
                "choose a row of history().names"
            )
        self._check_measured()
        scale = self.recorder.records.scale[row].item()
        if math.isnan(scale):
            raise RuntimeError(
                f"the scaler skipped the last step, or changed its scale within it, which left {name!r} "
                "without a known scale: call monitor.step() before scaler.step(optimizer)"
            )
        bits = self.recorder.statistics.mantissa_bits
        sketch = QuantileSketch(bits)
        counts = unscaled(self.recorder.records.last[row], scale, bits)
        sketch.load_state_dict({"mantissa_bits": bits, "counts": counts})
        return sketch

    def _check_measured(self) -> None:
        self.look(wait=True)
        if not self.recorder.taken:
            raise RuntimeError("no step has been measured yet: call monitor.step() after loss.backward()")


def last_step(history: GradientHistory) -> str:
    """A table of the last measured step, one line per row."""
    if not len(history):
        return "no step has been measured yet"
    low, high = min(history.quantiles), max(history.quantiles)
    middle = min(history.quantiles, key=lambda q: abs(q - 0.5))
    quantiles = [*dict.fromkeys((low, middle, high))]
    shares = [("zeros", history["zeros"][-1] / history["count"][-1])]
    shares += [(f"<{threshold:g}", history.below(threshold)[-1]) for threshold in history.thresholds]
    of = "|g|" if history.magnitude else "g"
    titles = ["name", "kind", "count", *(name for name, _ in shares)]
    titles += [f"{of} {'median' if q == 0.5 else quantile_name(q)}" for q in quantiles]
    lines = [titles]
    for row, (name, kind) in enumerate(zip(history.names, history.kinds, strict=True)):
        numbers = [f"{history.count[-1, row]:,}", *(_percent(share[row]) for _, share in shares)]
        numbers += [_number(history.quantile(q)[-1, row]) for q in quantiles]
        lines.append([name, kind, *numbers])
    text = _aligned(lines)
    broken = (history["infs"][-1] + history["nans"][-1] > 0).nonzero()[0]
    if len(broken):
        text.append(f"infinite or NaN coordinates in: {', '.join(history.names[row] for row in broken)}")
    return "\n".join([f"gradients at step {history.steps[-1]}", *text])


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return [text[0], "-" * max(map(len, text)), *text[1:]]


def _percent(share: float) -> str:
    if math.isnan(share):
        return "-"
    return f"{100 * share:.1f} %" if share in (0, 1) or 0.0005 <= share < 0.9995 else f"{100 * share:.3g} %"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2e}"
