"""What the tests of fold() share."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

import sigscale as ss
from tests.oracles.models import Forward


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


def refuses(model, *parts, inputs=None, error=ValueError):
    """fold() raises an error with these parts, in this order, and leaves the model as it is."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error) as caught:
        ss.fold(model, inputs)
    assert re.search(".*".join(map(re.escape, parts)), str(caught.value)), str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def two_layers(forward):
    """A model with two linear layers, two activations and this forward, a function of it and x."""
    parts = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4), "scale": nn.Parameter(torch.ones(4))}
    return Forward(forward, **parts, one=ss.nn.Tanh(2.0), two=ss.nn.Sigmoid(3.0))
