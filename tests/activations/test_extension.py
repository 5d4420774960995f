"""A function registered here works everywhere: one entry in the registry is all it takes."""

from __future__ import annotations

import pytest
import torch

import sigscale as ss
from tests.oracles.toy import ALGEBRAIC


@pytest.fixture
def toy():
    yield ss.FUNCTIONS.register(ALGEBRAIC)
    ss.FUNCTIONS.unregister("algebraic")


def test_end_to_end(toy, device):
    layer = ss.nn.Algebraic(alpha=1.7)
    assert repr(layer) == "Algebraic(alpha=1.7)"
    assert "u / sqrt(1 + u^2)" in ss.algebraic.__doc__
    for save in ("input", "output"):
        x = torch.linspace(-3, 3, 11, dtype=torch.float64, device=device).requires_grad_()
        y = ss.algebraic(x, 1.7, save=save)
        torch.testing.assert_close(y, x / torch.sqrt(1 + (x / 1.7) ** 2))
        assert torch.autograd.gradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
        assert torch.autograd.gradgradcheck(lambda x, save=save: ss.algebraic(x, 1.7, save=save), x)
    x = torch.randn(1000, device=device)
    torch.testing.assert_close(layer(x), x / torch.sqrt(1 + (x / 1.7) ** 2))


def test_gone_when_unregistered(toy):
    ss.FUNCTIONS.unregister("algebraic")
    assert not hasattr(ss, "algebraic")
    assert not hasattr(ss.nn, "Algebraic")
    ss.FUNCTIONS.register(toy)


def test_a_name_is_taken_once(toy):
    with pytest.raises(ValueError, match=r"cannot register 'algebraic'.*not yet taken"):
        ss.FUNCTIONS.register(toy)
