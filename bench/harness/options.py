"""Command-line options of the benchmarks, checked before anything is timed."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

DTYPES = ("float16", "bfloat16", "float32", "float64")
MODES = ("eager", "compile", "graph")
EXPONENTS = range(4, 41)


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("sigscale benchmarks")
    group.addoption("--device", type=device, help="cpu, cuda or cuda:N; by default cuda if available")
    group.addoption("--dtypes", type=dtypes, default=dtypes("float32,bfloat16"), help="also float16, float64")
    group.addoption(
        "--exponents",
        type=exponents,
        default=(),
        help="log2 of the numbers of elements, such as 10,14,20; default by device",
    )
    group.addoption("--seconds", type=seconds, default=0.15, help="of interleaved rounds per case (0.15)")
    group.addoption(
        "--modes",
        type=modes,
        help="of Table 4: eager,compile,graph; by default no compile on a CPU or in a trial",
    )
    group.addoption("--without-compile", action="store_true", help="leave torch.compile of activations out")
    group.addoption("--data", type=folder, help="CIFAR-10 for Table 4; default: the cache, or random images")
    group.addoption("--threads", type=count, help="for CPU tensors; by default one per core")
    group.addoption("--out", type=file_to_write, help="file for results, one JSON object per line")
    group.addoption("--commit", default="", help="the measured commit, where there is no git to ask")


@dataclass(frozen=True)
class Settings:
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    exponents: tuple[int, ...]  # as given; empty: each benchmark's own
    seconds: float
    compiles: bool  # whether torch.compile takes part

    def sizes(self, default: Mapping[str, Sequence[int]]) -> Sequence[int]:
        """The exponents given, or a benchmark's own for the kind of device."""
        return self.exponents or default[self.device.type]


def settings(config: pytest.Config) -> Settings:
    """The options, with what depends on the device filled in."""
    default = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Settings(
        config.getoption("--device") or default,
        tuple(getattr(torch, name) for name in config.getoption("--dtypes")),
        config.getoption("--exponents"),
        config.getoption("--seconds"),
        not config.getoption("--without-compile"),
    )


def device(text: str) -> torch.device:
    available = torch.cuda.device_count()
    names = ("cpu", *(["cuda"] if available else []), *(f"cuda:{index}" for index in range(available)))
    if text not in names:
        raise ArgumentTypeError(f"{text!r}: must be one of {', '.join(names)}, the devices PyTorch sees here")
    return torch.device(text)


def dtypes(text: str) -> tuple[str, ...]:
    return _names(text, DTYPES)


def modes(text: str) -> tuple[str, ...]:
    return _names(text, MODES)


def _names(text: str, choices: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if any(name not in choices for name in names):
        raise ArgumentTypeError(f"{text!r}: must be one or more of {', '.join(choices)}, separated by commas")
    return names


def exponents(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) in EXPONENTS for part in parts):
        raise ArgumentTypeError(
            f"{text!r}: must be whole numbers from {EXPONENTS[0]} to {EXPONENTS[-1]}, such as 10,14,20"
        )
    return tuple(map(int, parts))


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text!r}: must be a positive number of seconds, such as 0.15")
    return value


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r}: must be a whole number >= 1, such as 2")
    return int(text)


def folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r}: is not a folder; name one that exists")
    return Path(text)


def file_to_write(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: must be a file in a folder that exists")
    return path
