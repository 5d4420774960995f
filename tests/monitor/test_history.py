"""Histories as arrays, tables and files."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.monitor.history import quantile_name, threshold_name


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1))


def train(monitor: ss.GradientMonitor, model: nn.Module, steps: range) -> None:
    for step in steps:
        model.zero_grad()
        if step % 4 != 3:
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
        monitor.step()


def recorded(steps: int = 5, **options) -> ss.GradientHistory:
    model = network()
    with ss.GradientMonitor(model, **options) as monitor:
        train(monitor, model, range(steps))
    return monitor.history()


def same(first: ss.GradientHistory, second: ss.GradientHistory) -> None:
    for field in dataclasses.fields(first):
        mine, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == other.dtype
            assert mine.shape == other.shape
            assert mine.tobytes() == other.tobytes(), field.name
        else:
            assert type(mine) is type(other)
            assert mine == other, field.name


def test_arrays():
    history = recorded()
    names = ["all activations", "all parameters", "1", "0.weight", "0.bias", "2.weight", "2.bias"]
    assert history.names == names
    assert history.kinds == ["total"] * 2 + ["activation"] + ["parameter"] * 4
    quantiles = tuple(f"q{q}" for q in ("05", "25", "50", "75", "95"))
    assert history.columns == ("count", "zeros", "infs", "nans", "mean", *quantiles, "below_1e-08")
    assert history.values.shape == (5, 7, 11)
    assert history.values.dtype == np.float64
    assert history.steps.dtype == history.count.dtype == np.int64
    assert history.count.tolist() == [[15, 19, 15, 12, 3, 3, 1]] * 3 + [[0] * 7] + [[15, 19, 15, 12, 3, 3, 1]]
    assert np.isnan(history.values[3]).all()
    for place, column in enumerate(history.columns):
        np.testing.assert_array_equal(history[column], history.values[:, :, place])
    np.testing.assert_array_equal(history.quantile(0.25), history["q25"])
    np.testing.assert_array_equal(history.below(1e-8), history.get("below_1e-08"))
    assert (np.diff(history.values[0, :, 5:10]) >= 0).all()
    assert len(history) == history.step_count == 5
    assert repr(history) == "GradientHistory(5 steps, 0 to 4; 7 rows)"
    assert repr(recorded(0)) == "GradientHistory(0 steps; 7 rows)"


def test_table():
    history = recorded()
    table = history.table()
    assert list(table) == ["step", "name", "kind", *history.columns]
    assert {len(column) for column in table.values()} == {35}
    assert table["step"].tolist()[::7] == [0, 1, 2, 3, 4]
    for line in (0, 9, 24, 34):
        step, row = divmod(line, 7)
        assert (table["name"][line], table["kind"][line]) == (history.names[row], history.kinds[row])
        assert table["count"][line] == history.count[step, row]
        np.testing.assert_equal(table["q50"][line], history.quantile(0.5)[step, row])
    assert table["count"].dtype == table["nans"].dtype == np.int64
    history.table()["q50"][:] = 0
    assert history.quantile(0.5).any()


def test_names_of_columns():
    quantiles = {0.05: "q05", 0.07: "q07", 0.0: "q00", 1.0: "q100", 0.999: "q99.9", 0.001: "q00.1"}
    assert {q: quantile_name(q) for q in quantiles} == quantiles
    thresholds = {1e-8: "below_1e-08", 0.001: "below_0.001", 1: "below_1", 1 / 3: "below_0.3333333333333333"}
    assert {threshold: threshold_name(threshold) for threshold in thresholds} == thresholds


def test_unrecorded_statistics():
    history = recorded(1)
    for read, error, message in (
        (lambda: history["median"], KeyError, r"no statistic 'median': choose one of count, zeros, .*q50"),
        (lambda: history.quantile(0.1), ValueError, r"quantile 0.1 was not recorded, only 0.05, .*: name it"),
        (lambda: history.below(1e-3), ValueError, r"below 0.001 was not recorded, only below 1e-08: name it"),
        (lambda: recorded(1, thresholds=()).below(1e-3), ValueError, "only below none: "),
    ):
        with pytest.raises(error, match=message):
            read()


@pytest.mark.parametrize(
    "options", [{}, {"magnitude": False, "thresholds": (), "mantissa_bits": 5, "every": 2}]
)
def test_files_and_copies(options, tmp_path):
    history = recorded(6, **options)
    path = tmp_path / "history"  # the name stays as it is
    history.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]
    before = path.read_bytes()
    history.save(str(path))
    assert path.read_bytes() == before
    torch.save(history, tmp_path / "history.pt")
    same(torch.load(tmp_path / "history.pt", weights_only=True), history)
    for other in (ss.GradientHistory.load(path), pickle.loads(pickle.dumps(history)), copy.deepcopy(history)):
        same(other, history)


def test_atomic_save(tmp_path, monkeypatch):
    path = tmp_path / "history.npz"
    recorded(2).save(path)
    before = path.read_bytes()

    def break_off(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", break_off)
    with pytest.raises(OSError, match="disk full"):
        recorded(5).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["history.npz"]


@pytest.mark.parametrize("field", ["steps", "names", "kinds", "quantiles", "thresholds"])
def test_inconsistent_file(field, tmp_path):
    """As one that another program has cut; it must not come to light when a column is read."""
    history, path = recorded(3), tmp_path / "history.npz"
    dataclasses.replace(history, **{field: getattr(history, field)[:-1]}).save(path)
    with pytest.raises(ValueError, match=r"history.npz' is no gradient history \(.*3, .*\): give a file"):
        ss.GradientHistory.load(path)


def test_followed_by():
    whole = recorded(6)
    parts = [
        dataclasses.replace(whole, steps=whole.steps[part], values=whole.values[part], step_count=count)
        for part, count in ((slice(0, 2), 2), (slice(2, 6), 6))
    ]
    same(parts[0].followed_by(parts[1]), whole)
    with pytest.raises(ValueError, match=r"ends with step 5, the later one begins with step 0: put them"):
        parts[1].followed_by(parts[0])
    for name, value in (("quantiles", (0.5,)), ("magnitude", False), ("mantissa_bits", 4)):
        other = dataclasses.replace(parts[1], **{name: value})
        with pytest.raises(ValueError, match=f"different {name}, .*: record both with the same {name}"):
            parts[0].followed_by(other)


def test_followed_by_matches_names():
    first, second = recorded(2), recorded(4)
    renamed = ["a" if name == "1" else name for name in second.names]
    order = [6, 5, 4, 3, 2, 1, 0]
    second = dataclasses.replace(
        second,
        steps=second.steps + 10,
        names=[renamed[row] for row in order],
        kinds=[second.kinds[row] for row in order],
        values=second.values[:, order],
    )
    both = first.followed_by(second)
    assert both.names == [*second.names, "1"]
    assert both.kinds == [*second.kinds, "activation"]
    assert both.steps.tolist() == [0, 1, 10, 11, 12, 13]
    for name in set(both.names):
        row = both.names.index(name)
        for part, history in ((slice(0, 2), first), (slice(2, 6), second)):
            if name in history.names:
                want = history.values[:, history.names.index(name)]
                np.testing.assert_array_equal(both.values[part, row], want)
            else:
                assert np.isnan(both.values[part, row]).all()


@pytest.mark.parametrize(("every", "interrupted"), [(1, 0), (2, 5), (3, 4)])
def test_resumed_history(every, interrupted, tmp_path):
    """By a file, or with all else by torch.save and torch.load(weights_only=True): the same to the bit."""
    path, model = tmp_path / "history.npz", network()
    with ss.GradientMonitor(model, every=every) as monitor:
        train(monitor, model, range(interrupted))
        monitor.save(path)
        torch.save({"monitor": monitor.state_dict()}, tmp_path / "checkpoint.pt")
        state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["monitor"]
    for resume in (lambda: monitor.load(path), lambda: monitor.load_state_dict(state)):
        with ss.GradientMonitor(model, every=every, ring=3) as monitor:
            resume()
            history = monitor.history()
            assert len(history) == -(-interrupted // every)
            cut = {"steps": history.steps[-1:], "values": history.values[-1:]}
            same(monitor.last(), dataclasses.replace(history, **cut))
            train(monitor, model, range(interrupted, 9))
            assert monitor.last().step_count == 9
        same(monitor.history(), recorded(9, every=every))
    monitor.save(path)
    same(ss.GradientHistory.load(path), monitor.history())


def test_summary():
    model = network()
    with ss.GradientMonitor(model, thresholds=(1e-8, 0.5)) as monitor:
        train(monitor, model, range(2))
        model[2].weight.grad = torch.tensor([[0.0, torch.inf, -1.0]])
        model[0].bias.grad[1] = torch.nan
        model[2].bias.grad = None
        monitor.step()
    lines = monitor.summary().splitlines()
    assert lines[0] == "gradients at step 2"
    assert " ".join(lines[1].split()) == "name kind count zeros <1e-08 <0.5 |g| q05 |g| median |g| q95"
    assert len({line.index("total") for line in lines[3:5]}) == 1
    by_name = {line.split()[0]: line for line in lines[5:]}
    assert by_name["2.weight"].split()[:9] == [
        *("2.weight", "parameter", "3", "33.3", "%", "33.3", "%", "33.3", "%")
    ]
    assert by_name["2.weight"].endswith("inf")
    assert by_name["2.bias"].split() == ["2.bias", "parameter", "0", "-", "-", "-", "-", "-", "-"]
    assert lines[-1] == "infinite or NaN coordinates in: all parameters, 0.bias, 2.weight"
    signed = recorded(1, magnitude=False)
    assert signed.quantile(0.05)[0, 3] < 0


FIRST_FORMAT = {
    "steps": np.array([3, 4]),
    "names": np.array(["1.weight"]),
    "kinds": np.array(["parameter"]),
    "quantiles": np.array([0.5]),
    "thresholds": np.array([1e-8]),
    "values": np.arange(14, dtype=np.float64).reshape(2, 1, 7),
    "magnitude": np.array(True),
    "mantissa_bits": np.array(4),
    "step_count": np.array(5),
}


def test_formats(tmp_path):
    """Files of the first format, which had no number, still load; later ones are refused."""
    np.savez(tmp_path / "first.npz", **FIRST_FORMAT)
    history = ss.GradientHistory.load(tmp_path / "first.npz")
    assert (history.steps.tolist(), history.names, history.kinds) == ([3, 4], ["1.weight"], ["parameter"])
    assert (history.quantiles, history.thresholds) == ((0.5,), (1e-8,))
    assert (history.magnitude, history.mantissa_bits, history.step_count) == (True, 4, 5)
    assert history.below(1e-8).tolist() == [[6.0], [13.0]]
    history.save(tmp_path / "now.npz")
    with np.load(tmp_path / "now.npz") as archive:
        assert archive["format"] == 2
        arrays = dict(archive)
    same(ss.GradientHistory.load(tmp_path / "now.npz"), history)
    np.savez(tmp_path / "later.npz", **{**arrays, "format": np.array(3), "more": np.zeros(2)})
    with pytest.raises(ValueError, match=r"later.npz' is of a newer format \(3, of at most 2\): read"):
        ss.GradientHistory.load(tmp_path / "later.npz")
