"""What `scale_activations` sees besides modules: calls in forward, and sigmoids that are gates."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.nn.functional import softsign

import sigscale as ss
from sigscale.conversion import copies

ACT = "tanh"


def swish(x):
    return x * x.sigmoid()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.tanh = nn.Tanh()

    def head(self, x):
        return torch.atan(x)

    def forward(self, x):
        y = self.tanh(self.linear(x))
        y = torch.tanh(y) + y.sigmoid() + F.softsign(y)
        return self.head(softsign(y)) + math.tanh(0.0) * swish(y)


def functional_values(model: Functional, x: torch.Tensor, alpha: float) -> torch.Tensor:
    """The model in fp64 with every activation scaled, written out."""

    def scaled(f, z):
        return alpha * f(z / alpha)

    y = scaled(torch.tanh, model.linear(x))
    y = scaled(torch.tanh, y) + scaled(torch.sigmoid, y) + scaled(lambda u: u / (1 + u.abs()), y)
    return scaled(torch.arctan, scaled(lambda u: u / (1 + u.abs()), y))


def test_calls_are_named_with_their_lines():
    model = nn.Sequential(
        Functional(), Functional(), nn.LSTMCell(3, 3), nn.RNNCell(3, 3, nonlinearity="relu")
    )
    with pytest.warns(UserWarning, match=r"since no modules compute them: torch.tanh in 0 and 1 more \(Func"):
        report = ss.scale_activations(model)
    line = Functional.forward.__code__.co_firstlineno
    notes = {(entry.before, entry.note.split(", ")[-1]) for entry in report.unseen}
    assert notes == {
        ("torch.tanh", f"test_calls.py:{line + 2}"),
        ("Tensor.sigmoid", f"test_calls.py:{line + 2}"),
        ("F.softsign", f"test_calls.py:{line + 2}"),
        ("F.softsign", f"test_calls.py:{line + 3}"),
        ("torch.atan", f"test_calls.py:{Functional.head.__code__.co_firstlineno + 1}"),
        ("Tensor.sigmoid", f"test_calls.py:{swish.__code__.co_firstlineno + 1}"),
        ("LSTMCell", "computes it inside"),
    }
    assert {entry.name for entry in report.unseen} == {"0 and 1 more", "2"}


class Attribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.act, self.plain = torch.tanh, nn.Tanh()

    def forward(self, x):
        return self.act(self.plain(x)) + len(ACT)


def test_functions_kept_as_attributes():
    encoder = nn.TransformerEncoderLayer(4, 1, 8, activation=torch.tanh)
    with pytest.warns(UserWarning, match="since no modules compute them"):
        report = ss.scale_activations(nn.ModuleDict({"encoder": encoder, "own": Attribute()}))
    assert [(entry.name, entry.before, entry.note) for entry in report.unseen] == [
        ("encoder", "torch.tanh", "its attribute 'activation'"),
        ("own", "torch.tanh", "its attribute 'act'"),
    ]


def test_functions_that_a_trace_does_not_reach():
    """A trace stops at modules of torch.nn, whatever functions these were given."""
    encoder = nn.TransformerEncoderLayer(4, 1, 8, activation=torch.tanh)
    model = nn.Sequential(encoder, nn.Linear(4, 4), nn.Tanh())
    with pytest.warns(UserWarning, match="torch.tanh in 0 .*modules of PyTorch call them inside"):
        report = ss.scale_activations(model, functional=True)
    assert [(entry.name, entry.note) for entry in report.unseen] == [("0", "its attribute 'activation'")]
    assert [entry.name for entry in report.changed] == ["2"]


class Quiet(nn.Module):
    """Names like those of activations that are none."""

    def __init__(self):
        super().__init__()
        self.tanh, self.sigmoid = nn.Tanh(), nn.ReLU()

    def forward(self, x):
        return self.sigmoid(self.tanh(x)) + math.tanh(1.0)


def test_nothing_is_seen_where_nothing_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ss.scale_activations(Quiet()).unseen


@pytest.mark.parametrize("learnable", [False, True])
def test_functional(learnable):
    model = Functional().double()
    x = torch.randn(5, 3, dtype=torch.float64)
    with pytest.warns(UserWarning, match="look like gates .*'sigmoid_1' \\(multiplies another tensor"):
        report = ss.scale_activations(model, 1.7, functional=True, learnable=learnable)
    torch.testing.assert_close(report.model(x), functional_values(model, x, 1.7))
    assert report.model.tanh is model.tanh
    assert report.model.linear.weight is model.linear.weight
    assert [entry.name for entry in report.changed] == [
        "tanh", "tanh_1", "sigmoid", "softsign", "softsign_1", "arctan", "sigmoid_1",
    ]  # fmt: skip
    assert len(report.parameters) == 7 * learnable
    assert set(report.parameters) <= set(report.model.parameters())
    assert not report.unseen
    report.model(x).sum().backward()
    for copied in (copy.deepcopy(report.model), pickle.loads(pickle.dumps(report.model))):
        assert torch.equal(copied(x), report.model(x))
    undone = ss.unscale_activations(report.model, exclude="arctan")
    assert type(report.model.sigmoid) is nn.Sigmoid
    assert type(model.tanh) is nn.Tanh
    assert [entry.name for entry in undone.left] == ["arctan"]


def test_functional_by_patterns_and_again():
    model = nn.Sequential(nn.Linear(3, 3), Functional())
    first = ss.scale_activations(model, 1.5, functional=True, include="1.tanh*")
    assert [entry.name for entry in first.changed] == ["1.tanh", "1.tanh_1"]
    second = ss.scale_activations(first.model, 3.0, functional=True, include="arctan")
    assert second.model.get_submodule("arctan").alpha == 3.0
    assert second.model.get_submodule("1.tanh_1").alpha == 1.5


class Awkward(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))
        self.log = []

    def forward(self, x):
        self.seen += 1
        self.log.append(x)
        y = x * torch.tanh(self.weight)
        z = (y + 1).tanh_()
        return torch.tanh(z, out=torch.empty(3)) + z.tanh()


def test_calls_that_stay():
    model = Awkward()
    report = ss.scale_activations(model, functional=True)
    assert [entry.before for entry in report.changed] == ["Tensor.tanh"]
    assert [(entry.before, entry.note.split(":")[0]) for entry in report.unseen] == [
        ("torch.tanh", "of a parameter or a buffer, not of an activation"),
        ("Tensor.tanh_", "in place, which may change other tensors"),
        ("torch.tanh", "with further arguments"),
    ]
    assert model.seen.item() == 0
    assert model.log == []


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Sigmoid())

    def forward(self, x):
        return x * self.inner(x).view(-1, 4)


class Used(nn.Module):
    """A sigmoid, and what becomes of it."""

    def __init__(self, use):
        super().__init__()
        self.linear, self.act, self.use = nn.Linear(4, 4), nn.Sigmoid(), use

    def forward(self, x):
        return self.linear(self.use(self.act(self.linear(x)), x))


class Branching(Squeeze):
    def __init__(self):
        super().__init__()
        self.gate, self.hidden = nn.Sigmoid(), nn.Sigmoid()

    def forward(self, x):
        return self.hidden(self.gate(super().forward(x))) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("model", "notes"),
    [
        (nn.Sequential(nn.Sigmoid(), nn.Linear(2, 2)), {}),
        (nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Sigmoid())), {"1.0": "gives the model's output"}),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), nn.Linear(2, 2)), {}),
        (nn.Sequential(nn.Tanh()), {}),
        (Squeeze(), {"inner.3": "multiplies another tensor"}),
        (nn.Sequential(Squeeze(), nn.Sigmoid(), nn.Flatten()), {
            "0.inner.3": "multiplies another tensor", "1": "gives the model's output",
        }),
        (Used(lambda p, x: p + x), {}),
        (Used(lambda p, x: p - 1), {}),
        (Used(lambda p, x: torch.lerp(x, -x, p)), {"act": "multiplies another tensor"}),
        (Used(lambda p, x: torch.einsum("ij,ij->ij", x, p)), {"act": "multiplies another tensor"}),
        (Used(lambda p, x: x / p), {"act": "multiplies another tensor"}),
        (Used(lambda p, x: 1 - p), {"act": "is used like a probability"}),
        (Used(lambda p, x: torch.rsub(p, 1)), {"act": "is used like a probability"}),
        (Used(lambda p, x: p.log()), {"act": "is used like a probability"}),
        (Used(lambda p, x: torch.bernoulli(p)), {"act": "is used like a probability"}),
        (Used(lambda p, x: torch.where(p > 0.5, x, -x)), {"act": "is used like a probability"}),
        (Branching(), {"gate": "its name is that of a gate", "inner.3": "the last module of its Sequential"}),
    ],
)  # fmt: skip
def test_gates(model, notes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = ss.scale_activations(model, dry_run=True)
    found = {entry.name: entry.note.split(":")[0] for entry in report.changed if entry.note}
    assert {name: note.split(" or ")[0] for name, note in found.items()} == notes
    if not notes:
        return
    with pytest.warns(UserWarning, match="exclude=") as caught:
        ss.scale_activations(model)
    assert len(caught) == 1
    assert all(repr(name) in str(caught[0].message) for name in notes)
    ss.unscale_activations(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.scale_activations(model, include=[entry.name for entry in report.changed])


def test_a_warning_that_is_an_error_leaves_the_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="look like gates"):
            ss.scale_activations(model)
    assert type(model[1]) is nn.Sigmoid


def test_a_look_leaves_hooks_and_lists():
    model, calls = Squeeze(), []
    model.inner.register_forward_hook(lambda *_: calls.append("hook"))
    ss.scale_activations(model, dry_run=True)
    assert not calls
    model(torch.ones(1, 4))
    assert calls == ["hook"]


class Block(nn.Module):
    """A sigmoid whose values leave the block, and one that is a gate where a tensor is doubled."""

    def __init__(self, doubled=False, inner=None):
        super().__init__()
        self.linear, self.act, self.inner, self.doubled = nn.Linear(4, 4), nn.Sigmoid(), inner, doubled

    def forward(self, x):
        if self.doubled:
            x = x * self.inner(x)
        return self.act(self.linear(x))


class Parts(nn.Module):
    """Like blocks, of whose results one is a gate, one a probability, one goes on, through like modules."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(True, Block()) for _ in range(3))
        self.passing = nn.ModuleList(nn.Sequential(nn.Identity(), Through()) for _ in range(2))

    def forward(self, x):
        x = x * self.passing[0](self.blocks[0](x))
        x = x + (1 - self.passing[1](self.blocks[1](x)))
        return self.blocks[2].linear(self.blocks[2](x))


class Through(nn.Module):
    def forward(self, x):
        return x.view(-1, 4)


def notes(model):
    return {e.name: e.note.split(":")[0] for e in ss.scale_activations(model, dry_run=True).changed if e.note}


def test_like_blocks_by_what_becomes_of_each():
    gate, probability = "multiplies another tensor", "is used like a probability"
    expected = {f"blocks.{i}.inner.act": gate for i in range(3)}
    assert notes(Parts()) == expected | {"blocks.0.act": gate, "blocks.1.act": probability}


@pytest.mark.parametrize(
    "change", [{"doubled": False}, {"training": False}, {"note": [1]}, {"inner": Block(inner=nn.Tanh())}]
)
def test_blocks_that_are_not_alike(change):
    class Changing(Block):
        def forward(self, x):
            alike = self.doubled and self.training and self.inner.inner is None and not hasattr(self, "note")
            y = self.act(self.linear(x))
            return x * y if alike else x + y

    model = nn.Sequential(Changing(True, Block()), Changing(True, Block()), nn.Linear(4, 4))
    assert notes(model) == dict.fromkeys(("0.act", "1.act"), "multiplies another tensor")
    for name, value in change.items():
        setattr(model[1], name, value)
    assert notes(model) == {"0.act": "multiplies another tensor"}


def test_like_blocks_that_share_a_module_or_are_called_again():
    shared = Block(), Block()
    shared[1].act = shared[0].act

    class Twice(nn.Module):
        def __init__(self, *blocks):
            super().__init__()
            self.blocks = nn.ModuleList(blocks)

        def forward(self, x):
            x = self.blocks[0].linear(self.blocks[0](x) + self.blocks[0](x))
            return self.blocks[0].linear(x * self.blocks[1](x))

    assert notes(Twice(*shared)) == {"blocks.0.act": "multiplies another tensor"}
    assert notes(Twice(Block(), Block())) == {"blocks.1.act": "multiplies another tensor"}


class Keeping(nn.Module):
    """What a copy must keep together, or make in a way of its own."""

    def __init__(self):
        super().__init__()
        self.seen, self.own, self.act = [], Own(), nn.Tanh()
        self.alias, self.me, self.table = self.seen, [self], {}
        self.same = self.table


class Own(nn.Module):
    def __deepcopy__(self, memo):
        result = Own()
        result.copied = True
        return result


class Squared(nn.Module):
    """A sigmoid times itself, which went through a module that gives what it takes."""

    def __init__(self):
        super().__init__()
        self.act, self.linear, self.gives = nn.Sigmoid(), nn.Linear(4, 4), Gives()

    def forward(self, x):
        p = self.act(x)
        return self.linear(p * self.gives(p))


class Gives(nn.Module):
    def forward(self, x):
        return x


def test_a_square_is_no_gate():
    assert notes(nn.Sequential(Squared(), Squared())) == {}


def test_a_copy_is_a_deep_one():
    model = nn.Sequential(Keeping(), nn.BatchNorm1d(2))
    model.register_forward_hook(print)
    new = copies.copied(model, (model[1].weight, model[0].act))
    assert new[0] is not model[0]
    assert new[0].alias is new[0].seen is not model[0].seen
    assert new[0].same is new[0].table is not model[0].table
    assert new[0].me[0] is new[0]
    assert new[0].own.copied
    assert new[0].act is model[0].act
    assert new[1].weight is model[1].weight
    assert new[1].bias is not model[1].bias
    assert new[1].running_mean is not model[1].running_mean
    assert list(new._forward_hooks.values()) == [print]
    expected = vars(copy.deepcopy(model[1]))
    assert vars(new[1]).keys() == expected.keys()
    assert all(type(value) is type(expected[name]) for name, value in vars(new[1]).items())
