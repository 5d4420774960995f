"""The benchmark of Table 4: who is compared with whom, what its check finds, and the table."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import sigscale as ss

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import readme
import table4
import table4_cases as cases
import table4_figure
from measure import Timings
from table4_check import check
from table4_results import named, results
from tables import losses, markdown, rows

CPU = torch.device("cpu")
SECONDS = {"plain": 1.0, "relu": 2.0, "sigscale": 1.25, "sigscale, monitored": 2.5, "eager": 1.0}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def split():
    return cases.images(None, CPU)[0]


@pytest.fixture(autouse=True, scope="module")
def _no_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(tmp_path_factory.mktemp("place"))
        patch.setattr(cases, "BATCH", 4)
        yield


def checked(model, split):
    check([("eager", cases.Training(model, "eager", split, CPU))], split, CPU)


def all_checked(mode, split, device):
    trainings = [(mode, cases.Training(model, mode, split, device)) for model in cases.MODELS.values()]
    with ExitStack() as stack:
        for _, training in trainings:
            stack.callback(training.close)
        check(trainings, split, device)


def test_models_train_as_their_twins(split):
    all_checked("eager", split, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", cases.MODES)
def test_modes_of_a_gpu(mode, split):
    gpu = torch.device("cuda")
    with cases.on_device(gpu):
        all_checked(mode, split.to(gpu), gpu)


@dataclass(frozen=True)
class Wrong(cases.Model):
    def activation(self):
        return super().activation() if self.by_hand else ss.nn.Tanh(1.9999)


def test_a_wrong_activation_is_found(split):
    with pytest.raises(AssertionError, match=r"odd, float64, trains otherwise .* of its norm"):
        checked(Wrong("odd", alpha=2.0), split)


@pytest.mark.parametrize("name", ["sigscale", "sigscale, in the loss", "sigscale, relu", "batch norm"])
def test_a_wrong_penalty_is_found(name, split, monkeypatch):
    right = ss.WeightPenalty
    monkeypatch.setattr(ss, "WeightPenalty", lambda network, l2: right(network, l2=1.0001 * l2))
    with pytest.raises(AssertionError, match="float64, trains otherwise"):
        checked(cases.MODELS[name], split)


@pytest.mark.parametrize(("name", "seed"), [("relu", 6), ("batch norm", 7)])
def test_rounding_is_not_another_training(name, seed, split):
    """Not even where it turns a relu or a maximum over."""
    numbers = torch.Generator().manual_seed(seed)
    training = cases.Training(cases.MODELS[name], "eager", split, CPU)
    for layer in training.network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(
                lambda layer, inputs, y: y * (1 + 1e-6 * torch.randn(y.shape, generator=numbers))
            )
    check([("eager", training)], split, CPU)


def test_what_is_timed_is_what_is_checked(split):
    training = cases.Training(cases.MODELS["sigscale"], "eager", split, CPU)
    training.optimizer.param_groups[0]["lr"] *= 1.01
    with pytest.raises(AssertionError, match="scaled, eager, trains otherwise"):
        check([("eager", training)], split, CPU)


def test_a_monitor_that_misses_something_is_found(split, monkeypatch):
    narrow = partial(ss.GradientMonitor, exclude="dense4.weight")
    monkeypatch.setattr(ss, "GradientMonitor", narrow)
    with pytest.raises(AssertionError, match="has seen 998 of 1078 gradients"):
        checked(cases.MODELS["sigscale, monitored"], split)


def test_begin_starts_anew_in_place(split):
    training = cases.Training(cases.MODELS["batch norm"], "eager", split, CPU)
    training.steps(2)
    places = [p.data_ptr() for p in training.network.parameters()]
    training.begin()
    assert [p.data_ptr() for p in training.network.parameters()] == places
    weights = torch.cat(
        [p.flatten() for name, p in training.network.named_parameters() if "norm" not in name]
    )
    assert -10 <= weights.min() < -9
    assert 9 < weights.max() < 10
    assert not any(t.any() for state in training.optimizer.state.values() for t in state.values())
    assert not training.network.conv1_1_norm.running_mean.any()


def test_compiled_functions_share_no_code():
    written = [cases.loss_of(torch.nn.Identity(), torch.float32, None) for _ in range(2)]
    assert written[0].__code__ is written[1].__code__
    one, other = map(cases.by_itself, written)
    assert one.__code__ is not other.__code__
    args = torch.randn(4, 10), torch.arange(4)
    assert torch.equal(one(*args), written[0](*args))


def test_modes_that_are_left_out_say_why(monkeypatch):
    assert cases.choose_modes("eager", CPU, trial=True)[0] == ["eager"]
    modes, reasons = cases.choose_modes(None, CPU, trial=False)
    assert modes == ["eager"]
    assert "takes minutes" in reasons["compile"]
    assert cases.choose_modes(None, torch.device("cuda"), trial=False) == ([*cases.MODES], {})
    assert "needs a GPU" in reasons["graph"]
    monkeypatch.setattr(cases.shutil, "which", lambda name: None)
    assert "C++ compiler" in cases.choose_modes("eager,compile", CPU, trial=False)[1]["compile"]
    with pytest.raises(ValueError, match="--modes graph: graph needs a GPU, and there is none"):
        cases.choose_modes("graph", CPU, trial=True)


def records():
    """Of eager steps in three rounds, of which the second was slow, and of a graph."""
    samples = {named("eager", name): [t, 3 * t, t] for name, t in SECONDS.items()}
    samples |= {named("graph", name): [t / 10] * 3 for name, t in SECONDS.items()}
    samples |= {named(mode, "batch norm"): [2.0] * 3 for mode in ("eager", "graph")}
    keys = [("eager", name) for name in SECONDS] + [("graph", "plain"), ("graph", "sigscale")]
    common = {"kind": "table4", "batch": 32, "data": "random images", "steps": 5}
    made = [common | result for result in results(Timings(samples), keys)]
    skipped = {"provider": "torch.compile", "seconds": None, "ratios": {}, "skipped": "no time"}
    return [*made, {"kind": "table4", "mode": "compile", **skipped}]


def test_table():
    table = rows(records(), "table4")
    head = "model, batches of 32 (random images), 3 rounds of 5 steps"
    by_model = {row.pop(head): row for row in table}
    assert by_model["tanh, regularized and scaled"] == {
        "eager, s / 1,000": "1.25e+03 (1.25e+03-2.5e+03)",
        "eager, overhead": "+25.0 % (+25.0 to +25.0)",
        "eager, s a run": "195,250",
        "CUDA graph, s / 1,000": "125 (125-125)",
        "CUDA graph, overhead": "+25.0 % (+25.0 to +25.0)",
        "CUDA graph, s a run": "19,525",
        "paper, s a run": "1,385.2",
        "paper, overhead": "+31.0 %",
    }
    assert by_model["relu, unregularized"]["eager, overhead"] == ""
    monitored = by_model["tanh, both, every gradient monitored"]
    assert monitored["eager, overhead"].startswith("+150.0 %")
    assert monitored["CUDA graph, s / 1,000"] == monitored["paper, overhead"] == ""
    alone = by_model["... the monitoring alone, over both without"]
    assert [text for text in alone.values() if text] == ["+100.0 % (+100.0 to +100.0)"]
    assert "slower than eager in 2 of 2" in losses(records())
    assert "torch.compile is not timed: no time" in losses(records())


def test_readme_and_picture(tmp_path):
    text = markdown(readme.SECTIONS["table4"](records()))
    assert "overhead" in text
    assert "s a run |" not in text.replace("paper, s a run |", "")
    assert rows([], "table4") == readme.SECTIONS["table4"]([]) == []
    provenance = dict.fromkeys(("device", "torch", "triton", "date"), "some")
    table4_figure.draw_table4(records(), provenance, tmp_path / "table4.png")
    assert (tmp_path / "table4.png").read_bytes().startswith(b"\x89PNG")


def test_paper_overheads():
    keys = [("eager", name) for name in cases.MODELS]
    timings = Timings({named(*key): [1.0] * 3 for key in keys})
    found = {r["provider"]: r["paper_overhead"] for r in results(timings, keys) if r["paper_overhead"]}
    assert found == {
        "sigscale": pytest.approx(0.31, abs=5e-4),
        "sigscale, relu": pytest.approx(0.357, abs=5e-4),
    }


def test_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = table4.arguments_of_pytest(["--seconds", "3", "--out", "t.json", "--device", "cpu"])
    assert arguments[:2] == ["bench/test_table4.py", "--benchmark-only"]
    assert f"--benchmark-json={tmp_path / 't.json'}" in arguments
    assert {"--seconds=0.1", "--device=cpu", "--modes=eager,compile,graph"} <= set(arguments)
    assert not any("modes" in argument for argument in table4.arguments_of_pytest(["--seconds", "0.3"]))
