"""The command line's options and what they select."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

Record = Callable[..., None]
DTYPES = ("float16", "bfloat16", "float32", "float64")
MODES = ("eager", "compile", "graph")
EXPONENTS = range(4, 41)


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("sigscale benchmarks")
    group.addoption("--device", type=device, help="cpu, cuda or cuda:N; by default cuda where there is one")
    group.addoption("--dtypes", type=dtypes, default=dtypes("float32,bfloat16"), help="also float16, float64")
    group.addoption(
        "--exponents",
        type=exponents,
        default=(),
        help="log2 of the numbers of elements, such as 10,14,20; default by device",
    )
    group.addoption("--seconds", type=seconds, default=0.15, help="of interleaved rounds a case")
    group.addoption(
        "--modes",
        type=modes,
        help="of Table 4: eager,compile,graph; by default no compile on a CPU or in a trial",
    )
    group.addoption(
        "--data",
        type=folder,
        help="CIFAR-10 for Table 4; by default what is in the cache, or random images",
    )
    group.addoption("--threads", type=count, help="for CPU tensors; by default one for each core")


@dataclass(frozen=True)
class Settings:
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    exponents: tuple[int, ...]  # those given; none: each benchmark's own
    seconds: float

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
    )


def device(text: str) -> torch.device:
    there = torch.cuda.device_count()
    if text == "cpu" or (text in ("cuda", *(f"cuda:{index}" for index in range(there))) and there):
        return torch.device(text)
    raise ArgumentTypeError(
        f"{text!r}: must be cpu, or cuda or cuda:N for one of the {there} GPUs PyTorch sees here; leave it "
        "out for the best there is"
    )


def dtypes(text: str) -> tuple[str, ...]:
    return _names(text, DTYPES)


def modes(text: str) -> str:
    return ",".join(_names(text, MODES))


def _names(text: str, of: Sequence[str]) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if any(name not in of for name in names):
        raise ArgumentTypeError(f"{text!r}: must be one of {', '.join(of)}, or several with commas between")
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
        raise ArgumentTypeError(f"{text!r}: must be a whole number from 1 on, such as 2")
    return int(text)


def folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ArgumentTypeError(f"{text!r}: is no folder; name one that exists")
    return Path(text)


def file_to_write(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: must be a file in a folder that exists")
    return path
