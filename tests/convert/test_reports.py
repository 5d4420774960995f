"""What conversion tells: what it scales and leaves, what it warns of, and what it refuses."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.nn.functional import softsign
from torch.nn.utils.parametrizations import weight_norm

import sigscale as ss
from sigscale._checks import warn
from tests.oracles.models import Forward, traces

X = torch.ones(2, 3)


def network() -> nn.ModuleDict:
    return nn.ModuleDict({"first": nn.Tanh(), "lstm": nn.LSTM(2, 2), "last": nn.Tanh()})


def calls() -> Forward:
    return Forward(lambda m, x: torch.tanh(x))


def tanh() -> nn.Sequential:
    return nn.Sequential(nn.Tanh())


def scaled() -> nn.Sequential:
    return nn.Sequential(ss.nn.Tanh())


CALLS = {"functional": True}
WRONG_VALUES = [
    (network(), {"alpha": 0.0}, r"alpha must be .* > 0; got 0.0: the paper's choice"),
    (network(), {"num_parameters": 4}, "num_parameters=4 is for an alpha that learns"),
    (network(), {"learnable": True, "num_parameters": 4}, "also lstm: scale those separately"),
    (network(), {"include": "frist"}, "include must match names of activations; got 'frist'.*first, lstm"),
    (network(), {"exclude": ["last", "2"]}, "exclude must match names of activations; got '2'"),
    (network(), {"exclude": "*"}, r"'first' \(Tanh: not selected\).*: widen include=, or narrow exclude=$"),
    (nn.ReLU(), {}, r"activations to scale, modules nn.Tanh; .*nn.GRU; got none: func"),
    (nn.ReLU(), {"include": "x"}, "must have activations to scale"),
    (nn.ReLU(), CALLS, "must have activations to scale"),
    (nn.Linear(3, 3), CALLS | {"example_inputs": X}, "must have activations"),
    (calls(), {}, "got none: functional=True scales calls in forward"),
    (calls(), {"example_inputs": X}, r"computes torch.tanh \(test_reports.py:\d+\)"),
    (calls(), CALLS | {"exclude": "Cals"}, "must match names of modules"),
    (calls(), CALLS | {"exclude": "Forward"}, "got none: widen include="),
    (nn.Sequential(calls(), nn.Tanh()), CALLS | {"learnable": True, "num_parameters": 3},
        "also calls in 0: leave functional=True to another call, with exclude="),
    (nn.Sequential(nn.Sigmoid()), {}, r"'0' \(Sigmoid: scaled only where functions= "),
    (tanh(), {"functions": "tahn"}, "unknown function 'tahn': choose one"),
    (tanh(), {"functions": ()}, "functions must name at least one; got no"),
    (nn.Sequential(nn.Linear(2, 2), nn.Tanh()), {"example_inputs": X},
        "example_inputs must be what the model is called with; calling a copy of it raised RuntimeError"),
    (nn.GRUCell(2, 2), {}, r"no module computes GRUCell \(computes it internally\)$"),
    (nn.RNN(2, 2, nonlinearity="relu"), {}, r"'RNN' \(RNN: relu stays the same"),
    (scaled(), {}, r"scaled twice; got '0', Tanh\(alpha=2.0\): undo"),
    (nn.Sequential(nn.Tanh(), ss.nn.Arctan(1.5)), {}, r"twice; got '1', Arctan\(alpha=1.5\)"),
    (weight_norm(nn.LSTM(2, 2), "weight_hh_l0"), {}, "parametrized: scale it before"),
    (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh()),
        {"learnable": True, "num_parameters": 4, "example_inputs": X},
        "dimension 1 of each module's input; got 4, but '3' has 5: scale"),
]  # fmt: skip
WRONG_TYPES = [
    (network(), {"alpha": torch.tensor(2.0)}, "got a tensor"),
    (network(), {"include": [nn.Tanh]}, "include must be a pattern"),
    (network(), {"exclude": 3}, "exclude must be a pattern or a sequence of patterns; got 3 of type int"),
    (network(), {"learnable": "yes"}, "learnable must be True or False; got 'yes': pass learnable=True"),
    (network(), {"functional": 1}, "functional must be True or False; got 1"),
    (network(), {"subclasses": "no"}, "subclasses must be True or False; got 'no'"),
    (network(), {"dry_run": "no"}, "dry_run must be True or False; got 'no'"),
    (None, {}, "model must be a torch.nn.Module; got NoneType"),
    (tanh(), {"functions": ["tanh", 3]}, r"got \['tanh', 3\]: pass \("),
    (tanh(), {"functions": 3}, "functions must be a name or a seq"),
    (tanh(), {"example_inputs": [X]}, "a tensor or a tuple; got list"),
]


@pytest.mark.parametrize(
    ("error", "model", "options", "message"),
    [*((ValueError, *row) for row in WRONG_VALUES), *((TypeError, *row) for row in WRONG_TYPES)],
)
def test_refused_scaling(error, model, options, message):
    before = traces(model) if model is not None else None
    with pytest.raises(error, match=message):
        ss.scale_activations(model, **options)
    assert model is None or traces(model) == before


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (4, {}, TypeError, "model must be a torch.nn.Module; got int"),
        (tanh(), {}, ValueError, "must have scaled activations to undo; got none"),
        (
            nn.Sequential(ss.nn.Arctan()),
            {},
            ValueError,
            r"'0' is Arctan\(alpha=2.0\), torch.nn has no Arc",
        ),
        (scaled(), {"exclude": "*"}, ValueError, "'0' is Tanh.*not selected"),
        (scaled(), {"include": "1"}, ValueError, "names of scaled activations; got '1'"),
        (scaled(), {"dry_run": "yes"}, TypeError, "dry_run must be True or False"),
    ],
)
def test_refused_undoing(model, options, error, message):
    with pytest.raises(error, match=message):
        ss.unscale_activations(model, **options)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_model():
    with pytest.raises(ValueError, match=r"'0' \(Tanh: scripted: scale the model before torch.jit.script\)"):
        ss.scale_activations(torch.jit.script(tanh()))


def test_learned_alphas_come_before_ddp(tmp_path):
    address = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
        with pytest.raises(ValueError, match="in DistributedDataParallel: convert the model, then wrap it"):
            ss.scale_activations(model, learnable=True)
        assert [entry.name for entry in ss.scale_activations(model).changed] == ["1"]
        model(torch.ones(1, 2)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()


def test_undo_waits_for_a_monitor():
    model = nn.Sequential(nn.Linear(2, 2), ss.nn.Tanh())
    with ss.GradientMonitor(model):
        with pytest.raises(ValueError, match=r"'1' has a grad_sketch.*close\(\) the mon"):
            ss.unscale_activations(model)
        assert type(model[1]) is ss.nn.Tanh
    ss.unscale_activations(model)


def test_channels_of_a_part():
    """Where the number of alphas suits one of the modules, that one is scaled."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5), nn.Tanh())
    ss.scale_activations(model, learnable=True, num_parameters=4, example_inputs=X, include="1")
    model(X).sum().backward()


@pytest.mark.parametrize("base", [nn.LSTM, type("Own", (nn.LSTM,), {})])
def test_undo_of_a_parametrized_module(base):
    model = nn.Sequential(base(2, 2))
    ss.scale_activations(model, subclasses=True)
    weight_norm(model[0], "weight_hh_l0")
    before, x = traces(model), torch.ones(2, 3, 2)
    y = model(x)[0]
    with pytest.raises(ValueError, match=r"'0' is Parametrized.*parametrized: remove_parametrizations\(\) f"):
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
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), calls())
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


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.tanh, self.own = nn.Tanh(), ss.nn.Tanh(3.0)

    def head(self, x):
        return torch.atan(x)

    def forward(self, x):
        y = self.own(torch.tanh(self.tanh(x))) + x.sigmoid()
        y = F.softsign(y)
        return self.head(softsign(y))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = Functional(), nn.BatchNorm1d(3)

    def forward(self, x):
        return torch.tanh(self.inner(self.norm(x))).flatten()


def test_calls_without_example_inputs():
    model = Functional()
    report = ss.scale_activations(model, functional=True, exclude="own")
    assert [(e.name, e.before, e.after) for e in report.changed] == [
        ("tanh", "Tanh", "Tanh(alpha=2.0)"),
        ("Functional", "calls in forward", "tanh, arctan, softsign (alpha=2.0)"),
    ]
    undone = ss.unscale_activations(model, exclude="own", dry_run=True)
    assert [(e.name, e.before, e.after) for e in undone.changed] == [
        ("Functional", "calls of tanh, arctan, softsign (alpha=2.0)", "plain"),
        ("tanh", "Tanh(alpha=2.0)", "Tanh"),
    ]


def line_in(function: Any, line: int) -> str:
    return f"test_reports.py:{function.__code__.co_firstlineno + line}"


def test_calls_by_file_and_line():
    model = Outer()
    before, state = traces(model), copy.deepcopy(model.state_dict())
    options = {"functional": True, "exclude": "inner.own", "dry_run": True, "example_inputs": X}
    report = ss.scale_activations(model, **options)
    first, second, third = (line_in(Functional.forward, line) for line in (1, 2, 3))
    output = "gives the model's output, whose range grows to alpha"
    assert [(e.name, e.before, e.note) for e in report.changed] == [
        ("inner.tanh", "Tanh", ""),
        ("inner", "torch.tanh", first),
        ("inner", "F.softsign", second),
        ("inner", "F.softsign", third),
        ("inner", "torch.atan", line_in(Functional.head, 1)),
        ("Outer", "torch.tanh", f"{line_in(Outer.forward, 1)}, {output}"),
    ]
    assert [(e.name, e.before, e.note) for e in report.left] == [
        ("inner.own", "Tanh(alpha=3.0)", "scaled already"),
        ("inner", "Tensor.sigmoid", f"{first}: scaled only where functions= names 'sigmoid'"),
    ]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert traces(model) == before


def test_calls_that_only_functional_scales_are_warned_of():
    model = nn.Sequential(calls(), nn.Tanh(), nn.LSTMCell(3, 3), Forward(lambda m, x: torch.sigmoid(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = ss.scale_activations(model, dry_run=True)
        assert [(e.name, e.before, e.note) for e in report.unseen] == [
            ("2", "LSTMCell", "computes it internally")
        ]
        with pytest.raises(UserWarning, match="not scaled"):
            ss.scale_activations(model[:2], example_inputs=X)
        assert type(model[1]) is nn.Tanh
    message = rf"not scaled, .*torch.tanh in 0 \({line_in(calls, 1)}\); func"
    with pytest.warns(UserWarning, match=message):
        report = ss.scale_activations(model[:2], example_inputs=X)
    assert [(e.name, e.before) for e in report.unseen] == [("0", "torch.tanh")]


OUTPUT = "gives the model's output"
LAST = "the last module: if it gives the model's output"
GENERATOR = Forward(lambda m, x: m.main(x).view(-1), main=nn.Sequential(nn.Linear(3, 3), nn.Tanh()))


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Tanh()), None, {"1": OUTPUT}),
        (nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Flatten())), None, {"1.0": OUTPUT}),
        (nn.Sequential(nn.Tanh(), nn.Linear(3, 3)), None, {}),
        (nn.Tanh(), None, {"Tanh": OUTPUT}),
        (GENERATOR, None, {"main.1": LAST}),
        (GENERATOR, X, {"main.1": OUTPUT}),
        (nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Linear(3, 3)), (X,), {}),
        (nn.Sequential(nn.LSTM(3, 3)), X, {"0": OUTPUT}),
    ],
)
def test_the_models_own_output(model, inputs, expected):
    report = ss.scale_activations(model, example_inputs=inputs, dry_run=True)
    assert {e.name: e.note.split(",")[0] for e in report.changed if e.note} == expected
