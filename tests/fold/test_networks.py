"""fold() gives plain networks with the same outputs, whatever the architecture.

Random models go through scale_activations(), unscale_activations() and fold(): right, or refused by name.
With `pytest -m slow tests/fold/test_networks.py` there are SIGSCALE_RANDOM_MODELS of them.
"""

from __future__ import annotations

import copy
import os
import random
import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

import sigscale as ss
from tests.oracles.folding import activation, check, randomized
from tests.oracles.random_models import CHANNELS, SHAPE, Program, by_formula

ALPHAS = st.floats(0.1, 20)


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


class Dense(Residual):
    def forward(self, x):
        return torch.cat([x, self.branch(x)], 1)


@st.composite
def acts(draw, channels=1):
    """An activation of any function and alpha, learned or not."""
    name, alpha = draw(st.sampled_from(list(ss.FUNCTIONS))), draw(ALPHAS)
    kind = draw(st.sampled_from(["fixed", "learned", "by channel"] if channels > 1 else ["fixed", "learned"]))
    if kind == "fixed":
        return activation(name, alpha)
    return activation(name, alpha, learnable=True, num_parameters=channels if kind == "by channel" else 1)


@st.composite
def convs(draw, c_in, c_out):
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if c_in % g == c_out % g == 0]))
    kind = draw(st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]))
    return kind(c_in, c_out, 3, padding=1, groups=groups, bias=draw(st.booleans()))


@st.composite
def conv_nets(draw, by_channel=False):
    layers, c = [], 4
    for _ in range(draw(st.integers(1, 4))):
        c_in, c = c, draw(st.sampled_from([2, 4, 8]))
        layers.append(draw(convs(c_in, c)))
        if draw(st.booleans()):
            layers.append(nn.BatchNorm2d(c, affine=draw(st.booleans())))
        layers.append(draw(acts(c if by_channel else 1)))
        passing = [
            nn.ReLU(),
            nn.MaxPool2d(2, 1),
            nn.AvgPool2d(3, 1, 1),
            nn.Dropout(0.2),
            nn.LeakyReLU(),
            nn.PReLU(c),
        ]
        passing += [nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2), nn.Identity()]
        layers += draw(st.lists(st.sampled_from(passing), max_size=2))
        shape = draw(st.sampled_from(["plain", "residual", "dense"]))
        if shape != "plain":
            branch = [draw(convs(c, 2 * c)), draw(acts(2 * c if by_channel else 1)), draw(convs(2 * c, c))]
            layers.append((Residual if shape == "residual" else Dense)(*branch))
            c *= 2 if shape == "dense" else 1
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * c, 5), draw(acts()), nn.Linear(5, 3)]
    return randomized(nn.Sequential(*layers), draw(st.integers(0, 99)))


X = torch.randn(3, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@settings(max_examples=25)
@given(conv_nets())
def test_any_convolutional_network(model):
    check(model, X)


@settings(max_examples=25)
@given(conv_nets(by_channel=True))
def test_alphas_of_channels(model):
    """They pass through pools, batch norm, sums, concatenations and flattening."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ss.nn.Activation) and layer.learnable:
                layer.log2_alpha.uniform_(-2, 3)
    check(model, X, example=True)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3, groups=2),
        nn.ConvTranspose1d(4, 8, 3, groups=2),
        nn.Sequential(nn.BatchNorm1d(4), nn.MaxPool1d(2), nn.Conv1d(4, 4, 1)),
        nn.Sequential(nn.ConstantPad1d(1, 0.0), nn.AvgPool1d(2), nn.LPPool1d(2.0, 2), nn.Conv1d(4, 4, 1)),
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 8)), nn.Conv1d(4, 4, 1)),
        nn.Sequential(nn.Conv1d(4, 4, 1), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.Conv1d(4, 4, 1), nn.InstanceNorm1d(4, affine=True)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("channels", [1, 4])
def test_layers_between_activations(layer, channels):
    if "InstanceNorm" in repr(layer):
        channels = 1  # all that it takes
    after = 8 if isinstance(layer, nn.ConvTranspose1d) else 4
    model = nn.Sequential(
        nn.Conv1d(4, 4, 1),
        ss.nn.Tanh(3.0, learnable=True, num_parameters=channels),
        copy.deepcopy(layer),
        ss.nn.Sigmoid(0.3, learnable=True, num_parameters=after if channels > 1 else 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    x = torch.randn(3, 4, 8)
    model(x)
    check(randomized(model), x.double(), example=True)


def test_scales_of_an_embedding_and_of_normalization():
    model = nn.Sequential(
        nn.Embedding(9, 4, padding_idx=0),
        ss.nn.Tanh(3.0),
        nn.Linear(4, 6),
        nn.LayerNorm(6),
        ss.nn.Arctan(0.4),
        nn.Linear(6, 4),
        nn.RMSNorm(4),
        ss.nn.Tanh(5.0),
        nn.Linear(4, 2, bias=False),
    )
    check(randomized(model), torch.arange(9).view(3, 3))


OPTIONS = [{}, {"num_layers": 3}, {"bidirectional": True, "num_layers": 2}]
OPTIONS += [{"bias": False, "batch_first": True}]


@pytest.mark.parametrize(
    ("kind", "scaled", "options"),
    [("LSTM", True, options) for options in OPTIONS]
    + [("RNN", True, OPTIONS[1]), ("GRU", True, OPTIONS[2]), ("GRU", True, OPTIONS[3])]
    + [("RNN", False, OPTIONS[2]), ("LSTM", False, OPTIONS[1]), ("GRU", False, OPTIONS[0])],
    ids=str,
)
def test_recurrent_modules(kind, scaled, options):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Linear(3, 4), ss.nn.Tanh(0.7))
            cell = getattr(ss.nn if scaled else nn, kind)
            self.cell = cell(4, 5, **options, **({"alpha": 3.3} if scaled else {}))
            self.last = nn.Linear(5 * (2 if self.cell.bidirectional else 1), 2)
            self.state = nn.Linear(5, 2)

        def forward(self, x):
            y, state = self.cell(self.first(x))
            state = state[0] if kind == "LSTM" else state
            return self.last(y), self.state(state)

    folded = check(randomized(Model()), torch.randn(6, 2, 3, dtype=torch.float64))
    assert type(folded.cell) is getattr(nn, kind)


def test_learned_alpha_and_projections_of_recurrent_modules():
    model = randomized(nn.Sequential(ss.nn.LSTM(3, 6, proj_size=2, alpha=1.3, learnable=True)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = model[0], nn.Linear(2, 2).double()

        def forward(self, x):
            zeros = torch.zeros(1, x.size(1), 2, dtype=x.dtype), torch.zeros(1, x.size(1), 6, dtype=x.dtype)
            return self.out(self.cell(x, zeros)[0])

    check(Model(), torch.randn(4, 2, 3, dtype=torch.float64))


NUMBER, CHUNK = int(os.environ.get("SIGSCALE_RANDOM_MODELS", 2400)), 100
STYLES = ("modules", "modules", "calls", "sigscale")
EVERY = ("tanh", "sigmoid", "arctan", "softsign")


def outputs(model, x):
    """Of two calls, the second of which sees what the first has written into buffers; the model stays."""
    model = copy.deepcopy(model)
    return tree_leaves([model(x.clone()), model(x.clone())])


def assert_close(found, expected, seed):
    for y, z in zip(found, expected, strict=True):
        size = z.abs().nan_to_num(0.0, 0.0, 0.0).max().item()
        torch.testing.assert_close(
            y, z, rtol=1e-8, atol=1e-9 * size, equal_nan=True, msg=lambda text: f"seed {seed}: {text}"
        )


def scaled_copy(model, rng, x, seed):
    """A scaled copy, checked against the formula; and back, checked against the model."""
    functions = rng.choice([EVERY, EVERY, ("tanh", "softsign"), ("sigmoid",)])
    options = {"functions": functions, "functional": model.style == "calls", "learnable": rng.random() < 0.4}
    if options["learnable"] and model.style == "modules":
        options["num_parameters"] = rng.choice([1, CHANNELS])
    scaled, alpha = copy.deepcopy(model), rng.choice([2.0, 0.7, 3.0])
    ss.scale_activations(scaled, alpha, **options)
    with torch.no_grad():
        for name, parameter in scaled.named_parameters():
            if name.endswith("log2_alpha"):
                parameter.copy_(rng.choice([torch.ones(()), torch.rand(parameter.shape) * 2]))

    def alpha_of(name, which):
        if name not in functions:
            return 1.0
        if model.style == "calls":
            return 2.0**scaled.log2_alpha if options["learnable"] else alpha
        found = scaled.layers[which].alpha
        return found.view(-1, 1) if isinstance(found, torch.Tensor) else found

    oracle = copy.deepcopy(model)
    expected = tree_leaves([by_formula(oracle, x.clone(), alpha_of) for _ in range(2)])
    assert_close(outputs(scaled, x), expected, seed)
    undone = copy.deepcopy(scaled)
    ss.unscale_activations(undone)
    assert undone.state_dict().keys() == model.state_dict().keys()
    for y, z in zip(outputs(undone, x), outputs(model, x), strict=True):
        torch.testing.assert_close(y, z, rtol=0, atol=0, equal_nan=True)
    return scaled


def check_model(seed):
    """What became of a random model: "folded", "refused" or "nothing to scale"."""
    rng = random.Random(-seed)
    model = Program(seed, STYLES[seed % len(STYLES)])
    x = torch.randn(SHAPE, dtype=torch.float64)
    if model.style == "sigscale":
        expected = tree_leaves([by_formula(m, x.clone(), lambda *_: 2.5) for m in [copy.deepcopy(model)] * 2])
        assert_close(outputs(model, x), expected, seed)
        scaled = model
    else:
        try:
            scaled = scaled_copy(model, rng, x, seed)
        except ValueError as error:
            assert str(error).startswith("the model must have activations to scale"), f"seed {seed}: {error}"  # noqa: PT017
            return "nothing to scale"
    before = copy.deepcopy(scaled.state_dict())
    try:
        folded = ss.fold(scaled, rng.choice([None, x]))
    except ValueError as error:
        assert re.match("cannot fold", str(error)), f"seed {seed}: {error}"  # noqa: PT017
        result = "refused"
    else:
        assert_close(outputs(folded, x), outputs(scaled, x), seed)
        assert not any(type(layer).__module__.startswith("sigscale") for layer in folded.modules())
        result = "folded"
    assert all(torch.equal(value, before[key]) for key, value in scaled.state_dict().items()), f"seed {seed}"
    return result


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, NUMBER, CHUNK))
def test_random_models(first):
    with torch.no_grad():
        counts = Counter(check_model(seed) for seed in range(first, min(first + CHUNK, NUMBER)))
    print(first, dict(counts))
    assert counts["folded"] >= counts.total() / 5


def test_some_random_models():
    """A few, each time that the tests run."""
    with torch.no_grad():
        assert "folded" in {check_model(seed) for seed in range(100_000, 100_012)}
