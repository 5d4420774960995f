"""A pytest plugin that makes sure which copy of the package is measured, the one in `--package-from DIR`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--package-from", metavar="DIR", type=Path, help="where the package must come from")


def pytest_sessionstart(session: pytest.Session) -> None:
    place = session.config.getoption("--package-from").resolve()
    for name in ("sigscale", "sigscale.kernels"):
        found = Path(str(import_module(name).__file__)).resolve()
        if place not in found.parents:
            raise pytest.UsageError(f"{name} comes from {found}, not from {place}")
