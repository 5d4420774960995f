"""Every tensor that an operation takes or returns has the right scale, or fold() says that it cannot."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss
from tests.oracles.folding import Forward, check, randomized, refuses

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def model_of(operation):
    """Linear, tanh with alpha = 2, the operation (of the result h and the input x), linear."""
    model = Forward(lambda m, x: m.second(operation(m.one(m.first(x)), x, m)))
    del model.two
    model.third, model.fourth = nn.Linear(4, 4), nn.Linear(4, 4)
    model.norm = nn.LayerNorm(4)
    return randomized(model)


FOLDED = {
    "diff": lambda h, x, m: torch.diff(h, prepend=m.third(x)[:, :1]),
    "diff append": lambda h, x, m: h.diff(1, 1, None, m.third(x)[:, -1:]),
    "prelu": lambda h, x, m: F.prelu(h, m.third(x).mean(0).sigmoid()),
    "cat chunk": lambda h, x, m: torch.cat(h.chunk(2, 1), 1),
    "cat split": lambda h, x, m: torch.cat(tensors=h.split([1, 3], 1)[::-1], dim=1),
    "stack unbind": lambda h, x, m: torch.stack(h.unbind(1), 1),
    "hstack": lambda h, x, m: torch.hstack(h.tensor_split(2, 1)),
    "unpack": lambda h, x, m: (lambda a, b: torch.cat((a + b, b - a), 1))(*unpacked(h)),
    "sort": lambda h, x, m: h.sort(1)[0] + torch.sort(h, dim=1).values,
    "topk": lambda h, x, m: torch.cat([h.topk(2, 1).values, torch.topk(h, 2)[0]], 1),
    "kthvalue": lambda h, x, m: h - h.kthvalue(2, 1, keepdim=True).values,
    "median": lambda h, x, m: h.median(1, keepdim=True).values - h.median() + h,
    "mode, cummax": lambda h, x, m: h.cummax(1)[0] - h.mode(1, True)[0],
    "max by name": lambda h, x, m: h.max(dim=1, keepdim=True).values + h,
    "gather by order": lambda h, x, m: h.gather(1, h.argsort(1)),
    "gather by indices": lambda h, x, m: h.gather(1, h.sort(1).indices) + h.gather(1, h.max(1, True)[1]),
    "index by input": lambda h, x, m: h[x.argmax(0)],
    "expand_as": lambda h, x, m: h[:, :1].expand_as(m.third(x).relu()).reshape_as(h),
    "where": lambda h, x, m: torch.where(m.third(x) > 0, h, -h),
    "max_pool indices": lambda h, x, m: F.max_pool1d(h[:, None], 1, return_indices=True)[0][:, 0],
    "max_pool item": lambda h, x, m: F.max_pool1d(h[None], 1)[0] + F.max_pool1d(h[:, None], 1)[1],
    "mean of dims": lambda h, x, m: h.mean(h.dim() - 1, keepdim=True) + h.mean((h.dim() - 1,), True) + h,
}


def unpacked(h):
    a, b = h.chunk(2, 1)
    return a, b


@pytest.mark.parametrize("name", FOLDED)
def test_operands_and_results(name):
    for with_shapes in (False, True):
        check(model_of(FOLDED[name]), X, example=with_shapes)


REFUSED = {
    "diff": (lambda h, x, m: torch.diff(h, prepend=x[:, :1]), "the model's input 'x'", "'one' (Tanh)"),
    "diff append": (lambda h, x, m: torch.diff(h, append=x[:, :1]), "the model's input 'x'", "'one' (Tanh)"),
    "prelu": (lambda h, x, m: F.prelu(x, h.mean(0)), "prelu() at", "takes it as it is"),
    "prelu of a scaled": (lambda h, x, m: F.prelu(h, h.mean(0)), "prelu() at", "takes it as it is"),
    "cat": (lambda h, x, m: torch.cat((*unpacked(h), x), 1)[:, :4], "the model's input 'x'", "differs from"),
    "repeats": (lambda h, x, m: x.roll(h.argmax().item() + h.sum().long().item()), "sum() at"),
    "out of several": (lambda h, x, m: torch.aminmax(h, dim=1)[0][:, None] + h, "aminmax() at"),
    "slice of several": (lambda h, x, m: h.max(1)[:1][0][:, None] + h, "getitem() at"),
    "indices used": (lambda h, x, m: h + h.max(1, True)[1], "getitem() at"),
    "addcmul": (lambda h, x, m: torch.addcmul(x, h, x), "addcmul() at"),
    "lerp": (lambda h, x, m: torch.lerp(x, x, h), "lerp() at"),
    "masked_fill": (lambda h, x, m: h.masked_fill(x > 0, 1.0), "masked_fill() at"),
    "scatter": (lambda h, x, m: x.scatter(1, x.argsort(1), h), "scatter() at"),
    "bmm": (lambda h, x, m: (h @ h.T) @ h, "matmul() at"),
    "random alpha": (
        lambda h, x, m: ss.tanh(h, torch.rand_like(m.scale)[0]),
        "depends on the model's inputs",
    ),
    "star": (lambda h, x, m: sum(h.chunk(2, 1)) + h, "torch.fx cannot trace"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_operands(name):
    operation, *parts = REFUSED[name]
    for inputs in (None, X):
        model = model_of(operation)
        with pytest.raises(ValueError, match="cannot fold") as caught:
            ss.fold(model, inputs)
        assert any(part in str(caught.value) for part in parts), str(caught.value)


class Skipping(nn.Module):
    def __init__(self, calls=False):
        super().__init__()
        self.first, self.second, self.act, self.calls = (
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            ss.nn.Tanh(2.0),
            calls,
        )

    def forward(self, x, skip=None, factor=1.0):
        h = ss.tanh(self.first(x)) if self.calls else self.act(self.first(x))
        if skip is not None:
            h = h + skip
        if factor != 1.0:
            h = h * factor + 1
        return self.second(h)


@pytest.mark.parametrize("calls", [False, True], ids=["modules", "functions"])
def test_optional_arguments(calls):
    """The copy takes what it was folded for; with anything else it raises."""
    model = randomized(Skipping(calls))
    for folded in (
        ss.fold(model),
        pickle.loads(pickle.dumps(ss.fold(model, X))),
        copy.deepcopy(ss.fold(model)),
    ):
        torch.testing.assert_close(folded(X), model(X))
        for wrong in ({"skip": X}, {"factor": 2.0}):
            with pytest.raises(TypeError, match="unexpected keyword argument"):
                folded(X, **wrong)
        with pytest.raises(TypeError, match="positional arguments"):
            folded(X, X)
    refuses(model, "the model's input 'skip'", inputs=(X, X))


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
    for inputs in ((X[:, :3],), (X, None)):
        with pytest.raises(ValueError, match="example_inputs must be what the model is called with"):
            ss.fold(randomized(Skipping()), inputs)


def test_calls_inside_a_layer_of_torch():
    """Where the calls of a layer are scaled that PyTorch's own class makes."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=torch.tanh, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)).double()
    ss.scale_activations(model, functional=True)
    refuses(model, "cannot fold")
