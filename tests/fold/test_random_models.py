"""Random models through scale_activations(), unscale_activations() and fold(): right, or refused by name.

Slow: run with `pytest -m slow tests/fold/test_random_models.py`; SIGSCALE_RANDOM_MODELS is their number.
"""

from __future__ import annotations

import copy
import os
import random
import re
from collections import Counter

import pytest
import torch
from torch.utils._pytree import tree_leaves

import sigscale as ss
from tests.oracles.random_models import CHANNELS, SHAPE, Program, by_formula

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
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("first", range(0, NUMBER, CHUNK))
def test_random_models(first):
    with torch.no_grad():
        counts = Counter(check_model(seed) for seed in range(first, min(first + CHUNK, NUMBER)))
    print(first, dict(counts))
    assert counts["folded"] >= counts.total() / 5


def test_some_random_models(one_thread):
    """A few, each time that the tests run."""
    with torch.no_grad():
        assert "folded" in {check_model(seed) for seed in range(100_000, 100_012)}
