"""What the examples share: options, files, the environment of a result, and the style of pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from sigscale._files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Any = {"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
STYLES = (
    *(("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v")),
    *(("#E69F00", "D"), ("#000000", "P"), ("#56B4E9", "X"), ("#7F7F7F", "*")),
)
"""Colors told apart by all kinds of color vision (Okabe and Ito's, and a grey), and markers."""
CAPTION: Any = {"loc": "left", "fontsize": 8.5, "color": "0.35"}


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options of `python -m examples.<name>`: --out, and those that are added."""
    result = argparse.ArgumentParser(
        prog=f"python -m examples.{name}",
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    result.add_argument("--out", type=Path, default=Path("runs", name), help="folder of the results")
    return result


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 1 on, such as 25")
    return int(text)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a positive number, such as 0.001")
    return number


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """A temporary neighbor to write to, which becomes `path` once it is whole and on the disk.

    An error leaves the old file as it was, and names `path` where the system names no file.
    """
    try:
        with atomic(path) as part:
            yield part
            with part.open("rb+") as file:
                os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise


def save_json(name: str, argv: Sequence[str], out: Path, content: Mapping[str, Any]) -> None:
    """Write `out`/`name`.json: the command, the environment and the content."""
    out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", f"examples.{name}", *argv])
    with durable(out / f"{name}.json") as part:
        part.write_text(json.dumps({"command": command, **environment(), **content}) + "\n", encoding="utf-8")


@contextmanager
def picture(stem: Path, title: str, size: tuple[float, float], *, warning: str = "") -> Iterator[Figure]:
    """A figure to draw on, written to `stem`.png and `stem`.svg; the same picture is the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": stem.name}):
        figure = Figure(figsize=size, layout="constrained")
        symbols = re.sub(r"(?<!\\)\balpha\b", r"$\\alpha$", title)
        lines = f"{warning}\n{symbols}" if warning else symbols
        color = "#B00020" if warning else "black"
        figure.suptitle(lines, x=0.01, ha="left", fontsize=10.5, color=color)
        yield figure
        for path, about in ((stem.with_suffix(".png"), None), (stem.with_suffix(".svg"), {"Date": None})):
            with durable(path) as part:
                figure.savefig(part, format=path.suffix[1:], dpi=160, metadata=about)


def draw_losses(axes: Axes, losses: Mapping[str, Sequence[float]], window: int) -> None:
    """A curve of rolling means over `window` steps for each label."""
    for (label, values), (color, _) in zip(losses.items(), STYLES, strict=False):
        axes.plot(pd.Series(values).rolling(window, min_periods=1).mean(), color=color, label=label)
    axes.set(xlabel="step", ylabel=f"training loss, mean of {window} steps")
    axes.legend(frameon=False)


def environment() -> dict[str, Any]:
    """What a result was computed with."""
    packages = ("torch", "sigscale", "numpy")
    return {
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in packages}},
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@cache
def commit() -> str | None:
    """The commit of this checkout, followed by "-dirty" if files were changed since."""
    git = ["git", "-C", os.fspath(Path(__file__).parent)]
    describe = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
