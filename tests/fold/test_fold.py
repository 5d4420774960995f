"""What fold() makes of a model, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss
from tests.oracles.folding import activation, check, randomized


@pytest.mark.parametrize("name", list(ss.FUNCTIONS))
def test_every_function(name, device):
    model = randomized(nn.Sequential(nn.Linear(4, 5), activation(name, 1.7), nn.Linear(5, 2))).to(device)
    folded = check(model, torch.randn(6, 4, dtype=torch.float64, device=device))
    layer, x = folded[1], torch.tensor([-3.0, 0.2, 5.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(layer(x), activation(name, 1.0)(x))
    torch.testing.assert_close(folded[0].weight, model[0].weight / 1.7)
    torch.testing.assert_close(folded[2].weight, model[2].weight * 1.7)


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

    check(randomized(Model()), torch.randn(3, 4, 6, 6, dtype=torch.float64))


def test_arguments_by_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.act, self.second = nn.Linear(4, 4), ss.nn.Tanh(2.5), nn.Linear(4, 2)

        def forward(self, x):
            y = self.act(input=self.first(input=x))
            y = torch.add(input=y, other=torch.relu(input=y), alpha=3)
            y = torch.where(input=y, condition=x > 0, other=torch.mul(input=y, other=0.1))
            y = y.where(other=-y, condition=x < 1).to(dtype=y.dtype)
            return self.second(input=torch.cat(tensors=[y, y], dim=0))

    check(randomized(Model()), torch.randn(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("last", [1, -1])
def test_argmax_indices(last):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.5))
            self.head = nn.Linear(3, 1)

        def forward(self, x):
            values, indices = (found := self.body(x).max(1))[0], found[last]
            return self.head(values), self.head(indices.to(x.dtype))

    model = randomized(Model())
    with pytest.raises(ValueError, match=r"'head' \(Linear\) \(called more than once\)"):
        ss.fold(model)
    model.tail = copy.deepcopy(model.head)
    type(model).forward = lambda self, x: (lambda m: (self.head(m[0]), self.tail(m[last].to(x.dtype))))(
        self.body(x).max(1)
    )
    check(model, torch.randn(3, 4, dtype=torch.float64))


def test_shared_layer():
    shared, act = nn.Linear(4, 4), ss.nn.Tanh(1.5)
    model = nn.Sequential(nn.Linear(4, 4), act, shared, act, shared, act, nn.Linear(4, 2))
    folded = check(randomized(model), torch.randn(2, 4, dtype=torch.float64))
    assert folded[1] is folded[3]
    assert folded[2] is folded[4]


def test_tied_parameters():
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
def test_rounding_of_weights(dtype):
    model = nn.Sequential(
        nn.Linear(4, 4), ss.nn.Tanh(1.7), nn.Linear(4, 4), ss.nn.Tanh(0.9), nn.Linear(4, 2)
    ).to(dtype)
    model[0].weight.requires_grad_(False)
    folded = ss.fold(model, torch.randn(3, 4, dtype=dtype))
    exact = model[2].weight.double() * (1.7 / 0.9)
    assert torch.equal(folded[2].weight, exact.to(dtype))
    assert [p.requires_grad for p in folded.parameters()] == [p.requires_grad for p in model.parameters()]


def test_power_of_two_bits():
    """alpha = 2, the paper's choice, folds without any rounding of the weights."""
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    folded = ss.fold(model)
    assert torch.equal(folded[0].weight * 2, model[0].weight)
    assert torch.equal(folded[2].weight / 2, model[2].weight)


def test_model_without_alpha():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LSTM(4, 3))
    folded = ss.fold(model)
    assert all(torch.equal(a, b) for a, b in zip(folded.parameters(), model.parameters(), strict=True))
    assert all(a is not b for a, b in zip(folded.parameters(), model.parameters(), strict=True))


def test_wrapper():
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 2))
    assert type(ss.fold(nn.DataParallel(model))) is nn.Sequential


def test_model_unchanged():
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
