"""A monitor's records as plain text, one line per step and row: `FileLogger`."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .._files import atomic
from ..monitor import GradientHistory, GradientMonitor
from ._logger import Logger


class FileLogger(Logger):
    """Writes CSV (.csv) or JSON lines (.jsonl), with the columns of `GradientHistory.table()`.

    NaN, of a row without a gradient, is empty in CSV; NaN and infinities are null in JSON. Make the logger
    after `monitor.load()`: a file of the same training is continued, without its lines of steps that the
    training repeats.

    Args:
        monitor: the monitor whose records are written.
        path: the file; its suffix is the format.

    Raises:
        ValueError: the suffix is neither .csv nor .jsonl, or the file has other columns.
        FileExistsError: the file is not empty, and the monitor continues no history.

    Example:
        >>> import torch, sigscale as ss
        >>> from sigscale.integrations.files import FileLogger
        >>> model = torch.nn.Linear(2, 1)
        >>> monitor = ss.GradientMonitor(model)
        >>> with FileLogger(monitor, "gradients.csv") as log:
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     monitor.step()
        ...     log.step()
        >>> print(open("gradients.csv").read()[:36])
        step,name,kind,count,zeros,infs,nans
    """

    def __init__(self, monitor: GradientMonitor, path: str | os.PathLike[str]) -> None:
        super().__init__(monitor)
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise ValueError(
                f"path must end in {' or '.join(FORMATS)}; got {os.fspath(path)!r}: "
                "rename it, for example to gradients.jsonl"
            )
        self._format = FORMATS[self.path.suffix]()
        newest = monitor.last()
        self._columns = [*newest.table()]
        if self.writes:
            self._begin(newest.step_count)

    def write(self, records: GradientHistory) -> None:
        columns = [column.tolist() for column in records.table().values()]
        with self.path.open("a", encoding="utf-8", newline="") as file:
            for values in zip(*columns, strict=True):
                file.write(self._format.line(self._columns, values))

    def _begin(self, first: int) -> None:
        """Leave the records of steps before the first one in the file."""
        text = self.path.read_text("utf-8") if self.path.exists() else ""
        if text and not first:
            raise FileExistsError(
                f"{os.fspath(self.path)!r} holds the records of another training: "
                "choose another path, or load the history that this training continues first"
            )
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        if lines and (columns := self._format.columns(lines[0])) != self._columns:
            raise ValueError(
                f"{os.fspath(self.path)!r} has the columns {', '.join(columns)}; the monitor records "
                f"{', '.join(self._columns)}: choose another path"
            )
        header = self._format.header(self._columns)
        kept = [line for line in lines[bool(header) :] if self._format.step(line) < first]
        with atomic(self.path) as part:
            part.write_text("".join([header, *kept]), "utf-8", newline="")


class Csv:
    """Comma-separated values with a header."""

    def header(self, columns: Iterable[str]) -> str:
        return self.line((), columns)

    def columns(self, line: str) -> list[str]:
        return next(csv.reader([line]))

    def line(self, columns: Iterable[str], values: Iterable[Any]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow("" if value != value else value for value in values)
        return text.getvalue()

    def step(self, line: str) -> int:
        return int(line.split(",", 1)[0])


class JsonLines:
    """A JSON object per line."""

    def header(self, columns: Iterable[str]) -> str:
        return ""

    def columns(self, line: str) -> list[str]:
        return [*json.loads(line)]

    def line(self, columns: Iterable[str], values: Iterable[Any]) -> str:
        finite = (None if isinstance(x, float) and not math.isfinite(x) else x for x in values)
        return json.dumps(dict(zip(columns, finite, strict=True))) + "\n"

    def step(self, line: str) -> int:
        return int(json.loads(line)["step"])


FORMATS: dict[str, type[Csv] | type[JsonLines]] = {".csv": Csv, ".jsonl": JsonLines}
