"""What operations take, return and write has the right scale, or fold() says that it cannot."""

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
from tests.oracles.models import Forward
from tests.oracles.random_models import CHANNELS, LENGTH, PASSING, SHAPE, statement

X = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    """Two branches of one alpha, joined by a function (model, h, g) that may write into h."""

    def __init__(self, join, calls):
        super().__init__()
        self.a, self.b, self.c, self.plain = (nn.Linear(LENGTH, LENGTH) for _ in range(4))
        self.act, self.calls, self.join = ss.nn.Tanh(2.0), calls, join
        self.relu, self.prelu, self.dropout = nn.ReLU(inplace=True), nn.PReLU(), nn.Dropout()
        self.gain, self.scale = nn.Buffer(torch.rand(CHANNELS, 1) + 0.5), nn.Parameter(torch.ones(LENGTH))
        self.count = nn.Buffer(torch.zeros(()))

    def activation(self, x):
        return ss.tanh(x, 2.0) if self.calls else self.act(x)

    def forward(self, x):
        h, g = self.activation(self.a(x)), self.activation(self.b(x))
        return self.c(self.join(self, h, g))


def assert_same_outputs(folded, model):
    """Of two calls, the second of which sees what the first has written into buffers."""
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(folded(X), model(X), rtol=1e-12, atol=1e-12)


# In a copy of the model with a graph for its forward, and in one with the model's own forward.
both = pytest.mark.parametrize("calls", [True, False], ids=["functions", "modules"])


@both
@pytest.mark.parametrize("join", PASSING)
def test_operations(join, calls):
    model = randomized(Model(join, calls))
    folded = ss.fold(model)
    for other in (copy.deepcopy(folded), folded, ss.fold(model, X)):
        assert_same_outputs(other, copy.deepcopy(model))


REFUSED = {
    "diff": (lambda m, h, g: h.diff(prepend=m.scale.expand_as(h)[..., :1]), "'scale', which forward reads"),
    "diff append": (lambda m, h, g: h.diff(append=m.scale.expand_as(h))[..., :6], "'scale', which"),
    "cat": (lambda m, h, g: torch.cat((h, m.scale.expand_as(h)), 1)[:, :4], "'scale', which forward reads"),
    "prelu": (lambda m, h, g: F.prelu(m.plain(g), h.mean((0, 2))), "prelu() at"),
    "prelu of a scaled": (lambda m, h, g: F.prelu(h, h.mean((0, 2))), "prelu() at"),
    "repeats": (lambda m, h, g: g.roll(h.argmax().item() + h.sum().long().item()), "sum() at"),
    "out of several": (lambda m, h, g: torch.aminmax(h, dim=1, keepdim=True)[0] + h, "aminmax() at"),
    "slice of several": (lambda m, h, g: h.max(1)[:1][0][:, None] + h, "getitem() at"),
    "indices used": (lambda m, h, g: h + h.max(1, True)[1], "getitem() at"),
    "addcmul": (lambda m, h, g: torch.addcmul(m.scale, h, m.scale), "addcmul() at"),
    "lerp": (lambda m, h, g: torch.lerp(m.scale, m.scale, h), "lerp() at"),
    "masked_fill": (lambda m, h, g: h.masked_fill(g > 0, 1.0), "masked_fill() at"),
    "scatter": (lambda m, h, g: torch.zeros_like(g).scatter(1, g.argsort(1), h), "scatter() at"),
    "matmul": (lambda m, h, g: (h @ h.mT) @ h, "matmul() at"),
    "random alpha": (lambda m, h, g: ss.tanh(h, torch.rand_like(m.scale)[0]), "depends on the model"),
    "star": (lambda m, h, g: sum(h.chunk(2, 1)) + h, "torch.fx cannot trace"),
    "numbers": (statement(lambda m, h, g: h.add_(1)), "takes the number 1"),
    "item 1": (statement(lambda m, h, g: h.__setitem__((slice(None), 0), 1)), "writes the number 1"),
    "product": (statement(lambda m, h, g: h.mul_(g)), "mul() at"),
    "statement": (statement(lambda m, h, g: h.__ipow__(2)), "at"),
    "scaled otherwise": (statement(lambda m, h, g: h.add_(m.plain(g) * m.plain(g))), "mul() at"),
    "view": (statement(lambda m, h, g: h.view(-1)[:4].add_(m.count)), "'count', which forward reads,"),
    "copy": (statement(lambda m, h, g: h.copy_(m.plain(g).exp(), False)), "exp() at"),
    "out=": (statement(lambda m, h, g: torch.mul(g, 2, out=h)), "mul() at"),
    "foreach": (statement(lambda m, h, g: torch._foreach_add_([h, g], 1.0)), "foreach_add"),
    "compare in place": (statement(lambda m, h, g: h.gt_(0)), "gt() at"),
    "buffer of inputs": (lambda m, h, g: h * m.gain.mul_(h.mean((0, 2))[:, None].detach()), "mul() at"),
    "view of a buffer": (
        lambda m, h, g: h * (m.gain.view(4, 1), m.gain.add_(g[0, :, :1].exp()))[0],
        "mul() at",
    ),
    "numbers of zeros": (lambda m, h, g: h + torch.zeros_like(m.scale).add_(1), "does not depend"),
    "alpha": (lambda m, h, g: ss.tanh(m.plain(h), m.gain[0].exp_()), "depends on the model's inputs"),
    "data": (lambda m, h, g: setattr(h, "data", h * 2) or h, "sets the attribute 'data' of a tensor"),
}


@both
@pytest.mark.parametrize("name", REFUSED)
def test_refused_operations(name, calls):
    join, message = REFUSED[name]
    refuses(Model(join, calls).double(), message, inputs=X if calls and name not in ("cat", "data") else None)


@pytest.mark.parametrize("join", [join for join in PASSING if join.__name__ not in ("<lambda>", "operation")])
def test_pickled_statements(join):
    model = randomized(Model(join, True))
    folded = pickle.loads(pickle.dumps(ss.fold(model)))
    assert_same_outputs(folded, model)


def test_scaled_calls_in_place():
    def forward(m, x):
        h, g = m.a(x), torch.tanh(m.b(x))
        h.tanh_()
        h.add_(g)
        return m.c(h) * torch.tanh(m.gain)

    parts = {name: nn.Linear(LENGTH, LENGTH) for name in "abc"}
    model = randomized(Forward(forward, **parts, gain=nn.Buffer(torch.rand(LENGTH))))
    ss.scale_activations(model, alpha=3.0, functional=True)
    for inputs in (None, X):
        assert_same_outputs(ss.fold(model, inputs), model)


def test_example_inputs_and_parameters_written_into():
    def forward(m, x):
        m.norm.data.clamp_(max=0.5)
        return m.body(x.mul_(2)) * m.norm

    norm = nn.Parameter(torch.ones((), dtype=torch.float64))
    body = nn.Sequential(nn.Linear(LENGTH, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    model, x = Forward(forward, body=body, norm=norm).double(), X.clone()
    folded = ss.fold(model, x)
    assert torch.equal(x, X)
    assert norm == 1
    torch.testing.assert_close(folded(X.clone()), model(X.clone()))


class Skipping(nn.Module):
    def __init__(self, calls=False):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(6, 4), nn.Linear(4, 6), ss.nn.Tanh(2.0)
        self.calls = calls

    def forward(self, x, skip=None, factor=1.0):
        h = ss.tanh(self.first(x)) if self.calls else self.act(self.first(x))
        if skip is not None:
            h = h + skip
        if factor != 1.0:
            h = h * factor + 1
        return self.second(h)


@both
def test_optional_arguments(calls):
    """The copy takes what it was folded for; with anything else it raises."""
    model, skip = randomized(Skipping(calls)), X[..., :4]
    copies = [ss.fold(model), pickle.loads(pickle.dumps(ss.fold(model, X))), copy.deepcopy(ss.fold(model))]
    for folded in copies:
        torch.testing.assert_close(folded(X), model(X))
        for wrong in ({"skip": skip}, {"factor": 2.0}):
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                folded(X, **wrong)
        with pytest.raises(TypeError, match="positional arguments"):
            folded(X, skip)
    refuses(model, "the model's input 'skip'", inputs=(X, skip))


def test_optional_argument_that_is_given():
    class Model(Skipping):
        def forward(self, x, skip=None):
            if skip is not None:
                return self.second(self.act(self.first(skip)))
            return self.second(self.act(self.first(x))).exp()

    model = randomized(Model())
    folded = ss.fold(model, (X, X + 1))
    torch.testing.assert_close(folded(X, X + 1), model(X, X + 1))
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        folded(X)


def test_example_inputs_that_do_not_fit():
    for inputs in ((X[..., :3],), (X, None)):
        with pytest.raises(ValueError, match="example_inputs must be what the model is called with"):
            ss.fold(randomized(Skipping()), inputs)


def test_calls_inside_a_layer_of_torch():
    """Where the calls of a layer are scaled that PyTorch's own class makes."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=torch.tanh, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)).double()
    ss.scale_activations(model, functional=True)
    refuses(model, "cannot fold")


class Keeping(nn.Module):
    """Its forward keeps something in `last`, before or after which it uses what it kept before."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(LENGTH, 4), ss.nn.Tanh(2.0), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(CHANNELS)
        self.last, self.kept = [], forward

    def forward(self, x):
        return self.b(self.kept(self, x, self.act(self.a(x))))


def keeping_values(m, x, h):
    m.last.append(h)
    return h


def keeping_state(kept):
    def forward(m, x, h):
        h = h + tree_leaves(m.last)[0] if m.last != [] else h
        m.last = kept(h)
        return h

    return forward


def caching_sizes(m, x, h):
    if isinstance(m.last, list):
        m.last = torch.ones(h.size(-1), dtype=torch.float64) / 3
    return h * m.last


@pytest.mark.parametrize(
    ("forward", "messages"),
    [
        (keeping_values, ("'act' (Tanh)", "is kept in 'last', where its scale is 1")),
        *(
            (keeping_state(kept), ("whose forward keeps 'last' for its next call",))
            for kept in (lambda x: x, lambda x: [x], lambda x: {"state": (x, 1)})
        ),
        (
            lambda m, x, h: m.norm(h) + m.norm.running_mean.sum(),
            ("'norm.running_mean' and 'norm.running_mean, as forward reads it,' are one",),
        ),
    ],
)
def test_what_a_copy_would_keep(forward, messages):
    """Whoever reads it would see other values in the copy."""
    refuses(Keeping(forward).double().eval(), *messages)


def test_sizes_kept_for_the_next_call():
    model = randomized(Keeping(caching_sizes))
    assert_same_outputs(ss.fold(model), model)


def counting(m, h):
    m.calls += 1
    return h


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda m, h: h + torch.zeros(LENGTH).normal_(), "changes random numbers, drawn once"),
        (torch.no_grad()(lambda m, h: h * 2), "mode of gradients or autocast at test_operations.py"),
        (torch.autocast("cpu")(lambda m, h: h * 2), "mode of gradients or autocast at test_operations.py"),
        (counting, "changes calls: leave that out"),
    ],
)
def test_what_a_graph_would_freeze(operation, named):
    model = Model(lambda m, h, g: operation(m, m.plain(h)), True)
    state = torch.get_rng_state()
    refuses(model, "whose forward calls scaled functions", named)
    assert torch.equal(torch.get_rng_state(), state)
    ss.fold(Model(model.join, False))  # whose own forward the copy keeps
