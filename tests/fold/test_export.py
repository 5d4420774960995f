"""A folded model needs PyTorch alone: it is exported, and loaded where there is no sigscale."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
from torch import nn

import sigscale as ss
from tests.oracles.toy import ALGEBRAIC

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
    return folded_pair(request.param)


def folded_pair(kind):
    """A model and its folded copy, a Sequential or a GraphModule."""
    model = (nn.Sequential(*layers()) if kind == "modules" else Calls(*layers()[:1], *layers()[3:])).eval()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
    return model, ss.fold(model, X)


def test_pickle_without_sigscale(tmp_path):
    pairs = [folded_pair(kind) for kind in ("modules", "functions")]
    torch.save([folded for _, folded in pairs], tmp_path / "folded.pt")
    torch.save([X, *(model(X) for model, _ in pairs)], tmp_path / "outputs.pt")
    code = """
import sys
sys.modules["sigscale"] = None
import torch
x, *outputs = torch.load("outputs.pt")
for folded, y in zip(torch.load("folded.pt", weights_only=False), outputs, strict=True):
    torch.testing.assert_close(folded(x), y, rtol=1e-4, atol=1e-5)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr


def test_state_dict(pair):
    model, folded = pair
    assert folded.state_dict().keys() == model.state_dict().keys()


def test_torch_export(pair):
    model, folded = pair
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
def test_recurrent_export(kind):
    model, x = Recurrent(kind), X[:, :, 0].mT.contiguous()
    program = torch.export.export(ss.fold(model), (x,))
    torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.filterwarnings("ignore:The tensor attributes self.cell._flat_weights")
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.works_with("ONNX", "recurrent", says="folded")
def test_recurrent_onnx(kind, tmp_path):
    model, x = Recurrent(kind).eval(), X[:, :, 0].mT.contiguous()
    y = by_onnx(ss.fold(model), x, tmp_path / "folded.onnx")
    torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)


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
