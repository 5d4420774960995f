"""The records of a `GradientMonitor`: `GradientHistory`, arrays on the host that need only NumPy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from .._files import atomic

Array = npt.NDArray[np.float64]
Record = tuple[npt.NDArray[np.int64], Array]  # numbers of steps, and their values

FORMAT = 2  # of the files; those without a number are of format 1, with the same arrays
COUNTS = ("count", "zeros", "infs", "nans")
KINDS = ("total", "activation", "parameter")


@dataclass(frozen=True, eq=False, repr=False)
class GradientHistory:
    """Statistics of gradients: C numbers for each of S measured steps and R rows, one row per tensor.

    `history["mean"]`, `history.quantile(0.5)` and `history.below(1e-8)` are arrays (S, R); `table()` has one
    line per step and row. Quantiles and mean are in units of the gradient G; `magnitude` says whether they
    describe |G|.

    Args:
        steps: (S,) int64, ascending: the steps that were measured, the first step of a training being 0.
        names: names of the rows, as in the model.
        kinds: kind of each row: "activation", "parameter", or "total" for the whole network.
        quantiles: the recorded ones, from 0 to 1.
        thresholds: those whose shares below were recorded, in units of G, rounded up to edges of bins, see
            `GradientMonitor`.
        values: (S, R, C) float64 in the order of `columns`; NaN where a row had no gradient.
        magnitude: whether mean and quantiles are those of |G|; shares below a threshold always are.
        mantissa_bits: resolution of the sketches: a quantile is off by a factor of at most
            1 + 2^-mantissa_bits, a mean by at most 2^-(mantissa_bits + 1) of the mean of |G|.
        step_count: steps made, measured or not.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), ss.nn.Tanh())
        >>> with ss.GradientMonitor(model) as monitor:
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     monitor.step()
        >>> history = monitor.history()
        >>> history.names
        ['all activations', 'all parameters', '1', '0.weight', '0.bias']
        >>> history.count
        array([[2, 6, 2, 4, 2]])
        >>> history.quantile(0.5).shape
        (1, 5)
    """

    steps: npt.NDArray[np.int64]
    names: list[str]
    kinds: list[str]
    quantiles: tuple[float, ...]
    thresholds: tuple[float, ...]
    values: Array
    magnitude: bool = True
    mantissa_bits: int = 3
    step_count: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the statistics: count, zeros, infs, nans, mean, q05 ..., below_1e-08 ..."""
        return (*COUNTS, "mean", *map(quantile_name, self.quantiles), *map(threshold_name, self.thresholds))

    @property
    def count(self) -> npt.NDArray[np.int64]:
        """The number of coordinates of each gradient, (S, R); 0 where there was none."""
        return np.nan_to_num(self.get("count")).astype(np.int64)

    def get(self, statistic: str) -> Array:
        """One of `columns`, (S, R)."""
        if statistic not in self.columns:
            raise KeyError(f"no statistic {statistic!r}: choose one of {', '.join(self.columns)}")
        return self.values[:, :, self.columns.index(statistic)]

    __getitem__ = get

    def quantile(self, q: float) -> Array:
        """The quantile q of each gradient, (S, R)."""
        if q not in self.quantiles:
            raise ValueError(
                f"the quantile {q!r} was not recorded, only {', '.join(map(str, self.quantiles))}: "
                "name it in GradientMonitor(model, quantiles=...)"
            )
        return self.get(quantile_name(q))

    def below(self, threshold: float) -> Array:
        """The share of the coordinates below a threshold, rounded up to an edge of bins, (S, R)."""
        if threshold not in self.thresholds:
            raise ValueError(
                f"the share below {threshold!r} was not recorded, only below "
                f"{', '.join(map(str, self.thresholds)) or 'none'}: "
                "name it in GradientMonitor(model, thresholds=...)"
            )
        return self.get(threshold_name(threshold))

    def table(self) -> dict[str, npt.NDArray[Any]]:
        """Columns of equal length, one line per step and row: `pandas.DataFrame(history.table())`.

        step, name, kind and `columns`; counts are int64, 0 where a row had no gradient.
        """
        steps, rows = len(self.steps), len(self.names)
        lines: dict[str, npt.NDArray[Any]] = {
            "step": np.repeat(self.steps, rows),
            "name": np.tile(np.array(self.names, dtype=str), steps),
            "kind": np.tile(np.array(self.kinds, dtype=str), steps),
        }
        for column in self.columns:
            values = self.get(column).ravel()
            lines[column] = np.nan_to_num(values).astype(np.int64) if column in COUNTS else values.copy()
        return lines

    def followed_by(self, later: GradientHistory) -> GradientHistory:
        """Both histories as one, rows matched by name; NaN where one of them lacks a row.

        Raises:
            ValueError: they hold different statistics, or `later` begins before this one ends.
        """
        for name in ("quantiles", "thresholds", "magnitude", "mantissa_bits"):
            mine, other = getattr(self, name), getattr(later, name)
            if mine != other:
                raise ValueError(
                    f"the histories have different {name}, {mine!r} and {other!r}: "
                    f"record both with the same {name}"
                )
        if len(self.steps) and len(later.steps) and self.steps[-1] >= later.steps[0]:
            raise ValueError(
                f"the history ends with step {self.steps[-1]}, the later one begins with step "
                f"{later.steps[0]}: put them the other way around"
            )
        known = set(later.names)
        rest = [row for row, name in enumerate(self.names) if name not in known]
        names = [*later.names, *(self.names[row] for row in rest)]
        kinds = [*later.kinds, *(self.kinds[row] for row in rest)]
        steps = np.concatenate([self.steps, later.steps])
        values = np.full((len(steps), len(names), len(self.columns)), np.nan)
        place = {name: row for row, name in enumerate(names)}
        values[: len(self.steps), [place[name] for name in self.names]] = self.values
        values[len(self.steps) :, : len(later.names)] = later.values
        settings = (self.quantiles, self.thresholds, values, self.magnitude, self.mantissa_bits)
        return GradientHistory(steps, names, kinds, *settings, later.step_count)

    def save(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write a NumPy archive (.npz) to a path, where it is whole or not there, or to an open file."""
        if isinstance(path, (str, os.PathLike)):
            with atomic(Path(path)) as part, part.open("wb") as file:
                self.save(file)
            return
        arrays: dict[str, Any] = {
            "format": np.array(FORMAT),
            "steps": self.steps,
            "names": np.array(self.names, dtype=str),
            "kinds": np.array(self.kinds, dtype=str),
            "quantiles": np.array(self.quantiles, dtype=np.float64),
            "thresholds": np.array(self.thresholds, dtype=np.float64),
            "values": self.values,
            "magnitude": np.array(self.magnitude),
            "mantissa_bits": np.array(self.mantissa_bits),
            "step_count": np.array(self.step_count),
        }
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | IO[bytes]) -> GradientHistory:
        """Read what `save` wrote, also in an earlier version.

        Raises:
            ValueError: the file is something else, or of a newer format.
        """
        what = repr(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else "the state"
        rule = f"{what} is no gradient history"
        remedy = (
            "give a file that GradientHistory.save() or GradientMonitor.save() wrote, or the result of "
            "GradientMonitor.state_dict()"
        )
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[name] for name in archive.files}
            version = int(found.pop("format", 1))
            if version > FORMAT:
                rule = f"{what} is of a newer format"
                remedy = "read it with the version of sigscale that wrote it, or a later one"
                raise ValueError(f"{version}, of at most {FORMAT}")
            lists = {name: found[name].tolist() for name in ("names", "kinds")}
            tuples = {name: tuple(found[name].tolist()) for name in ("quantiles", "thresholds")}
            scalars = {name: found[name].item() for name in ("magnitude", "mantissa_bits", "step_count")}
            history = cls(**{**found, **lists, **tuples, **scalars})
            shape = len(history.steps), len(history.names), len(history.columns)
            if history.values.shape != shape or len(history.kinds) != shape[1]:
                raise ValueError(f"values of shape {history.values.shape}, {len(history.kinds)} kinds")
        except OSError:
            raise
        except Exception as error:
            raise ValueError(f"{rule} ({error}): {remedy}") from error
        return history

    def __getstate__(self) -> dict[str, Any]:
        """Arrays as tensors, which torch.load(weights_only=True) takes."""
        return {**vars(self), **{name: torch.from_numpy(getattr(self, name)) for name in ("steps", "values")}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        arrays = {name: np.asarray(state[name]) for name in ("steps", "values")}
        vars(self).update({**state, **arrays})

    def __len__(self) -> int:
        return len(self.steps)

    def __repr__(self) -> str:
        span = f", {self.steps[0]} to {self.steps[-1]}" if len(self.steps) else ""
        return f"GradientHistory({len(self.steps)} steps{span}; {len(self.names)} rows)"


torch.serialization.add_safe_globals([GradientHistory])


def quantile_name(q: float) -> str:
    """0.05 -> q05, 0.5 -> q50, 0.999 -> q99.9."""
    percent = f"{100 * q:.10g}"
    return "q" + percent.zfill(2 if "." not in percent else 3 + len(percent.split(".")[1]))


def threshold_name(threshold: float) -> str:
    """1e-8 -> below_1e-08."""
    short = f"{threshold:g}"
    return "below_" + (short if float(short) == threshold else repr(threshold))


def assembled(records: Sequence[Record], rows: int, columns: int) -> Record:
    """Numbers (n,) and values (n, rows at that time, columns) of records as one array each."""
    numbers = [number for number, _ in records]
    values = np.full((sum(map(len, numbers)), rows, columns), np.nan)
    start = 0
    for number, chunk in records:
        kept = min(rows, chunk.shape[1])
        values[start : start + len(number), :kept] = chunk[:, :kept]
        start += len(number)
    return np.concatenate([np.empty(0, np.int64), *numbers]), values
