"""The benchmark of Table 4: who is compared with whom, what its check finds, and the table."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import torch

import sigscale as ss
from bench import table4 as cases
from bench.harness import cifar10
from bench.harness.timing import Timings
from bench.report import pictures
from bench.report.tables import losses, table
from bench.table4.check import check
from bench.table4.test_table4 import MODE_LABELS, named, results

CPU = torch.device("cpu")
SECONDS = {"plain": 1.0, "relu": 2.0, "sigscale": 1.25, "sigscale, monitored": 2.5, "eager": 1.0}
SECONDS["sigscale, relu"] = 2.5


@pytest.fixture(scope="module")
def split():
    return cifar10.training_images(CPU)[0]


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
@pytest.mark.parametrize("mode", [*MODE_LABELS])
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


@pytest.mark.parametrize("name", ["sigscale", "sigscale, relu", "batch norm"])
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


def test_modes_that_are_left_out_say_why(monkeypatch):
    assert cases.choose_modes(("eager",), CPU, trial=True)[0] == ["eager"]
    modes, reasons = cases.choose_modes((), CPU, trial=False)
    assert modes == ["eager"]
    assert "takes minutes" in reasons["compile"]
    assert cases.choose_modes((), torch.device("cuda"), trial=False) == ([*MODE_LABELS], {})
    assert "needs a GPU" in reasons["graph"]
    with pytest.raises(ValueError, match="--modes graph: needs a GPU, and there is none; --modes eager runs"):
        cases.choose_modes(("graph",), CPU, trial=True)


def records():
    """Of eager steps in three rounds, of which the second was slow, and of a graph."""
    samples = {named("eager", name): [t, 3 * t, t] for name, t in SECONDS.items()}
    samples |= {named("graph", name): [t / 10] * 3 for name, t in SECONDS.items()}
    samples |= {named(mode, "batch norm"): [2.0] * 3 for mode in ("eager", "graph")}
    keys = [("eager", name) for name in SECONDS] + [("graph", "plain"), ("graph", "sigscale")]
    common = {"kind": "table4", "batch": 32, "data": "random images", "steps": 5}
    made = [common | result for result in results(Timings(samples), keys)]
    skipped = {
        "provider": "sigscale",
        "model": "",
        "seconds": None,
        "over": {},
        "skipped": "compile: no time",
    }
    return [*made, {"kind": "table4", "mode": "torch.compile", **skipped}]


def test_table():
    rows = table(records(), "table4").to_dict("records")
    by_model = {(row.pop("mode"), row.pop("model")): row for row in rows}
    assert by_model["eager", "tanh, regularized and scaled"] == {
        "ms a step": "1250.000",
        "over plain": "+25.0 % (+25.0 to +25.0)",
        "paper": "+31.0 %",
        "over relu": "",
    }
    assert by_model["CUDA graph", "tanh, regularized and scaled"]["ms a step"] == "125.000"
    assert by_model["eager", "relu, unregularized"]["over plain"] == ""
    assert by_model["eager", "tanh, both, monitored"]["over plain"].startswith("+150.0 %")
    assert by_model["eager", "relu, regularized"]["paper"] == "+35.7 %"
    assert "slower than eager in 2 of 2" in losses(records())
    assert "sigscale, skipped: compile: no time" in losses(records())


def test_picture(tmp_path):
    figure = pictures.table4(records())
    assert "both remedies add +25.0 % to a step (CUDA graph; paper +31.0 %)" in figure.get_suptitle()
    figure.savefig(tmp_path / "table4.png")
