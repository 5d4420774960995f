"""What conversion refuses; the model is as it was."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import sigscale as ss
from sigscale._checks import warn

X = torch.ones(2, 3)


def network(**scaled) -> nn.ModuleDict:
    return nn.ModuleDict({"first": nn.Tanh(), "lstm": nn.LSTM(2, 2), "last": nn.Tanh(), **scaled})


def traces(model: nn.Module) -> list[tuple[object, ...]]:
    return [
        (m, type(m), [*vars(m)], [*m._parameters], m.training, [*m._forward_hooks]) for m in model.modules()
    ]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alpha": 0.0}, ValueError, r"alpha must be .* > 0; got 0.0: the paper's choice"),
        ({"alpha": float("nan")}, ValueError, "got nan"),
        ({"alpha": torch.tensor(2.0)}, TypeError, "got a tensor"),
        ({"alpha": "2"}, TypeError, "got '2' of type str"),
        ({"num_parameters": 4}, ValueError, "num_parameters=4 is for an alpha that learns"),
        ({"learnable": True, "num_parameters": 4}, ValueError, "also lstm: scale those separately"),
        (
            {"include": "frist"},
            ValueError,
            "include must match names of activations; got 'frist'.*first, lstm",
        ),
        ({"exclude": ["last", "2"]}, ValueError, "exclude must match names of activations; got '2'"),
        ({"include": [nn.Tanh]}, TypeError, "include must be a pattern"),
        ({"exclude": 3}, TypeError, "exclude must be a pattern or a sequence of patterns; got 3 of type int"),
        (
            {"exclude": "*"},
            ValueError,
            r"'first' \(Tanh: not selected\).*: widen include=, or narrow exclude=$",
        ),
        ({"learnable": "yes"}, TypeError, "learnable must be True or False; got 'yes': pass learnable=True"),
        ({"functional": 1}, TypeError, "functional must be True or False; got 1"),
        ({"subclasses": "no"}, TypeError, "subclasses must be True or False; got 'no'"),
        ({"dry_run": "no"}, TypeError, "dry_run must be True or False; got 'no'"),
    ],
)
def test_bad_arguments(options, error, message):
    model = network()
    before = traces(model)
    with pytest.raises(error, match=message):
        ss.scale_activations(model, **options)
    assert traces(model) == before


class Calls(nn.Module):
    def forward(self, x):
        return torch.tanh(x)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (None, {}, TypeError, "model must be a torch.nn.Module; got NoneType"),
        (nn.ReLU(), {}, ValueError, r"activations to scale, modules nn.Tanh; .*nn.GRU; got none: func"),
        (nn.ReLU(), {"include": "x"}, ValueError, "must have activations to scale"),
        (Calls(), {}, ValueError, "got none: functional=True scales calls in forward"),
        (Calls(), {"example_inputs": X}, ValueError, r"computes torch.tanh \(test_convert_errors.py:\d+\)"),
        (nn.Sequential(nn.Sigmoid()), {}, ValueError, r"'0' \(Sigmoid: scaled only where functions= "),
        (nn.ReLU(), {"functional": True}, ValueError, "must have activations to scale"),
        (nn.Sequential(nn.Tanh()), {"functions": "tahn"}, ValueError, "unknown function 'tahn': choose one"),
        (nn.Sequential(nn.Tanh()), {"functions": ()}, ValueError, "functions must name at least one; got no"),
        (nn.Sequential(nn.Tanh()), {"functions": ["tanh", 3]}, TypeError, r"got \['tanh', 3\]: pass \("),
        (nn.Sequential(nn.Tanh()), {"functions": 3}, TypeError, "functions must be a name or a seq"),
        (nn.Sequential(nn.Tanh()), {"example_inputs": [X]}, TypeError, "a tensor or a tuple; got list"),
        (nn.Linear(3, 3), {"functional": True, "example_inputs": X}, ValueError, "must have activations"),
        (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), {"example_inputs": X}, ValueError,
            "example_inputs must be what the model is called with; calling a copy of it raised RuntimeError"),
        (Calls(), {"functional": True, "exclude": "Cals"}, ValueError, "must match names of modules"),
        (nn.GRUCell(2, 2), {}, ValueError, r"no module computes GRUCell \(computes it internally\)$"),
        (Calls(), {"functional": True, "exclude": "Calls"}, ValueError, "got none: widen include="),
        (nn.Sequential(Calls(), nn.Tanh()), {"functional": True, "learnable": True, "num_parameters": 3},
            ValueError, "also calls in 0: leave functional=True to another call, with exclude="),
        (nn.RNN(2, 2, nonlinearity="relu"), {}, ValueError, r"'RNN' \(RNN: relu stays the same"),
        (nn.Sequential(ss.nn.Tanh()), {}, ValueError, r"scaled twice; got '0', Tanh\(alpha=2.0\): undo"),
        (network(act=ss.nn.Arctan(1.5)), {}, ValueError, r"twice; got 'act', Arctan\(alpha=1.5\)"),
        (weight_norm(nn.LSTM(2, 2), "weight_hh_l0"), {}, ValueError, "parametrized: scale it before"),
    ],
)  # fmt: skip
def test_bad_model(model, options, error, message):
    before = traces(model) if model is not None else None
    with pytest.raises(error, match=message):
        ss.scale_activations(model, **options)
    assert model is None or traces(model) == before


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_model():
    with pytest.raises(ValueError, match=r"'0' \(Tanh: scripted: scale the model before torch.jit.script\)"):
        ss.scale_activations(torch.jit.script(nn.Sequential(nn.Tanh())))


@pytest.fixture
def in_ddp(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    torch.distributed.destroy_process_group()


def test_learned_alphas_come_before_ddp(in_ddp):
    with pytest.raises(ValueError, match="in DistributedDataParallel: convert the model, then wrap it"):
        ss.scale_activations(in_ddp, learnable=True)
    assert [entry.name for entry in ss.scale_activations(in_ddp).changed] == ["1"]
    in_ddp(torch.ones(1, 2)).sum().backward()


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (4, {}, TypeError, "model must be a torch.nn.Module; got int"),
        (nn.Sequential(nn.Tanh()), {}, ValueError, "must have scaled activations to undo; got none"),
        (
            nn.Sequential(ss.nn.Arctan()),
            {},
            ValueError,
            r"'0' is Arctan\(alpha=2.0\), torch.nn has no Arctan",
        ),
        (nn.Sequential(ss.nn.Tanh()), {"exclude": "*"}, ValueError, "'0' is Tanh.*not selected"),
        (nn.Sequential(ss.nn.Tanh()), {"include": "1"}, ValueError, "names of scaled activations; got '1'"),
        (nn.Sequential(ss.nn.Tanh()), {"dry_run": "yes"}, TypeError, "dry_run must be True or False"),
    ],
)
def test_bad_undo(model, options, error, message):
    with pytest.raises(error, match=message):
        ss.unscale_activations(model, **options)


def test_undo_waits_for_a_monitor():
    model = nn.Sequential(nn.Linear(2, 2), ss.nn.Tanh())
    with (
        ss.GradientMonitor(model),
        pytest.raises(ValueError, match=r"'1' has a grad_sketch.*close\(\) the mon"),
    ):
        ss.unscale_activations(model)
    assert type(model[1]) is ss.nn.Tanh
    ss.unscale_activations(model)


def test_learnable_is_a_flag():
    for scaled in ({"learnable": "yes"}, {"learnable": "no", "num_parameters": 3}):
        with pytest.raises(TypeError, match="learnable must be True or False"):
            ss.nn.Tanh(**scaled)


def test_channels_of_example_inputs():
    """A wrong number of alphas is an error of the conversion, not of a later forward pass."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh())
    options = {"learnable": True, "num_parameters": 4, "example_inputs": X}
    before = traces(model)
    with pytest.raises(ValueError, match="dimension 1 of each module's input; got 4, but '3' has 5: scale"):
        ss.scale_activations(model, **options)
    assert traces(model) == before
    ss.scale_activations(model, **options, include="1")
    model(X).sum().backward()


def test_names_with_brackets():
    """An error's remedy is a name, which as a shell-style pattern would match another one."""
    model = nn.Module()
    for name in ("gate[0]", "gate0", "*"):
        model.add_module(name, nn.Sequential(nn.Tanh()))
    report = ss.scale_activations(model, exclude="gate[0].0", dry_run=True)
    assert [entry.name for entry in report.changed] == ["*.0"]
    assert len(ss.scale_activations(model, include="gate[0].0").changed) == 2


@pytest.mark.parametrize("base", [nn.LSTM, type("Own", (nn.LSTM,), {})])
def test_undo_of_a_parametrized_module(base):
    model = nn.Sequential(base(2, 2))
    ss.scale_activations(model, subclasses=True)
    weight_norm(model[0], "weight_hh_l0")
    before, x = traces(model), torch.ones(2, 3, 2)
    y = model(x)[0]
    with pytest.raises(
        ValueError, match=r"'0' is Parametrized.*parametrized: remove_parametrizations\(\) first"
    ):
        ss.unscale_activations(model)
    with pytest.raises(ValueError, match=r"cannot fold '0' \(Parametrized.*remove_parametrizations first"):
        ss.fold(model)
    assert traces(model) == before
    assert torch.equal(model(x)[0], y)
    nn.utils.parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    ss.unscale_activations(model)
    assert type(model[0]) is base


def test_line_of_a_warning():
    """The user's own, whatever lies between: functions of the package, hooks and decorators of PyTorch."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Calls())
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: warn("from a hook", RuntimeWarning))
    with pytest.warns() as caught:  # noqa: PT031 (the lines are what is tested)
        line = sys._getframe().f_lineno
        ss.scale_activations(model, example_inputs=X)
        torch.no_grad()(layer)(X)
        warn("direct")
    found = [(warning.filename, warning.lineno - line, warning.category) for warning in caught]
    assert found[0] == (__file__, 1, UserWarning)
    assert found[1] == (__file__, -2, RuntimeWarning)  # the hook is the user's
    assert found[2] == (__file__, 3, UserWarning)
