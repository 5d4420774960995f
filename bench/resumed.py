"""A pytest plugin that keeps what each test came to, so that a run that was killed can be gone on with.

    PYTHONPATH=bench pytest -p resumed --resumed FILE ...

appends one line of JSON a test to FILE: its outcome, seconds, what it printed, and a benchmark's results.
Tests that have passed according to FILE are not run again.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

Line = dict[str, Any]
PRINTED = 2000  # characters that are kept


def read(path: Path) -> dict[str, Line]:
    """The last line of each test; a line that was cut off counts for nothing."""
    lines: dict[str, Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        lines[line["test"]] = line
    return lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resumed", metavar="FILE", type=Path, help="keep outcomes there, and go on from them")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--resumed"):
        config.pluginmanager.register(Resumed(config.getoption("--resumed")))


class Resumed:
    def __init__(self, path: Path) -> None:
        self.path, self.passed_before = path, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append("")
        self.line: Line = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        passed = {test for test, line in read(self.path).items() if line["outcome"] == "passed"}
        done = [item for item in items if item.nodeid in passed]
        self.passed_before = len(done)
        if done:
            config.hook.pytest_deselected(items=done)
            items[:] = [item for item in items if item.nodeid not in passed]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.when == "setup":
            self.line = {"test": item.nodeid, "outcome": "passed", "seconds": 0.0}
        self.line["seconds"] = round(self.line["seconds"] + report.duration, 3)
        if report.outcome != "passed":
            self.line["outcome"] = report.outcome
        if report.when == "call":
            benchmark = getattr(item, "funcargs", {}).get("benchmark")
            self.line["results"] = benchmark.extra_info.get("results", []) if benchmark is not None else []
        if report.when == "teardown":
            self.line["printed"] = report.capstdout[-PRINTED:]
            self._append(json.dumps(self.line))
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.passed_before:
            session.exitstatus = pytest.ExitCode.OK

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
