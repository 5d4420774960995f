"""Statements in place, in forward: fold() keeps them, and gives what they write into the right scale."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.utils._pytree import tree_leaves

import sigscale as ss
from tests.oracles.folding import randomized, refuses

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Two branches of one alpha, joined by a function (model, a, b) that may write into a."""

    def __init__(self, join, calls):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.plain = nn.Linear(4, 4)
        self.act, self.calls_functions, self.join = ss.nn.Tanh(2.0), calls, join
        self.relu, self.prelu = nn.ReLU(inplace=True), nn.PReLU()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("gain", torch.rand(4) + 0.5)

    def activation(self, x):
        return ss.tanh(x, 2.0) if self.calls_functions else self.act(x)

    def forward(self, x):
        h, g = self.activation(self.a(x)), self.activation(self.b(x))
        return self.c(self.join(self, h, g))


def statement(*writes):
    """A function that runs statements for their effect, and returns what they wrote into."""

    def join(m, h, g):
        for write in writes:
            write(m, h, g)
        return h

    return join


def increment(m, h, g):
    old = h
    h += g
    return old


def item_of_transposed(m, h, g):
    h.T[0] = g[:, 0]


def decrement_view(m, h, g):
    row = h.view(-1)
    row -= g.view(-1)


def chunks(m, h, g):
    first, _ = h.detach().chunk(2, 1)
    first.mul_(0.5)


def size_counts(m, h, g):
    n = old = h.size(0)
    n += 1
    return h / n + g / old


def count_by_statement(m, h, g):
    m.count.data.add_(1)
    m.count.mul_(3)
    return h * m.count


FOLDED = {
    "add_": statement(lambda m, h, g: h.add_(g)),
    "sub_ with a factor": statement(lambda m, h, g: h.sub_(g, alpha=3)),
    "mul_": statement(lambda m, h, g: h.mul_(0.5)),
    "mul_ buffer": statement(lambda m, h, g: h.mul_(m.gain)),
    "relu_": statement(lambda m, h, g: F.relu_(h)),
    "torch.relu_": statement(lambda m, h, g: torch.relu_(h)),
    "relu inplace=": statement(lambda m, h, g: F.relu(h, inplace=True)),
    "leaky_relu inplace by position": statement(lambda m, h, g: F.leaky_relu(h, 0.1, True)),
    "module": statement(lambda m, h, g: m.relu(h)),
    "increment": increment,
    "item 0": statement(lambda m, h, g: h.__setitem__((slice(None), 0), 0)),
    "item of a value": statement(lambda m, h, g: h.__setitem__((slice(None), 0), g[:, 1])),
    "item by mask": statement(lambda m, h, g: h.__setitem__(h > 0, 0)),
    "item of a transpose": statement(item_of_transposed),
    "copy_": statement(lambda m, h, g: h.copy_(g)),
    "copy_ by name": statement(lambda m, h, g: h.copy_(non_blocking=False, other=g)),
    "view": statement(lambda m, h, g: h.view(-1).add_(g.view(-1))),
    "view by statement": statement(decrement_view),
    "chunk": statement(chunks),
    "data": statement(lambda m, h, g: h.data.mul_(0.5)),
    "slice": statement(lambda m, h, g: h[:, 1:].add_(g[:, 1:])),
    "select, detach": statement(lambda m, h, g: h.detach().select(1, 0).neg_()),
    "squeeze_": lambda m, h, g: h.unsqueeze_(0).squeeze_(0).add_(g),
    "buffer counts": lambda m, h, g: h * m.count.add_(1),
    "buffer by data": count_by_statement,
    "sizes": size_counts,
    "buffer scaled by inputs elsewhere": lambda m, h, g: h + 0 * g.mul_(m.gain.view_as(m.gain)),
}


# In a copy of the model with a graph for its forward, and in one with the model's own forward.
@pytest.mark.parametrize("calls", [True, False], ids=["functions", "modules"])
@pytest.mark.parametrize("join", FOLDED.values(), ids=FOLDED)
def test_statements_in_place(join, calls):
    model = randomized(Model(join, calls))
    model.count.zero_()
    folded = ss.fold(model)
    again = copy.deepcopy(folded)
    for _ in range(2):  # the second call sees what the first has written into buffers
        expected = model(X)
        torch.testing.assert_close(folded(X), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(again(X), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ss.fold(model, X)(X), model(X), rtol=1e-12, atol=1e-12)


REFUSED = {
    "numbers": (statement(lambda m, h, g: h.add_(1)), "takes the number 1"),
    "item 1": (statement(lambda m, h, g: h.__setitem__((slice(None), 0), 1)), "writes the number 1"),
    "product": (statement(lambda m, h, g: h.mul_(g)), "mul() at"),
    "statement": (statement(lambda m, h, g: h.__ipow__(2)), "at"),
    "scaled otherwise": (statement(lambda m, h, g: h.add_(m.plain(g) * m.plain(g))), "mul() at"),
    "view": (statement(lambda m, h, g: h.view(-1)[:4].add_(m.gain)), "'gain', which forward reads,"),
    "copy": (statement(lambda m, h, g: h.copy_(m.plain(g).exp(), False)), "exp() at"),
    "out=": (statement(lambda m, h, g: torch.mul(g, 2, out=h)), "mul() at"),
    "foreach": (statement(lambda m, h, g: torch._foreach_add_([h, g], 1.0)), "foreach_add"),
    "compare in place": (statement(lambda m, h, g: h.gt_(0)), "gt() at"),
    "buffer of inputs": (lambda m, h, g: h * m.gain.mul_(h.mean(0).detach()), "mul() at"),
    "view of a buffer": (lambda m, h, g: h * (m.gain.view(4), m.gain.add_(g[0].exp()))[0], "mul() at"),
    "numbers of zeros": (lambda m, h, g: h + torch.zeros_like(m.scale).add_(1), "does not depend"),
    "alpha": (lambda m, h, g: ss.tanh(m.plain(h), m.gain[0].exp_()), "depends on the model's inputs"),
    "data": (lambda m, h, g: setattr(h, "data", h * 2) or h, "sets the attribute 'data' of a tensor"),
}


@pytest.mark.parametrize("calls", [True, False], ids=["functions", "modules"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_statements(name, calls):
    join, message = REFUSED[name]
    model = Model(join, calls)
    model.scale = nn.Parameter(torch.ones(4))
    refuses(model, message)


@pytest.mark.parametrize(
    "join",
    [
        increment,
        count_by_statement,
        *(FOLDED[key] for key in ("item by mask", "view by statement", "buffer counts")),
    ],
)
def test_pickled_statements(join):
    model = randomized(Model(join, True))
    del model.join
    type(model).join = staticmethod(join)
    try:
        folded = pickle.loads(pickle.dumps(ss.fold(model)))
        for _ in range(2):
            torch.testing.assert_close(folded(X), model(X), rtol=1e-12, atol=1e-12)
    finally:
        del type(model).join


def test_scaled_calls_in_place():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h, g = self.a(x), torch.tanh(self.b(x))
            h.tanh_()
            h.add_(g)
            return self.c(h)

    model = randomized(Plain())
    ss.scale_activations(model, alpha=3.0, functional=True)
    torch.testing.assert_close(ss.fold(model, X)(X), model(X), rtol=1e-12, atol=1e-12)


def test_example_inputs_written_into():
    class InPlace(nn.Sequential):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model = InPlace(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2)).double()
    x = X.clone()
    folded = ss.fold(model, x)
    assert torch.equal(x, X)
    torch.testing.assert_close(folded(X.clone()), model(X.clone()))


def test_parameter_written_into():
    class Constrained(nn.Sequential):
        def forward(self, x):
            self.norm.data.clamp_(max=0.5)
            return super().forward(x) * self.norm

    model = Constrained(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2)).double()
    model.register_parameter("norm", nn.Parameter(torch.ones((), dtype=torch.float64)))
    folded = ss.fold(model, X)
    assert model.norm == 1
    torch.testing.assert_close(folded(X), model(X))


class Keeping(nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 4)
        self.calls, self.last = calls, []

    def forward(self, x):
        h = ss.tanh(self.a(x)) if self.calls else self.act(self.a(x))
        self.last.append(h)
        return self.b(h)


def test_values_kept_in_attributes():
    """Whoever reads them would see other values in the copy."""
    refuses(Keeping(False), "'act' (Tanh)", "is kept in 'last', where its scale is 1")


@pytest.mark.parametrize("kept", [lambda x: x, lambda x: [x], lambda x: {"state": (x, 1)}])
def test_values_kept_for_the_next_call(kept):
    class Stateful(Keeping):
        def forward(self, x):
            h = self.act(self.a(x))
            if self.last != []:
                h = h + tree_leaves(self.last)[0]
            self.last = kept(x)
            return self.b(h)

    refuses(Stateful(False), "whose forward keeps 'last' for its next call")


def test_sizes_kept_for_the_next_call():
    class Caching(Keeping):
        def forward(self, x):
            if isinstance(self.last, list):
                self.last = torch.ones(x.size(1), dtype=x.dtype) / 3
            return self.b(self.act(self.a(x)) * self.last)

    model = randomized(Caching(False))
    torch.testing.assert_close(ss.fold(model)(X), model(X))


def test_attributes_changed_by_a_graph():
    class Counting(Keeping):
        def forward(self, x):
            self.calls += 1
            return self.b(ss.tanh(self.a(x)))

    refuses(Counting(1), "Counting, whose forward calls scaled functions", "changes calls: leave that out")


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda h: h + torch.zeros(4).normal_(), "changes random numbers, drawn once"),
        (torch.no_grad()(lambda h: h * 2), "changes the mode of gradients or autocast at test_writes.py"),
        (
            torch.autocast("cpu")(lambda h: h * 2),
            "changes the mode of gradients or autocast at test_writes.py",
        ),
    ],
)
def test_what_a_graph_would_freeze(operation, named):
    model = Model(lambda m, h, g: operation(m.plain(h)), True)
    state = torch.get_rng_state()
    refuses(model, "whose forward calls scaled functions", named)
    assert torch.equal(torch.get_rng_state(), state)
    ss.fold(Model(model.join, False))  # whose own forward the copy keeps


def test_scaled_calls_of_buffers():
    class OfBuffer(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gain = nn.Linear(4, 4), nn.Buffer(torch.rand(4))

        def forward(self, x):
            return self.a(x) * torch.tanh(self.gain)

    model = randomized(OfBuffer())
    ss.scale_activations(model, functional=True)
    torch.testing.assert_close(ss.fold(model)(X), model(X), rtol=1e-12, atol=1e-12)


def test_running_statistics_read_in_forward():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = nn.Linear(4, 4), nn.Linear(4, 4), ss.nn.Tanh(2.0)
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.b(self.norm(self.act(self.a(x)))) + self.norm.running_mean * 2

    refuses(Reading().eval(), "'norm.running_mean' and 'norm.running_mean, as forward reads it,' are one")
