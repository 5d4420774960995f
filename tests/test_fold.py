"""fold() gives a plain model with the same outputs, on networks of all shapes."""

from __future__ import annotations

import copy
import doctest

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss

FUNCTIONS = list(ss.FUNCTIONS)
ALPHAS = st.floats(0.1, 20)


def activation(name, *args, **kwargs):
    return getattr(ss.nn, ss.nn.class_name(name))(*args, **kwargs)


def randomized(model, seed=0):
    """A model in fp64 and evaluation mode, whose parameters and running statistics are all random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 2)
        for layer in model.modules():
            if getattr(layer, "running_var", None) is not None:
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=generator) + 0.1)
    return model.double().eval()


def check(model, *inputs, example=False):
    """The folded model has the model's outputs and nothing of sigscale; the model is as it was."""
    before = copy.deepcopy(model.state_dict())
    classes = [type(layer) for layer in model.modules()]
    expected = model(*inputs)
    folded = ss.fold(model, inputs if example else None)
    torch.testing.assert_close(folded(*inputs), expected, rtol=1e-12, atol=1e-12)
    assert [type(layer) for layer in model.modules()] == classes
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(type(layer).__module__.startswith("sigscale") for layer in folded.modules())
    assert folded.training == model.training
    return folded


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
    name, alpha = draw(st.sampled_from(FUNCTIONS)), draw(ALPHAS)
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


@settings(deadline=None, max_examples=40)
@given(conv_nets())
def test_any_convolutional_network(model):
    check(model, X)


@settings(deadline=None, max_examples=40)
@given(conv_nets(by_channel=True))
def test_alphas_of_channels(model):
    """They pass through pools, batch norm, sums, concatenations and flattening."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ss.nn.Activation) and layer.learnable:
                layer.log2_alpha.uniform_(-2, 3)
    check(model, X, example=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function(name, device):
    model = randomized(nn.Sequential(nn.Linear(4, 5), activation(name, 1.7), nn.Linear(5, 2))).to(device)
    folded = check(model, torch.randn(6, 4, dtype=torch.float64, device=device))
    layer, x = folded[1], torch.tensor([-3.0, 0.2, 5.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(layer(x), activation(name, 1.0)(x))
    torch.testing.assert_close(folded[0].weight, model[0].weight / 1.7)
    torch.testing.assert_close(folded[2].weight, model[2].weight * 1.7)


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
    if channels > 1 and "InstanceNorm" in repr(layer):
        pytest.skip("takes one scale")
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


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 3}, {"bidirectional": True, "num_layers": 2}, {"bias": False, "batch_first": True}],
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


def test_functions_called_in_forward(device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.log_alpha = nn.Parameter(torch.tensor(0.3))
            self.dropout = nn.Dropout(0.1)

        def forward(self, x, offset=None):
            if offset is not None:
                x = x + offset
            h = self.dropout(ss.tanh(self.first(x), 1.5)).view(x.size(0), -1)
            h = ss.arctan(x=self.second(h), alpha=self.log_alpha.exp()) * 0.5
            return self.last(h), h.shape[0]

    model = randomized(Model()).to(device)
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    folded = ss.fold(model, x)
    assert isinstance(folded, torch.fx.GraphModule)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert "log_alpha" not in dict(folded.named_parameters())
    with pytest.raises(TypeError, match="positional argument"):
        folded(x, x)  # was traced without an offset


def test_operations_in_forward():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(4, 8, 3), ss.nn.Tanh(2.5)
            self.other, self.head = nn.Conv2d(4, 8, 3), nn.Linear(8, 3)
            self.register_buffer("gain", torch.rand(8, 1, 1))

        def forward(self, x):
            a, b = self.act(self.conv(x)), self.other(x)
            a = torch.maximum(F.relu(a), a * 0.1) * self.gain
            y = sum([a, -b, F.avg_pool2d(a, 3, 1, 1)])
            y = torch.where(x[:, :1, 1:-1, 1:-1] > 0, y, b).permute(0, 2, 3, 1).contiguous()
            y += 0 * y
            y = y.mean(dim=(1, 2)) / x.shape[0]
            return self.head(torch.stack([y, y]).amax(0)).softmax(-1)

    check(randomized(Model()), X)


def test_indices_have_no_scale():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.5))
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            values, indices = self.body(x).max(1)
            return self.head(values), self.head(indices.to(x.dtype))

    model = randomized(Model())
    with pytest.raises(ValueError, match=r"'head' \(Linear\) \(called more than once\)"):
        ss.fold(model)
    model.tail = copy.deepcopy(model.head)
    type(model).forward = lambda self, x: (lambda m: (self.head(m[0]), self.tail(m[1].to(x.dtype))))(
        self.body(x).max(1)
    )
    check(model, torch.randn(3, 4, dtype=torch.float64))


def test_a_shared_layer_with_the_same_scales():
    shared, act = nn.Linear(4, 4), ss.nn.Tanh(1.5)
    model = nn.Sequential(nn.Linear(4, 4), act, shared, act, shared, act, nn.Linear(4, 2))
    folded = check(randomized(model), torch.randn(2, 4, dtype=torch.float64))
    assert folded[1] is folded[3]
    assert folded[2] is folded[4]


def test_tied_parameters_that_need_the_same_factor():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
            self.b.weight = self.a.weight
            self.tanh, self.arctan = ss.nn.Tanh(3.0), ss.nn.Arctan(3.0)

        def forward(self, x):
            return self.c(self.tanh(self.a(x)) - self.arctan(self.b(x)))

    folded = check(randomized(Model()), torch.randn(2, 4, dtype=torch.float64))
    assert folded.a.weight is folded.b.weight


def test_training_mode():
    model = nn.Sequential(
        nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4), ss.nn.Tanh(3.0), nn.Dropout(0.5)
    )
    model.append(nn.Linear(4, 2)).double()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(5, 4, dtype=torch.float64)
    state = torch.get_rng_state()
    folded = ss.fold(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in folded.state_dict().items() if key[0] == "0")
    assert folded.training
    assert folded[3].training
    torch.manual_seed(1)
    y = folded(x)
    torch.manual_seed(1)
    torch.testing.assert_close(y, model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_rounded_once(dtype):
    model = nn.Sequential(
        nn.Linear(4, 4), ss.nn.Tanh(1.7), nn.Linear(4, 4), ss.nn.Tanh(0.9), nn.Linear(4, 2)
    ).to(dtype)
    model[0].weight.requires_grad_(False)
    folded = ss.fold(model, torch.randn(3, 4, dtype=dtype))
    exact = model[2].weight.double() * (1.7 / 0.9)
    assert torch.equal(folded[2].weight, exact.to(dtype))
    assert [p.requires_grad for p in folded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_powers_of_two_change_nothing_but_exponents():
    """alpha = 2, the paper's choice, folds without any rounding of the weights."""
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    folded = ss.fold(model)
    assert torch.equal(folded[0].weight * 2, model[0].weight)
    assert torch.equal(folded[2].weight / 2, model[2].weight)


def test_what_has_no_alpha_is_copied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LSTM(4, 3))
    folded = ss.fold(model)
    assert all(torch.equal(a, b) for a, b in zip(folded.parameters(), model.parameters(), strict=True))
    assert all(a is not b for a, b in zip(folded.parameters(), model.parameters(), strict=True))


def test_a_wrapper_is_left_out():
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    assert type(ss.fold(nn.DataParallel(model))) is nn.Sequential


def test_forward_runs_on_a_copy():
    class Model(nn.Sequential):
        def forward(self, x):
            self.calls.add_(1)
            self.last = x
            return super().forward(x)

    model = Model(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    model.register_buffer("calls", torch.zeros(()))
    folded = ss.fold(model, torch.randn(2, 4))
    assert model.calls == 0 == folded.calls
    assert not hasattr(model, "last")
    assert not hasattr(folded, "last")


def test_undoes_scale_activations():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 2))
    scaled = copy.deepcopy(model)
    ss.scale_activations(scaled, alpha=3.0)
    assert repr(check(scaled.double(), torch.randn(2, 4, dtype=torch.float64))) == repr(model)


def test_documentation():
    (example,) = doctest.DocTestFinder(recurse=False).find(ss.fold, "fold", globs={}, module=False)
    assert doctest.DocTestRunner().run(example).failed == 0
    for part in ("Args:", "Raises:", "Source: L. Ven and J. Lederer", "Sec. 2.3"):
        assert part in ss.fold.__doc__
