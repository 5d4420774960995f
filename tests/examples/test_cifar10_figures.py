"""The pictures of the CIFAR-10 example: of any length, any gradients, any pipelines."""

import math
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

import sigscale as ss
from examples.cifar10 import figures
from examples.cifar10.gradients import VANISHED
from examples.cifar10.pipelines import FIGURES
from examples.cifar10.store import Outcome
from examples.cifar10.train import NUMBERS

# Epochs (or steps), gradients and seeds.
EXTREMES = [(1, 1e-3, 1), (3, math.nan, 2)]
OTHERS = [(1, 0.0, 2), (3, math.inf, 2), (3, 1e9, 2), (100, 1e-30, 2)]
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def outcomes(epochs, value, seeds=2, figure=FIGURES["3"]):
    """Runs that had the same gradient everywhere and always."""
    curves = {name: np.full(epochs, value if "gradient" in name else 0.1) for name in NUMBERS}
    return [
        Outcome(p.name, p.label, seed, dict(curves), {}) for p in figure.pipelines for seed in range(seeds)
    ]


def history(names, value, steps=4, every=1, first=0.0):
    """A row for each of `names`, those with a dot being parameters; `first` is the value at first."""
    kinds = ["total" if name[:3] == "all" else "parameter" if "." in name else "activation" for name in names]
    values = np.full((steps, len(names), 8), value)
    values[0] = first
    made = steps * every
    return ss.GradientHistory(
        np.arange(0, made, every), list(names), kinds, (0.5, 0.95), (VANISHED,), values, step_count=made
    )


def drawn(monkeypatch, draw, *arguments, **options):
    """The canvas that `draw` makes, and its title."""
    kept = []

    @contextmanager
    def picture(stem, title, size, *, warning=""):
        kept[:] = [Canvas(figsize=size, layout="constrained"), title]
        yield kept[0]
        kept[0].draw_without_rendering()

    monkeypatch.setattr(figures, "picture", picture)
    draw(*arguments, **options)
    return kept


@pytest.mark.parametrize(
    ("kind", "length", "value", "seeds"),
    [
        *(("draw", *case) for case in EXTREMES + OTHERS),
        *(("draw_escapes", *case) for case in EXTREMES + OTHERS[1:2]),
        *(("draw_layers", *case) for case in EXTREMES + OTHERS[-1:]),
    ],
)
def test_any_length_and_any_gradients(tmp_path, kind, length, value, seeds):
    arguments = FIGURES["3"], outcomes(length, value, seeds)
    if kind == "draw_layers":
        names = ("all parameters", "conv1_1_activation", "conv1_1.weight", "dense.weight")
        arguments = {label: [history(names, value, length)] * seeds for label in ("tanh", "alpha = 2")}, 3
    getattr(figures, kind)(*arguments, tmp_path / "figure", setting="a test", warning="a warning")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "figure.svg"]
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    assert "a warning" in (tmp_path / "figure.svg").read_text()


def test_an_escape_is_the_first_epoch_above_chance():
    (run, *_) = outcomes(4, 1e-3)
    assert figures.escape(run) == (pytest.approx(1e-3), 5)  # never
    run.curves["test_accuracy"] = np.array([0.1, 0.11, 0.2, 0.1])
    run.curves["loss_gradient_q50"] = np.array([1e-2, 1e-4, 1.0, 1.0])
    assert figures.escape(run) == (pytest.approx(1e-3), 3)


@pytest.mark.parametrize(
    ("gradients", "epochs", "words"),
    [
        ([1.0, 2, 3, 4], [9, 8, 7, 1], "larger gradients, earlier escape (-1.00, p = 0, n = 4)"),
        ([1.0, 2, 3, 4], [1, 3, 2, 3], "no significant rank correlation (0.63, p = 0.37, n = 4)"),
        ([1.0, 2, math.nan], [5, 5, 1], "no rank correlation of gradient and escape (no variation)"),
    ],
)
def test_correlation(gradients, epochs, words):
    assert figures.correlation(pd.DataFrame({"x": gradients, "y": epochs})) == words


def test_the_same_runs_give_the_same_files(tmp_path):
    files = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        figures.draw(FIGURES["3"], outcomes(3, 1e-3), tmp_path / folder / "figure")
        files.append([path.read_bytes() for path in sorted((tmp_path / folder).iterdir())])
    assert files[0] == files[1]


def test_only_the_pipelines_of_the_figure_that_were_run(tmp_path, monkeypatch):
    runs = [run for run in outcomes(3, 1e-3) if run.pipeline != "combined-relu"]
    runs += outcomes(3, 1e-3, figure=FIGURES["2"])
    canvas, _ = drawn(monkeypatch, figures.draw, FIGURES["3"], runs, tmp_path)
    names = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert names == [
        f"{name}: 10.0 %" for name in ("tanh", r"tanh, $\alpha$ = 2, r = 0.01", "relu, r = 0.01")
    ]


def test_line_and_band_are_those_of_the_captions(tmp_path, monkeypatch):
    runs = outcomes(1, 1.0, seeds=4, figure=FIGURES["2"])
    accuracies, gradients = [0.1, 0.2, 0.3, 0.6] * 2, [0.0, 1e-4, 1e-2, math.inf] * 2
    for run, accuracy, gradient in zip(runs, accuracies, gradients, strict=True):
        run.curves.update(test_accuracy=np.array([accuracy]), gradient_q50=np.array([gradient]))
    canvas, title = drawn(monkeypatch, figures.draw, FIGURES["2"], runs, tmp_path)
    top, bottom = canvas.axes
    assert top.lines[0].get_ydata() == pytest.approx([30])
    edges = top.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((17.5, 37.5))
    assert bottom.lines[0].get_ydata() == pytest.approx([1e-6])  # of 1e-12, 1e-4 and 1e-2
    assert "tanh: 1 of 4 not finite" in bottom.get_title(loc="left").replace("\n", " ")
    assert title.startswith("tanh, alpha = 2 reaches 30.0 % accuracy, tanh 30.0 %; its gradients start 1")


def test_heat_maps_have_the_layers_of_all_pipelines_in_order(tmp_path, monkeypatch):
    few = history(
        ["all parameters", "conv1_activation", "dense1_activation", "conv1.weight", "dense1.weight"], 0.25
    )
    more = history(
        [
            "all parameters",
            "conv1_activation",
            "dense1_activation",
            "conv1.weight",
            "norm.weight",
            "dense1.weight",
        ],
        0.25,
    )
    canvas, title = drawn(monkeypatch, figures.draw_layers, {"a": [few], "b": [more]}, 2, tmp_path)
    assert title.startswith("In the end, 25.0% (a), 25.0% (b) of the parameters")
    ticks = [[text.get_text() for text in axes.get_yticklabels()] for axes in canvas.axes[:4:2]]
    assert ticks == [["conv1", "dense1"], ["conv1", "norm", "dense1"]]
    there = canvas.axes[2].collections[0].get_array()
    assert there.mask.all(axis=1).tolist() == [False, True, False]


def test_cells_are_medians_over_steps_and_groups():
    one, other = (history(["a"], value, steps=240, first=first) for value, first in ((1.0, 9.0), (3.0, 5.0)))
    cells = figures.cells([one, other], ["a"], "activation")
    assert cells.shape == (120, 1)
    assert cells.iloc[:2, 0].tolist() == [4.0, 2.0]  # of 9, 1, 5, 3 and of 1, 1, 3, 3


@pytest.mark.parametrize(("steps", "every"), [(7, 1), (119, 3), (120, 7), (121, 1), (500, 313)])
def test_every_cell_has_a_step(steps, every):
    cells = figures.cells([history(["a"], 1.0, steps, every)], ["a"], "activation")
    assert len(cells) == min(steps, figures.CELLS)
    assert np.isfinite(cells.to_numpy()).all()
