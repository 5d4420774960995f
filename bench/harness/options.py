"""Command-line options of the benchmarks, checked before anything is timed."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

DTYPES = ("float32", "bfloat16", "float16", "float64")
MODES = ("eager", "compile", "graph")
EXPONENTS = tuple(map(str, range(4, 41)))


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("sigscale benchmarks")
    group.addoption(
        "--dtypes", type=some_of(DTYPES), default=DTYPES[:2], help="float32,bfloat16; also others"
    )
    sizes = "log2 of the numbers of elements, such as 10,14,20; by default those of the device"
    group.addoption("--exponents", type=some_of(EXPONENTS), default=(), help=sizes)
    group.addoption("--seconds", type=seconds, default=0.15, help="of interleaved rounds per case (0.15)")
    modes = "eager,compile,graph; without compile, torch.compile takes no part in activations either"
    group.addoption("--modes", type=some_of(MODES), default=(), help=modes)
    group.addoption("--out", type=file_to_write, help="file for results, one JSON object per line")
    group.addoption("--commit", default="", help="the measured commit, where there is no git to ask")


@dataclass(frozen=True)
class Settings:
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    exponents: tuple[int, ...]  # as given; empty: each benchmark's own
    seconds: float
    modes: tuple[str, ...]  # as given

    @property
    def compiles(self) -> bool:
        """Whether torch.compile takes part."""
        return not self.modes or "compile" in self.modes

    def sizes(self, default: Mapping[str, Sequence[int]]) -> Sequence[int]:
        """The exponents given, or a benchmark's own for the kind of device."""
        return self.exponents or default[self.device.type]


def settings(config: pytest.Config) -> Settings:
    return Settings(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        tuple(getattr(torch, name) for name in config.getoption("--dtypes")),
        tuple(map(int, config.getoption("--exponents"))),
        config.getoption("--seconds"),
        config.getoption("--modes"),
    )


def some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """The type of an option that takes names, separated by commas."""

    def names(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(","))
        if not {*found} <= {*choices}:
            raise ArgumentTypeError(
                f"{text!r}: must be one or more of {', '.join(choices)}, with commas between"
            )
        return found

    return names


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r}: must be a positive number of seconds, such as 0.15")
    return value


def file_to_write(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: must be a file in a folder that exists")
    return path
