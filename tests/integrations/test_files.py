"""A file logger writes the monitor's history, each record once."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.integrations.files import FileLogger
from tests.oracles.logged import run_example, train


def read(path) -> pd.DataFrame:
    return pd.read_csv(path) if path.suffix == ".csv" else pd.DataFrame(map(json.loads, path.open()))


def assert_holds(path, history: ss.GradientHistory) -> None:
    want = pd.DataFrame(history.table())
    pd.testing.assert_frame_equal(read(path), want, check_dtype=False, rtol=1e-14)


@pytest.fixture(params=["csv", "jsonl"])
def path(request, tmp_path):
    return tmp_path / f"gradients.{request.param}"


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.works_with("CSV, JSON lines", "monitor")
def test_file_holds_the_history(path, every):
    history = train(partial(FileLogger, path=path), every=every)
    assert np.isnan(history["mean"]).any() == (every == 1)
    assert_holds(path, history)


def test_step_writes_what_has_arrived(path):
    model = nn.Linear(2, 1)
    monitor = ss.GradientMonitor(model, ring=6)
    log = FileLogger(monitor, path)
    counts = []
    for _ in range(7):
        model(torch.ones(1, 2)).sum().backward()
        monitor.step()
        log.step()
        counts.append(len(read(path)) // 3 if path.read_text().count("\n") > 1 else 0)
    assert counts == [0, 0, 3, 3, 3, 6, 6]
    log.close()
    log.close()
    assert_holds(path, monitor.history())
    monitor.close()


def test_resumed_training_repeats_no_line(path, tmp_path):
    model = nn.Linear(2, 1)

    def run(steps: int, *, resume: bool) -> ss.GradientHistory:
        with ss.GradientMonitor(model, ring=2) as monitor:
            if resume:
                monitor.load(tmp_path / "history.npz")
            with FileLogger(monitor, path) as log:
                for step in range(steps):
                    model.weight.grad = torch.full((1, 2), float(step + resume))
                    monitor.step()
                    log.step()
                    if step == 2:
                        monitor.save(tmp_path / "history.npz")
        return monitor.history()

    run(5, resume=False)
    path.write_text(path.read_text() + "4,half a li")
    assert_holds(path, run(4, resume=True))


def test_infinities(path):
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[torch.inf, 1.0]])
    with ss.GradientMonitor(model) as monitor, FileLogger(monitor, path):
        monitor.step()
    mean = read(path)["mean"].tolist()
    assert mean == ([np.inf] * 2 if path.suffix == ".csv" else [None] * 2)


def test_refusals(path, tmp_path):
    model = nn.Linear(2, 1)
    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(ValueError, match=r"path must end in .csv or .jsonl; got '.*\.txt': rename it"):
            FileLogger(monitor, path.with_suffix(".txt"))
        with pytest.raises(TypeError, match=r"takes a GradientMonitor; got Linear: make one with"):
            FileLogger(model, path)
        with FileLogger(monitor, path):
            monitor.step()
        monitor.save(tmp_path / "history.npz")
    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(FileExistsError, match="records of another training: choose another path, or"):
            FileLogger(monitor, path)
        monitor.load(tmp_path / "history.npz")
        path.write_text("step,name\n" if path.suffix == ".csv" else '{"step": 0, "name": "0.weight"}\n')
        with pytest.raises(ValueError, match=r"has the columns step, name; the monitor records step, "):
            FileLogger(monitor, path)


def test_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(FileLogger)


def test_only_rank_0_writes(path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    history = train(partial(FileLogger, path=path))
    assert len(history) == 7
    assert not path.exists()
