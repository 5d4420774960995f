"""Options, provenance and the summary of `pytest bench --benchmark-only`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench import report
from bench.harness import options
from bench.harness.options import settings
from bench.harness.timing import Bench
from bench.report.tables import losses, text_tables

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
OUT = pytest.StashKey[IO[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    options.add(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RECORDS] = []
    if path := config.getoption("--out"):
        config.stash[OUT] = path.open("w", encoding="utf-8")
        words = ["pytest", *map(str, config.invocation_params.args)]
        about = report.provenance(settings(config).device, words, config.getoption("--commit"))
        _write(config, {"provenance": about})


def pytest_unconfigure(config: pytest.Config) -> None:
    if OUT in config.stash:
        config.stash[OUT].close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(max_time=0.02))  # of pytest-benchmark's own rounds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    try:
        return (yield)
    except torch.OutOfMemoryError as error:
        pytest.skip(str(error).split("\n")[0])


def _write(config: pytest.Config, line: dict[str, Any]) -> None:
    """At once, so that being cut off loses nothing."""
    if OUT in config.stash:
        config.stash[OUT].write(json.dumps(line) + "\n")
        config.stash[OUT].flush()


@pytest.fixture
def bench(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Bench:
    """What a benchmark is given; its results go to the summary and `--out`."""

    def record(**result: Any) -> None:
        pytestconfig.stash[RECORDS].append(result)
        _write(pytestconfig, result)

    given = settings(pytestconfig)
    return Bench(benchmark, given.device, given.seconds, record)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records = config.stash[RECORDS]
    for title, text in text_tables(records):
        terminalreporter.section(title)
        terminalreporter.write_line(text)
    if records:
        terminalreporter.write_line(losses(records))
