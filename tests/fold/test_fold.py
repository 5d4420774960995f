"""What fold() makes of a model, what it leaves alone, and that the result needs PyTorch alone."""

from __future__ import annotations

import copy
import dataclasses
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss
from tests.oracles.folding import activation, check, randomized
from tests.oracles.models import Forward
from tests.oracles.toy import ALGEBRAIC


@pytest.mark.parametrize("name", list(ss.FUNCTIONS))
def test_every_function(name, device):
    model = randomized(nn.Sequential(nn.Linear(4, 5), activation(name, 1.7), nn.Linear(5, 2))).to(device)
    folded = check(model, torch.randn(6, 4, dtype=torch.float64, device=device))
    layer, x = folded[1], torch.tensor([-3.0, 0.2, 5.0], dtype=torch.float64, device=device)
    torch.testing.assert_close(layer(x), activation(name, 1.0)(x))
    torch.testing.assert_close(folded[0].weight, model[0].weight / 1.7)
    torch.testing.assert_close(folded[2].weight, model[2].weight * 1.7)


def linears(*names):
    return {name: nn.Linear(4, 4) for name in names}


def test_functions_called_in_forward(device):
    def forward(m, x):
        h = m.dropout(ss.tanh(m.first(x), 1.5)).view(x.size(0), -1)
        h = ss.arctan(x=m.second(h), alpha=m.log_alpha.exp()) * 0.5
        return m.last(h), h.shape[0]

    parts = {"log_alpha": nn.Parameter(torch.tensor(0.3)), "dropout": nn.Dropout(0.1)}
    model = randomized(Forward(forward, **linears("first", "second", "last"), **parts)).to(device)
    x = torch.randn(3, 4, dtype=torch.float64, device=device)
    folded = ss.fold(model, x)
    assert isinstance(folded, torch.fx.GraphModule)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert "log_alpha" not in dict(folded.named_parameters())


def of_images(m, x):
    a, b = m.act(input=m.conv(input=x)), m.other(x)
    a = torch.maximum(F.relu(a), a * 0.1) * m.gain
    y = sum([a, -b, F.avg_pool2d(a, 3, 1, 1)])
    y = torch.where(x[:, :1, 1:-1, 1:-1] > 0, y, b).permute(0, 2, 3, 1).contiguous()
    y += 0 * y
    y = y.mean(dim=(1, 2)) / x.shape[0]
    return m.head(input=torch.stack([y, y]).amax(0)).softmax(-1)


def test_operations_in_forward():
    parts = {"conv": nn.Conv2d(4, 8, 3), "act": ss.nn.Tanh(2.5), "other": nn.Conv2d(4, 8, 3)}
    parts |= {"head": nn.Linear(8, 3), "gain": nn.Buffer(torch.rand(8, 1, 1))}
    check(randomized(Forward(of_images, **parts)), torch.randn(3, 4, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("last", [1, -1])
def test_argmax_indices(last):
    """They have no scale: what they go into is not what the values go into."""

    def forward(tail):
        def values_and_indices(m, x):
            found = m.body(x).max(1)
            return m.head(found[0]), getattr(m, tail)(found[last].to(x.dtype))

        return values_and_indices

    parts = {"body": nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.5))}
    parts |= {"head": nn.Linear(3, 1), "tail": nn.Linear(3, 1)}
    with pytest.raises(ValueError, match=r"'head' \(Linear\) \(called more than once\)"):
        ss.fold(randomized(Forward(forward("head"), **parts)))
    check(randomized(Forward(forward("tail"), **parts)), torch.randn(3, 4, dtype=torch.float64))


def test_shared_layer():
    shared, act = nn.Linear(4, 4), ss.nn.Tanh(1.5)
    model = nn.Sequential(nn.Linear(4, 4), act, shared, act, shared, act, nn.Linear(4, 2))
    folded = check(randomized(model), torch.randn(2, 4, dtype=torch.float64))
    assert folded[1] is folded[3]
    assert folded[2] is folded[4]


def test_tied_parameters():
    parts = linears("a", "b", "c") | {"tanh": ss.nn.Tanh(3.0), "arctan": ss.nn.Arctan(3.0)}
    model = Forward(lambda m, x: m.c(m.tanh(m.a(x)) - m.arctan(m.b(x))), **parts)
    model.b.weight = model.a.weight
    folded = check(randomized(model), torch.randn(2, 4, dtype=torch.float64))
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
    folded = ss.fold(nn.DataParallel(model))
    assert type(folded) is nn.Sequential
    assert torch.equal(folded[0].weight * 2, model[0].weight)
    assert torch.equal(folded[2].weight / 2, model[2].weight)


def test_model_without_alpha():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LSTM(4, 3))
    folded = ss.fold(model)
    assert all(torch.equal(a, b) for a, b in zip(folded.parameters(), model.parameters(), strict=True))
    assert all(a is not b for a, b in zip(folded.parameters(), model.parameters(), strict=True))


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


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def layers():
    """Every function between convolutions, and one as a call."""
    found = [nn.Conv2d(3, 4, 3)]
    for name in ss.FUNCTIONS:
        found += [getattr(ss.nn, ss.nn.class_name(name))(1.7), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)]
    return [*found, nn.Flatten(), nn.Linear(144, 3)]


class Calls(nn.Sequential):
    def forward(self, x):
        for i, layer in enumerate(self):
            x = ss.arctan(layer(x), 3.0) if i == 0 else layer(x)
        return x


@pytest.fixture(params=["modules", "functions"])
def pair(request):
    """A model and its folded copy, a Sequential or a GraphModule."""
    in_modules = request.param == "modules"
    model = (nn.Sequential(*layers()) if in_modules else Calls(*layers()[:1], *layers()[3:])).eval()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    return model, ss.fold(model, X)


def test_plain_pytorch(pair):
    """Its file does not name sigscale, and its keys are the model's."""
    model, folded = pair
    file = io.BytesIO()
    torch.save(folded, file)
    assert b"sigscale" not in file.getvalue()
    file.seek(0)
    torch.testing.assert_close(torch.load(file, weights_only=False)(X), model(X), rtol=1e-4, atol=1e-5)
    assert folded.state_dict().keys() == model.state_dict().keys()
    program = torch.export.export(folded, (X,))
    assert "sigscale" not in program.graph_module.code
    torch.testing.assert_close(program.module()(X), model(X), rtol=1e-4, atol=1e-5)


def by_onnx(folded, x, path):
    """The output of the model as ONNX Runtime computes it."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.onnx.export(folded, (x,), path, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(y)


@pytest.mark.works_with("ONNX", "activation", says="folded")
def test_onnx(pair, tmp_path):
    model, folded = pair
    torch.testing.assert_close(by_onnx(folded, X, tmp_path / "folded.onnx"), model(X), rtol=1e-4, atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell, self.out = getattr(ss.nn, kind)(3, 4, alpha=1.7, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.cell(x)[0])


@pytest.mark.filterwarnings("ignore:The tensor attributes self.cell._flat_weights")  # of torch.nn's, too
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.works_with("ONNX", "recurrent", says="folded")
def test_recurrent(kind, tmp_path):
    model, x = Recurrent(kind).eval(), X[:, :, 0].mT.contiguous()
    folded = ss.fold(model)
    torch.testing.assert_close(torch.export.export(folded, (x,)).module()(x), model(x))
    torch.testing.assert_close(by_onnx(folded, x, tmp_path / "r.onnx"), model(x), rtol=1e-4, atol=1e-5)


def test_registered_function():
    ss.FUNCTIONS.register(dataclasses.replace(ALGEBRAIC, torch_value=lambda u: u * torch.rsqrt(1 + u * u)))
    try:
        model = nn.Sequential(nn.Linear(3, 3), ss.nn.Algebraic(1.7), nn.Linear(3, 3))
        folded = ss.fold(model, X[0, 0, :, :3])
    finally:
        ss.FUNCTIONS.unregister("algebraic")
    u = torch.tensor([0.3, -2.0])
    torch.testing.assert_close(folded[1](u), u / torch.sqrt(1 + u * u))
    assert torch.equal(u, torch.tensor([0.3, -2.0]))
