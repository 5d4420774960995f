"""Pictures show what the history holds, each value where it belongs."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import sigscale as ss
from sigscale._plot_panels import Scale, Steps


def history(steps: int = 6, layers: int = 3, **options) -> ss.GradientHistory:
    torch.manual_seed(0)
    parts = [part for _ in range(layers) for part in (nn.Linear(5, 5), ss.nn.Tanh())]
    model = nn.Sequential(*parts, nn.Linear(5, 1))
    with ss.GradientMonitor(model, **options) as monitor:
        for _ in range(steps):
            model.zero_grad()
            model(torch.randn(7, 5)).sum().backward()
            monitor.step()
    return monitor.history()


def changed(source: ss.GradientHistory, **cells: float) -> ss.GradientHistory:
    """With all quantiles of single rows at single steps replaced: row_step=value."""
    values = source.values.copy()
    for place, value in cells.items():
        row, step = place.removeprefix("r").split("_")
        values[int(step), int(row), 4:10] = value
    return dataclasses.replace(source, values=values)


def meshes(figure: Figure) -> list[np.ma.MaskedArray]:
    titles = "activations", "parameters"
    found = [axes.collections[-1] for axes in figure.axes if axes.get_title(loc="left") in titles]
    return [mesh.get_array() for mesh in found]


@pytest.mark.parametrize(
    ("statistic", "label"), [("q50", "median of"), ("mean", "mean of"), ("q95", "95 % quantile of")]
)
def test_colors(statistic, label):
    source = history()
    figure = ss.plot.gradients(source, **({} if statistic == "q50" else {"statistic": statistic}))
    activations, parameters = meshes(figure)
    np.testing.assert_array_equal(activations, source[statistic][:, 2:5].T)
    np.testing.assert_array_equal(parameters, source[statistic][:, 5:].T)
    assert label in figure.axes[-1].get_ylabel()


def labels(axes) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def test_names_and_order():
    figure = ss.plot.gradients(history(), title="three layers")
    curves, activations, parameters, bar = figure.axes
    assert figure.get_suptitle() == "three layers"
    assert labels(activations) == ["1", "3", "5"]
    assert labels(parameters)[:2] == ["0.weight", "0.bias"]
    assert activations.get_ylim() == (2.5, -0.5)  # the first at the top
    assert parameters.get_xlabel() == "step"
    assert bar.get_ylabel() == "median of |gradient|"
    legend = [text.get_text() for text in curves.get_legend().get_texts()]
    assert legend == ["all activations", "all parameters"]
    assert curves.get_title(loc="right") == "line: median; bands: 5 to 95 % and 25 to 75 %"
    assert ss.plot.gradients(history(1)).get_suptitle() == "Gradients at step 0"


def test_curves():
    source = history()
    curves = ss.plot.gradients(source).axes[0]
    lines = {line.get_label(): line for line in curves.lines if not line.get_label().startswith("_")}
    for row, name in enumerate(("all activations", "all parameters")):
        np.testing.assert_array_equal(lines[name].get_xdata(), np.arange(6))
        np.testing.assert_array_equal(lines[name].get_ydata(), source.quantile(0.5)[:, row])
    thin = [line.get_ydata() for line in curves.lines if line.get_label().startswith("_")]
    for row in range(2):
        for q in (0.05, 0.95):
            assert any(np.array_equal(line, source.quantile(q)[:, row]) for line in thin)
    assert curves.get_yscale() == "log"


def test_zero_infinite_and_missing():
    source = changed(history(), r2_0=0.0, r3_1=np.inf, r5_2=np.nan, r1_3=0.0)
    figure = ss.plot.gradients(source)
    activations, parameters = meshes(figure)
    mesh = figure.axes[1].collections[-1]
    low, high = mesh.norm.vmin, mesh.norm.vmax
    assert activations[0, 0] < low
    assert activations[1, 1] > high
    assert parameters.mask[0, 2]
    assert parameters.mask.sum() + activations.mask.sum() == 1
    assert tuple(mesh.cmap(mesh.norm(activations[0, 0]))) == (0, 0, 0, 1)
    key = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert key == ["exactly 0", "infinite", "no gradient measured"]
    # A zero among the curves lies in a strip of its own, below all positive values.
    curves = figure.axes[0]
    line = next(line for line in curves.lines if line.get_label() == "all parameters")
    zero = next(tick for tick, text in zip(curves.get_yticks(), labels(curves), strict=True) if text == "0")
    assert line.get_ydata()[3] == zero
    positive = source.values[:, :2, 5:10]
    assert curves.get_ylim()[0] < zero < positive[positive > 0].min()
    assert ss.plot.gradients(history()).axes[1].get_legend() is None


def test_lower_end_of_the_scale():
    source = changed(history(), r2_0=1e-60, r1_3=1e-60)
    figure = ss.plot.gradients(source)
    low = meshes(figure)[0][0, 0]
    largest = source.quantile(0.5)[:, 2:].max()
    assert low == pytest.approx(10.0 ** (np.ceil(np.log10(largest)) - 20))
    assert labels(figure.axes[-1])[0].startswith(r"$\leq 10^{")
    assert labels(figure.axes[0])[0].startswith(r"$\leq 10^{")


def test_all_zeros():
    source = history(3)
    values = np.where(np.arange(11) >= 4, 0.0, source.values)
    figure = ss.plot.gradients(dataclasses.replace(source, values=values))
    assert len(set(meshes(figure)[0].ravel())) == 1


def test_missing_steps():
    source = history(6)
    figure = ss.plot.gradients(dataclasses.replace(source, steps=np.array([0, 2, 4, 10, 12, 14])))
    assert meshes(figure)[0].mask[0].tolist() == [False] * 3 + [True] + [False] * 3
    assert figure.axes[1].get_xlim() == (-1, 15)
    line = next(line for line in figure.axes[0].lines if line.get_label() == "all parameters")
    assert np.isnan(line.get_ydata()).tolist() == [False] * 3 + [True] + [False] * 3
    assert line.get_xdata()[[0, 2, 4, 6]].tolist() == [0, 4, 10, 14]
    steps = Steps(np.array([7]))
    assert steps.edges.tolist() == [6.5, 7.5]
    assert not steps.has_gaps


def test_condensed_steps():
    source = history(10)
    order = np.random.default_rng(0).integers(0, 10, 3001)
    values = source.values[order]
    values[0] = np.nan
    values[3:6] = np.nan
    figure = ss.plot.gradients(dataclasses.replace(source, steps=np.arange(3001), values=values))
    activations, _ = meshes(figure)
    assert activations.shape == (3, 1001)
    column = source.columns.index("q50")
    np.testing.assert_array_equal(activations[:, 7], np.median(values[21:24, 2:5, column], axis=0))
    np.testing.assert_array_equal(activations[:, 0], np.median(values[1:3, 2:5, column], axis=0))
    assert activations.mask[:, 1].all()
    assert figure.axes[0].get_title(loc="right").endswith("; 3 steps as one")


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        *((layers, {}) for layers in (1, 40)),
        (1, {"activations": False}),
        (40, {"parameters": False, "quantiles": (0.4,)}),
    ],
)
def test_any_number_of_rows(layers, options, tmp_path):
    figure = ss.plot.gradients(history(2, layers, **options), tmp_path / "picture.png")
    assert figure.get_figheight() < 20
    for axes in figure.axes[1:-1]:
        labels = [label for label in axes.get_yticklabels() if label.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        overlap = [above.y0 < below.y1 - 1 for above, below in itertools.pairwise(boxes)]
        assert not any(overlap)
    if "quantiles" in options:
        assert figure.axes[0].get_title(loc="right") == "line: 40 % quantile"


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_files(suffix, tmp_path):
    path = tmp_path / f"picture{suffix}"
    figure = ss.plot.gradients(history(2), str(path))
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert isinstance(figure, Figure)


def test_open_monitor():
    """It is drawn as its history, and matplotlib's settings stay."""
    before = dict(mpl.rcParams)
    model = nn.Sequential(nn.Linear(5, 5), ss.nn.Tanh())
    with ss.GradientMonitor(model) as monitor:
        with pytest.raises(ValueError, match=r"has no steps to draw: call monitor.step\(\)"):
            ss.plot.gradients(monitor)
        model(torch.ones(2, 5)).sum().backward()
        monitor.step()
        ss.plot.gradients(monitor)
    assert dict(mpl.rcParams) == before


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"draws a GradientMonitor or a .*; got dict: pass the monitor"):
        ss.plot.gradients({})
    with pytest.raises(ValueError, match=r"signed gradients: record it with .*magnitude=True"):
        ss.plot.gradients(history(1, magnitude=False))
    for statistic in ("median", "count", "below_1e-08", 0.5):
        with pytest.raises(ValueError, match=r"statistic must be one of mean, q05.*; got .*: name others"):
            ss.plot.gradients(history(1), statistic=statistic)
    with pytest.raises(ValueError, match=r"[Ff]ormat 'xyz'"):
        ss.plot.gradients(history(1), tmp_path / "picture.xyz")
    assert not list(tmp_path.iterdir())


def test_scale():
    scale = Scale.of(np.array([3e-4, 0.2, 1.0, np.nan]))
    assert (scale.low, scale.high) == (1e-4, 1.0)
    assert scale[2:] == (False, False, False, True)
    scale = Scale.of(np.array([0.0, np.inf, 1e-300, 5.0]))
    assert (scale.low, scale.high) == (1e-19, 10.0)
    assert scale[2:] == (True, True, True, False)
    assert Scale.of(np.array([5e-324])).low > 0
    one = Scale.of(np.array([10.0]))
    assert (one.low, one.high) == (1.0, 10.0)


FRESH = """
import sys
sys.modules["matplotlib"] = None
import numpy as np, sigscale as ss
names, kinds = ["all parameters", "0.weight"], ["total", "parameter"]
history = ss.GradientHistory(np.arange(2), names, kinds, (0.5,), (), np.ones((2, 2, 6)))
try:
    ss.plot.gradients(history)
except ImportError as error:
    print(error)
del sys.modules["matplotlib"]
ss.plot.gradients(history, "picture.png")
print("matplotlib.pyplot" in sys.modules)
"""


def test_imports(tmp_path):
    """Without matplotlib the remedy; with it, never its pyplot."""
    run = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=tmp_path)
    remedy = 'pictures need matplotlib, not found: pip install "sigscale[plot]"'
    assert run.stdout == f"{remedy}\nFalse\n", run.stderr
