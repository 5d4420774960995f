"""WeightPenalty as a term of the loss: its value and gradient against formulas in fp64, and what it is of."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sigscale as ss

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FACTORS = [(0.01, 0.0), (0.0, 0.3), (0.7, 0.03)]
SHAPES = ((3, 4), (), (0,), (1,), (40_000,), (5, 3, 2, 2))


def parameters(dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
    made[0][0, :2] = 0
    made[5] = made[5].to(memory_format=torch.channels_last)
    return [nn.Parameter(p) for p in made]


def formula(tensors, l2, l1):
    exact = [p.detach().double() for p in tensors]
    return sum(l2 / 2 * p.square().sum() + l1 * p.abs().sum() for p in exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_value(dtype, device):
    thetas = parameters(dtype, device)
    for l2, l1 in FACTORS:
        penalty = ss.WeightPenalty(thetas, l2, l1)
        value = penalty()
        assert value.shape == ()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.requires_grad
        assert not penalty.value().requires_grad
        assert torch.equal(value, penalty.value())
        tolerance = 1e-13 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(value.double(), formula(thetas, l2, l1), rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(dtype, device):
    """l2 theta + l1 sign(theta), rounded once from fp32 or fp64, also where scale overflows fp16."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for (l2, l1), scale in product(FACTORS, (1.0, 65536.0)):
        thetas = parameters(dtype, device)
        (ss.WeightPenalty(thetas, l2, l1)() * scale).backward()
        for theta in thetas:
            values = theta.detach().to(wide)
            expected = (l1 * values.sign() + l2 * values).mul(scale).to(dtype)
            if l1 and l2:  # by fma or not
                torch.testing.assert_close(theta.grad, expected)
            else:
                assert torch.equal(theta.grad, expected)
            assert theta.grad.stride() == theta.stride()


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.floats(0, 10), st.floats(1e-6, 10)
)
def test_any_numbers(values, l2, l1):
    theta = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    value = ss.WeightPenalty([theta], l2, l1)()
    value.backward()
    assert float(value.detach()) == pytest.approx(
        sum(l2 / 2 * v * v + l1 * abs(v) for v in values), rel=1e-12, abs=1e-300
    )
    signs = [(v > 0) - (v < 0) for v in values]
    expected = [l2 * v + l1 * s for v, s in zip(values, signs, strict=True)]
    assert theta.grad.tolist() == pytest.approx(expected, rel=1e-14, abs=1e-300)


def test_several_types_at_once(device):
    thetas = [*parameters(torch.float32, device), *parameters(torch.bfloat16, device)]
    thetas += parameters(torch.float64, device)
    value = ss.WeightPenalty(thetas, 0.1, 0.01)()
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, formula(thetas, 0.1, 0.01), rtol=1e-5, atol=0)


class Scaled(nn.Module):
    """A module with a learned scale, as those of sigscale have it."""

    def __init__(self) -> None:
        super().__init__()
        self.log2_alpha = nn.Parameter(torch.ones(3))


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), Scaled(), nn.Linear(3, 2))


def names(penalty, of):
    found = {id(p): name for name, p in of.named_parameters()}
    return [found[id(p)] for p in penalty.parameters]


def test_which_parameters():
    net = model()
    assert names(ss.WeightPenalty(net, 0.1), net) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert names(ss.WeightPenalty(net, 0.1, exclude="*.bias"), net) == ["0.weight", "2.weight"]
    assert names(ss.WeightPenalty(net, 0.1, exclude=("0.*", "2.bias")), net) == ["2.weight"]
    assert names(ss.WeightPenalty(net, 0.1, exclude="*.log2_alpha"), net)[0] == "0.weight"
    assert "1.log2_alpha" in names(ss.WeightPenalty(net.parameters(), 0.1), net)
    named = ss.WeightPenalty(net.named_parameters(), 0.1, exclude="*.weight")
    assert names(named, net) == ["0.bias", "1.log2_alpha", "2.bias"]
    assert names(ss.WeightPenalty(nn.DataParallel(net), 0.1, exclude="0.*"), net) == ["2.weight", "2.bias"]
    compiled = torch.compile(net, backend="eager")
    assert names(ss.WeightPenalty(compiled, 0.1, exclude="0.*"), net) == ["2.weight", "2.bias"]


def test_shared_parameter():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    for given_ in (net, [net[0].weight, net[1].weight, net[0].bias, net[1].bias]):
        penalty = ss.WeightPenalty(given_, 1.0)
        assert len(penalty.parameters) == 3
        torch.testing.assert_close(
            penalty.value().double(), formula(net.parameters(), 1.0, 0.0), rtol=1e-6, atol=0
        )


def test_frozen_parameters():
    net = model()
    penalty = ss.WeightPenalty(net, 0.5)
    everything = penalty.value()
    net[0].requires_grad_(False)
    torch.testing.assert_close(
        penalty.value().double(), formula(net[2].parameters(), 0.5, 0.0), rtol=1e-6, atol=0
    )
    penalty().backward()
    assert net[0].weight.grad is None
    net.requires_grad_(False)
    assert penalty() == 0
    assert not penalty().requires_grad
    net.requires_grad_(True)
    assert torch.equal(penalty.value(), everything)


@pytest.mark.works_with("torch.compile", "penalty")
def test_under_compile():
    net = model()
    penalty = ss.WeightPenalty(net, 0.5, 0.1)
    loss = torch.compile(lambda: net[2].weight.sum() + penalty(), backend="aot_eager", fullgraph=True)
    loss().backward()
    expected = 1 + 0.5 * net[2].weight.detach() + 0.1 * net[2].weight.detach().sign()
    torch.testing.assert_close(net[2].weight.grad, expected)


BAD_FACTORS = [
    (-0.1, ValueError, "-0.1"), (float("nan"), ValueError, "nan"), (float("inf"), ValueError, "inf"),
    (1e39, ValueError, r"1e\+39"), ("0.1", TypeError, "'0.1' of type str"), (True, TypeError, "type bool"),
    (None, TypeError, "None"), (torch.tensor(0.1), TypeError, "Tensor"), (1j, TypeError, "complex"),
]  # fmt: skip


@pytest.mark.parametrize(("factor", "error", "received"), BAD_FACTORS)
def test_bad_factors(factor, error, received):
    for name in ("l2", "l1"):
        message = f"{name} must be a real number from 0 to 3.4e38; got .*{received}.*: .+"
        with pytest.raises(error, match=message):
            ss.WeightPenalty(model(), **{"l2": 0.1} | {name: factor})


def test_no_factor():
    message = r"l2 or l1 must be > 0; got l2=0.0 and l1=0: the paper's l2 is 0\.01"
    with pytest.raises(ValueError, match=message):
        ss.WeightPenalty(model(), 0.0, 0)


BAD_PARAMETERS = [
    (nn.Tanh(), (), ValueError, "must have parameters; got none in Tanh"),
    ([], (), ValueError, "must have parameters; got none in list"),
    (nn.Parameter(torch.ones(3)), (), TypeError, "got Parameter: pass the model, or a list"),
    (3, (), TypeError, "got int: pass the model"),
    (["weight"], (), TypeError, "dense tensor .* got str: pass the parameters"),
    ([("weight", 3.0)], (), TypeError, "got float for weight"),
    ([torch.ones(2, dtype=torch.int64)], (), TypeError, "got dtype torch.int64 .*: leave it out"),
    ([torch.ones(2, dtype=torch.complex64)], (), TypeError, "got dtype torch.complex64"),
    ([torch.eye(2).to_sparse()], (), TypeError, "layout torch.sparse_coo"),
    (nn.LazyLinear(3), (), ValueError, "uninitialized one for weight: call the model once"),
    (model(), "head.*", ValueError, r"exclude must match names of parameters; got 'head.\*', .*0.weight"),
    (model(), 3, TypeError, "exclude must be a pattern or a sequence of patterns; got 3 of type int"),
    (model(), (3,), TypeError, "exclude must be a pattern .*got 3 of type int"),
    (model(), "*", ValueError, r"must be left to penalize; of 5, exclude=\('\*',\)"),
    (Scaled(), (), ValueError, "must be left to penalize; of 1, .*log2_alpha"),
    (model().parameters(), "*.bias", ValueError, "exclude is of names, and the parameters have none"),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "exclude", "error", "message"), BAD_PARAMETERS)
def test_bad_parameters(given_, exclude, error, message):
    with pytest.raises(error, match=message):
        ss.WeightPenalty(given_, 0.1, exclude=exclude)


def test_words():
    penalty = ss.WeightPenalty(model(), 0.01)
    assert repr(penalty) == "WeightPenalty(l2=0.01, l1=0.0; 4 parameters, 23 elements)"
    with pytest.raises(AttributeError):
        penalty.l2 = 0.1


def test_value_of_millions_of_equal_parameters(device):
    """Their sum in fp32, one after the other, would lose four digits."""
    theta = torch.full((1_500_000,), 0.1, device=device).requires_grad_()
    for l2, l1 in ((0.0, 1.0), (1.0, 0.0), (0.5, 0.25)):
        value = ss.WeightPenalty([theta], l2, l1)().double()
        torch.testing.assert_close(value, formula([theta], l2, l1), rtol=2e-7, atol=0)
