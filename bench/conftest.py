"""Provenance and the summary of `pytest bench --benchmark-only`."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import codehash
import options
from options import Record, settings
from places import without_places
from tables import losses, text_tables

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
FILES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORDS] = []
    config.stash[FILES] = []
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_collection_finish(session: pytest.Session) -> None:
    root = codehash.ROOT
    files = {item.path.relative_to(root).as_posix() for item in session.items if root in item.path.parents}
    session.config.stash[FILES] = sorted(files)


@pytest.fixture
def record(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Record:
    """Keep a result for the summary and in the benchmark's JSON."""

    def keep(**result: Any) -> None:
        benchmark.extra_info.setdefault("results", []).append(result)
        pytestconfig.stash[RECORDS].append(result)

    return keep


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    arguments = without_places(config.invocation_params.args)
    files = config.stash[FILES]
    machine_info["code"] = codehash.record(files)
    machine_info["provenance"] = {
        "device": _device_name(settings(config).device, machine_info),
        "sigscale": _version("sigscale"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "command": " ".join(["pytest", *arguments]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _device_name(device: torch.device, machine_info: dict[str, Any]) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    processor = machine_info.get("cpu", {}).get("brand_raw", platform.machine())
    return f"{processor}, torch.get_num_threads() = {torch.get_num_threads()}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = config.stash[RECORDS]
    for title, lines in text_tables(records):
        terminalreporter.section(title)
        terminalreporter.write_line("\n".join(lines))
    if records:
        terminalreporter.write_line(losses(records))
