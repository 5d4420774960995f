"""The command line's options and what they select."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

Record = Callable[..., None]


def add(parser: pytest.Parser) -> None:
    group = parser.getgroup("sigscale benchmarks")
    group.addoption("--device", help="cpu or cuda; by default cuda where there is one")
    group.addoption("--dtypes", default="float32,bfloat16", help="also float16, float64")
    group.addoption(
        "--exponents", help="log2 of the numbers of elements, such as 10,14,20; default by device"
    )
    group.addoption("--seconds", type=float, default=0.15, help="of interleaved rounds a case")
    group.addoption(
        "--modes", help="of Table 4: eager,compile,graph; by default no compile on a CPU or in a trial"
    )
    group.addoption(
        "--data", type=Path, help="CIFAR-10 for Table 4; by default what is in the cache, or random images"
    )
    group.addoption("--threads", type=int, help="for CPU tensors; by default one for each core")


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
    device = torch.device(config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: there is no GPU here; leave it out to use the CPU")
    given, dtypes = config.getoption("--exponents"), config.getoption("--dtypes").split(",")
    if given and not all(e.isdecimal() for e in given.split(",")):
        raise pytest.UsageError(f"--exponents {given}: must be whole numbers such as 10,14,20")
    if unknown := set(dtypes) - {"float16", "bfloat16", "float32", "float64"}:
        raise pytest.UsageError(f"--dtypes {','.join(unknown)}: choose from float16,bfloat16,float32,float64")
    exponents = tuple(int(e) for e in given.split(",")) if given else ()
    return Settings(
        device, tuple(getattr(torch, name) for name in dtypes), exponents, config.getoption("--seconds")
    )
