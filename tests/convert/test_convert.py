"""`scale_activations` and `unscale_activations` of modules, against formulas in fp64 and the model before."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sigscale as ss
from tests.oracles import cells
from tests.oracles.models import Forward, traces

F64 = {
    nn.Tanh: torch.tanh,
    nn.Sigmoid: lambda u: 1 / (1 + torch.exp(-u)),
    nn.Softsign: lambda u: u / (1 + u.abs()),
}
ALL = {"functions": ("tanh", "sigmoid", "softsign")}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.Softsign())
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), block, nn.Sigmoid(), nn.ReLU(), nn.Linear(4, 4))


def changed(report: ss.ConversionReport) -> list[str]:
    return [entry.name for entry in report.changed]


def left(report: ss.ConversionReport) -> dict[str, str]:
    return {entry.name: entry.note for entry in report.left}


SHARED = nn.Tanh()
ACTIVATIONS = st.sampled_from([nn.Tanh, nn.Sigmoid, nn.Softsign, nn.ReLU, lambda: SHARED])
TREES = st.recursive(
    st.lists(ACTIVATIONS, max_size=4).map(lambda kinds: nn.Sequential(*(kind() for kind in kinds))),
    lambda trees: st.lists(trees, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts)),
    max_leaves=6,
)


def test_any_tree(device):
    """What is selected computes the formula, what is not is as it was, and all of it is undone."""

    @given(model=TREES, alpha=st.floats(0.1, 10), learnable=st.booleans(), data=st.data())
    def check(model, alpha, learnable, data):
        names = {name: module for name, module in model.named_modules() if type(module) in F64}
        chosen = data.draw(st.sets(st.sampled_from([*names]), min_size=1)) if names else set()
        if not chosen:
            with pytest.raises(ValueError, match="must have activations to scale"):
                ss.scale_activations(model, alpha)
            return
        before, kinds = traces(model), {name: type(module) for name, module in names.items()}
        report = ss.scale_activations(model, alpha, include=chosen, learnable=learnable, **ALL)
        assert {*changed(report)} == chosen
        assert len(report.parameters) == len(chosen) * learnable
        x = torch.linspace(-9, 9, 11, dtype=torch.float64, device=device)
        for name, module in model.to(device).named_modules():
            if name in names:
                scale = torch.as_tensor(module.alpha, dtype=x.dtype).item() if name in chosen else 1.0
                assert scale == pytest.approx(alpha if name in chosen else 1.0, rel=1e-6)
                expected = scale * F64[kinds[name]](x / scale)
                torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-300)
        ss.unscale_activations(model)
        assert traces(model) == before

    check()


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_recurrent_value(kind):
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": getattr(nn, kind)(3, 4).double()})
    weights = [*model.parameters()]
    ss.scale_activations(model, 2.0)
    layer = model["layer"]
    assert type(layer) is getattr(ss.nn, kind)
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    states = (torch.zeros(1, 2, 4, dtype=torch.float64),) * (2 if kind == "LSTM" else 1)
    torch.testing.assert_close(layer(x)[0], cells.run(layer, x, states, 2.0)[0])


@pytest.mark.parametrize("learnable", [False, True])
def test_undone_to_the_bit(learnable, device):
    model = network().append(nn.LSTM(4, 4)).to(device)
    x = torch.randn(8, 4, device=device)
    state, before, plain = copy.deepcopy(model.state_dict()), traces(model), model(x)
    ss.scale_activations(model, 1.3, learnable=learnable, **ALL)
    assert learnable or [*model.state_dict()] == [*state]
    assert not torch.equal(model(x)[0], plain[0])
    report = ss.unscale_activations(model)
    assert traces(model) == before
    assert len(report.parameters) == 4 * learnable
    assert torch.equal(model(x)[0], plain[0])
    assert [*model.state_dict()] == [*state]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))


def test_same_object_hooks_modes_and_call_by_keyword():
    model, calls = nn.Tanh(), []
    model.register_forward_hook(lambda *_: calls.append("forward"))
    model.register_full_backward_hook(lambda *_: calls.append("backward"))
    model.eval()
    report = ss.scale_activations(model, 3.0)
    assert (report.model, type(model), model.alpha, changed(report)) == (model, ss.nn.Tanh, 3.0, ["Tanh"])
    x = torch.randn(2, 4, requires_grad=True)
    y = model(input=x)
    y.sum().backward()
    assert calls == ["forward", "backward"]
    assert not model.training
    assert torch.equal(y, ss.tanh(x, 3.0))
    ss.unscale_activations(model)
    assert torch.equal(model(input=x), x.tanh())


def test_several_alphas_by_patterns():
    model = nn.ModuleDict({"a": network(), "b": network()})
    ss.scale_activations(model, 1.5, include="a.*", **ALL)
    ss.scale_activations(model, 3.0, include=["b.*"], exclude=["b.3"], **ALL)
    assert [model["a"][i].alpha for i in (1, 3)] == [1.5, 1.5]
    assert model["b"][1].alpha == 3.0
    assert type(model["b"][3]) is nn.Sigmoid
    ss.unscale_activations(model, exclude="a.*")
    assert type(model["b"][1]) is nn.Tanh
    assert type(model["a"][1]) is ss.nn.Tanh


def test_learned_alphas_are_where_their_layers_are():
    wide, meta = nn.Linear(2, 2, dtype=torch.float64), nn.Linear(2, 2, device="meta")
    model = nn.Sequential(nn.Tanh(), wide, nn.Tanh(), meta, nn.Tanh())
    report = ss.scale_activations(model, 4.0, learnable=True, num_parameters=2)
    places = [(p.device.type, p.dtype, p.shape) for p in report.parameters]
    assert places == [("cpu", torch.float64, (2,))] * 2 + [("meta", torch.float32, (2,))]
    assert report.parameters[0].tolist() == [2.0, 2.0]  # log2 of 4
    assert set(report.parameters) < set(model.parameters())


def test_learned_alphas_learn_and_optimizers_go_on():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    weight, moment = model[0].weight, optimizer.state[model[0].weight]["exp_avg"].clone()
    report = ss.scale_activations(model, learnable=True)
    optimizer.add_param_group({"params": report.parameters})
    assert model[0].weight is weight
    assert torch.equal(optimizer.state[weight]["exp_avg"], moment)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert all(p.grad is not None and p.item() != 1.0 for p in report.parameters)


def test_copies_and_pickles():
    model = network()
    ss.scale_activations(model, 1.5, learnable=True)
    x, file = torch.randn(3, 4), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other(x), model(x))
        ss.unscale_activations(other)
        assert torch.equal(other(x), network()(x))


class Named(nn.Tanh):
    """A subclass that computes what its base does."""


class Doubled(nn.Tanh):
    def forward(self, input):
        return 2 * super().forward(input)


def test_subclasses_when_asked():
    model = nn.Sequential(Named(), Doubled(), nn.Tanh())
    notes = left(ss.scale_activations(model, dry_run=True))
    assert notes["0"] == "a subclass of nn.Tanh: pass subclasses=True"
    assert notes["1"] == "a subclass of nn.Tanh with a forward of its own"
    ss.scale_activations(model, subclasses=True)
    assert [type(module) for module in model] == [ss.nn.Tanh, Doubled, ss.nn.Tanh]
    ss.unscale_activations(copy.deepcopy(model))
    ss.unscale_activations(model)
    assert [type(module) for module in model] == [Named, Doubled, nn.Tanh]


def test_modules_left_alone():
    """Also those whose forward was replaced, as by libraries that move weights: the class has no say then."""
    model = nn.Sequential(nn.Tanh(), nn.GRU(3, 4), nn.RNN(3, 4, nonlinearity="relu"))
    model[0].forward = model[0].forward
    report = ss.scale_activations(model)
    assert changed(report) == ["1"]
    assert left(report) == {"0": "its forward was replaced", "2": "relu stays the same under scaling"}
    assert [type(module) for module in model] == [nn.Tanh, ss.nn.GRU, nn.RNN]


def test_functions_of_torch_to_come(monkeypatch):
    """The registry tells which modules there are."""
    arctan = type("Arctan", (Forward,), {})
    monkeypatch.setattr(nn, "Arctan", arctan, raising=False)
    model = nn.Sequential(arctan(lambda m, input: torch.arctan(input)))
    ss.scale_activations(model)
    torch.testing.assert_close(model(torch.tensor(4.0)).item(), 2 * math.atan(2.0))
    ss.unscale_activations(model)
    assert type(model[0]) is arctan


def test_modules_made_scaled_become_plain():
    model = nn.Sequential(ss.nn.Tanh(alpha=1.5), ss.nn.Arctan(), ss.nn.LSTM(2, 2))
    report = ss.unscale_activations(model)
    assert [type(module) for module in model] == [nn.Tanh, ss.nn.Arctan, nn.LSTM]
    assert left(report) == {"1": "torch.nn has no Arctan: alpha = 1.0 makes it plain"}


def test_report_and_dry_run():
    model = network()
    before = traces(model)
    report = ss.scale_activations(model, exclude="2.*", dry_run=True)
    assert traces(model) == before
    assert report.dry_run
    assert repr(report).splitlines() == [
        "activations: 1 would change, 2 left",
        "  1    Tanh -> Tanh(alpha=2.0)",
        "  2.1  Softsign, left           not selected",
        "  3    Sigmoid, left            scaled only where functions= names 'sigmoid'",
    ]
    done = ss.scale_activations(model, exclude="2.*")
    assert (done.changed, done.left) == (report.changed, report.left)
    undone = ss.unscale_activations(model, dry_run=True)
    assert undone.changed[0].before == "Tanh(alpha=2.0)"
    assert type(model[1]) is ss.nn.Tanh


def test_functions_by_name():
    model = network()
    assert changed(ss.scale_activations(model, functions=["sigmoid"])) == ["3"]
    assert [type(model[i]) for i in (1, 3)] == [nn.Tanh, ss.nn.Sigmoid]
    model = nn.ModuleList([nn.Softsign(), nn.GRU(2, 2), nn.Tanh()])
    report = ss.scale_activations(model, functions="tanh")
    assert [type(module) for module in model] == [nn.Softsign, ss.nn.GRU, ss.nn.Tanh]
    assert left(report) == {"0": "scaled only where functions= names 'softsign'"}


def test_names_with_brackets():
    """An error's remedy is a name, which as a shell-style pattern would match another one."""
    model = nn.Module()
    for name in ("gate[0]", "gate0", "*"):
        model.add_module(name, nn.Sequential(nn.Tanh()))
    assert changed(ss.scale_activations(model, exclude="gate[0].0", dry_run=True)) == ["*.0"]
    assert len(ss.scale_activations(model, include="gate[0].0").changed) == 2


def test_wrapped_models():
    model, x = network().double(), torch.randn(3, 4, dtype=torch.float64)
    compiled = torch.compile(model, backend="eager")
    plain = compiled(x)
    assert changed(ss.scale_activations(compiled, exclude="2.1", **ALL)) == ["1", "3"]
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-14, atol=1e-15)
    ss.unscale_activations(compiled)
    assert torch.equal(compiled(x), plain)
    assert changed(ss.scale_activations(nn.DataParallel(model), **ALL)) == ["1", "2.1", "3"]


@pytest.mark.filterwarnings("ignore")
def test_a_monitor_goes_on():
    """An open monitor counts the same gradients as one that is attached after scaling."""
    model, x = network(), torch.randn(16, 4)
    histories = []
    for scale_first in (True, False):
        if scale_first:
            ss.scale_activations(model)
        with ss.GradientMonitor(model) as monitor:
            if not scale_first:
                ss.scale_activations(model)
            model.zero_grad()
            model(x).square().sum().backward()
            monitor.step()
            histories.append(monitor.history())
        ss.unscale_activations(model)
    assert histories[0].names == histories[1].names
    assert (histories[0].quantile(0.5) == histories[1].quantile(0.5)).all()
