"""The pictures of the CIFAR-10 example: of any length, any gradients, any pipelines."""

import math
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Text

import sigscale as ss
from examples.cifar10 import figures
from examples.cifar10.pipelines import FIGURES, Figure, Pipeline
from examples.cifar10.store import Outcome
from examples.cifar10.train import NUMBERS

VALUES = [(1, 0.0), (3, math.nan), (3, math.inf), (3, 1e9), (100, 1e-30)]
pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def outcomes(epochs, value, seeds=2, figure=FIGURES["3"]):
    """Runs that had the same gradient everywhere and always."""
    curves = {name: np.full(epochs, value if "gradient" in name else 0.1) for name in NUMBERS}
    return [
        Outcome(p.name, p.label, seed, dict(curves), {}) for p in figure.pipelines for seed in range(seeds)
    ]


def history(names, value, steps=4, every=1, first=0.0):
    """A row for each of `names`, those with a dot being parameters; `first` is the value at first."""
    kinds = ["parameter" if "." in name else "activation" for name in names]
    values = np.full((steps, len(names), 7), value)
    values[0] = first
    made = steps * every
    return ss.GradientHistory(
        np.arange(0, made, every), list(names), kinds, (0.5, 0.95), (), values, step_count=made
    )


def drawn(monkeypatch, draw, *arguments, **options):
    """The canvas that `draw` saves."""
    kept = []
    monkeypatch.setattr(figures, "save", lambda canvas, stem: kept.append(canvas) or [])
    draw(*arguments, **options)
    kept[0].canvas.draw()
    return kept[0]


def labels(canvas):
    """The names at the right ends of the lines, panel by panel."""
    return [[text for text in axes.texts if text.xy[0] > 1] for axes in canvas.axes]


@pytest.mark.parametrize(("epochs", "value", "seeds"), [(1, 1e-3, 1), *((*case, 2) for case in VALUES)])
def test_a_figure_of_any_length_and_any_gradients(tmp_path, epochs, value, seeds):
    runs = outcomes(epochs, value, seeds)
    paths = figures.draw(FIGURES["3"], runs, tmp_path / "figure", title="a test", warning="a warning")
    assert [path.name for path in paths] == ["figure.png", "figure.svg"]
    assert all(path.stat().st_size > 5000 for path in paths)
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize(("epochs", "value", "seeds"), [(1, 1e-3, 1), *((*case, 2) for case in VALUES)])
def test_escapes_of_any_length_and_any_gradients(tmp_path, epochs, value, seeds):
    runs = outcomes(epochs, value, seeds)
    paths = figures.draw_escapes(FIGURES["3"], runs, tmp_path / "figure", title="a test", warning="a warning")
    assert all(path.stat().st_size > 5000 for path in paths)


def test_an_escape_is_the_first_epoch_above_chance():
    (run, *_) = outcomes(4, 1e-3)
    assert figures.escape(run) == (pytest.approx(1e-3), 5)  # never
    run.curves["test_accuracy"] = np.array([0.1, 0.11, 0.2, 0.1])
    run.curves["loss_gradient_q50"] = np.array([1e-2, 1e-4, 1.0, 1.0])
    assert figures.escape(run) == (pytest.approx(1e-3), 3)
    assert figures.correlation(np.array([1.0, 2, 3]), np.array([3, 2, 1])).startswith(
        "rank correlation -1.00"
    )
    assert "no rank" in figures.correlation(np.array([1.0, 2, math.nan]), np.array([5, 5, 1]))


def test_the_same_runs_give_the_same_files(tmp_path):
    files = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        runs = outcomes(3, 1e-3)
        paths = figures.draw(FIGURES["3"], runs, tmp_path / folder / "figure", title="a test")
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1]


@pytest.mark.parametrize("key", FIGURES)
def test_labels_do_not_overlap_where_all_lines_end_together(tmp_path, monkeypatch, key):
    runs = outcomes(3, 1e-3, figure=FIGURES[key])
    canvas = drawn(monkeypatch, figures.draw, FIGURES[key], runs, tmp_path, title="a test")
    for panel in labels(canvas):
        assert len(panel) == len(FIGURES[key].pipelines)
        places = sorted(text.xyann[1] * text.axes.get_window_extent().height for text in panel)
        line = max(Text.get_window_extent(text).height for text in panel)
        assert all(above - below > line for below, above in pairwise(places))
        assert min(text.xyann[1] for text in panel) >= 0
        assert max(text.xyann[1] for text in panel) <= 1


def test_only_the_pipelines_of_the_figure_that_were_run(tmp_path, monkeypatch):
    runs = [run for run in outcomes(3, 1e-3) if run.pipeline != "combined-relu"]
    runs += outcomes(3, 1e-3, figure=FIGURES["2"])
    canvas = drawn(monkeypatch, figures.draw, FIGURES["3"], runs, tmp_path, title="a test")
    names = [text.get_text() for text in labels(canvas)[1]]
    assert names == ["tanh", r"tanh, $\alpha$ = 2, r = 0.01", "relu, r = 0.01"]


def test_line_and_band_are_those_of_the_captions(tmp_path, monkeypatch):
    runs = outcomes(1, 1.0, seeds=4, figure=FIGURES["2"])
    accuracies, gradients = [0.1, 0.2, 0.3, 0.6] * 2, [0.0, 1e-4, 1e-2, math.inf] * 2
    for run, accuracy, gradient in zip(runs, accuracies, gradients, strict=True):
        run.curves.update(test_accuracy=np.array([accuracy]), gradient_q50=np.array([gradient]))
    top, bottom = drawn(monkeypatch, figures.draw, FIGURES["2"], runs, tmp_path, title="a test").axes
    assert top.lines[0].get_ydata() == pytest.approx([30])
    edges = top.collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == pytest.approx((17.5, 37.5))
    assert bottom.lines[0].get_ydata() == pytest.approx([1e-6])  # of 1e-12, 1e-4 and 1e-2
    assert "1 of 4 not finite" in labels(bottom.figure)[1][0].get_text()
    assert "geometric mean over the runs" in bottom.get_title(loc="left")


def test_a_pipeline_has_one_color_and_no_other_has_it():
    own = Pipeline("own", "own", *[None] * 3)
    mixed = Figure("mixed", "", (own, *FIGURES["4"].pipelines[2:], *FIGURES["1"].pipelines))
    styles = figures._styles(mixed)
    assert len(set(styles.values())) == 5
    everywhere = {}
    for figure in (*FIGURES.values(), mixed):
        for name, style in figures._styles(figure).items():
            assert everywhere.setdefault(name, style) == style


@pytest.mark.parametrize(("steps", "value", "groups"), [(1, 1e-3, 1), *((*case, 2) for case in VALUES)])
def test_heat_maps_of_any_length_and_any_gradients(tmp_path, steps, value, groups):
    names = ("all", "conv1_1_activation", "conv1_1.weight")
    histories = {label: [history(names, value, steps)] * groups for label in ("tanh", "tanh, alpha = 2")}
    paths = figures.draw_layers(histories, 3, tmp_path / "layers", title="a test", warning="a warning")
    assert [path.name for path in paths] == ["layers.png", "layers.svg"]
    assert all(path.stat().st_size > 5000 for path in paths)


def test_heat_maps_have_the_layers_of_all_pipelines_in_order(tmp_path, monkeypatch):
    few = history(["conv1_activation", "dense1_activation", "conv1.weight", "dense1.weight"], 1.0)
    more = history(
        ["conv1_activation", "dense1_activation", "conv1.weight", "norm.weight", "dense1.weight"], 1.0
    )
    canvas = drawn(monkeypatch, figures.draw_layers, {"a": [few], "b": [more]}, 2, tmp_path, title="a test")
    ticks = [[text.get_text() for text in axes.get_yticklabels()] for axes in canvas.axes[:4:2]]
    assert ticks == [["conv1", "dense1"], ["conv1", "norm", "dense1"]]
    there = canvas.axes[2].collections[0].get_array()
    assert there.mask.all(axis=1).tolist() == [False, True, False]


def test_cells_are_medians_over_steps_and_groups():
    one, other = (history(["a"], value, steps=240, first=first) for value, first in ((1.0, 9.0), (3.0, 5.0)))
    cells = figures._cells([one, other], ["a"], "activation")
    assert cells.shape == (120, 1)
    assert cells[:2, 0].tolist() == [4.0, 2.0]  # of 9, 1, 5, 3 and of 1, 1, 3, 3


@pytest.mark.parametrize(("steps", "every"), [(7, 1), (119, 3), (120, 7), (121, 1), (500, 313)])
def test_every_cell_has_a_step(steps, every):
    cells = figures._cells([history(["a"], 1.0, steps, every)], ["a"], "activation")
    assert len(cells) == min(steps, figures.CELLS)
    assert np.isfinite(cells).all()
