"""The toy network: against autograd, the paper's formulas and mpmath, in float64 and beyond."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sigscale as ss
from sigscale import theory
from tests.oracles import truth

NAMES = list(ss.FUNCTIONS)
ALPHAS = (0.3, 1.0, 2.0, 37.0)


def draws(count, depth, seed=0, scale=3.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    theta = scale * torch.randn(count, depth, dtype=torch.float64, generator=generator)
    x, d, r = 2 * torch.randn(3, count, dtype=torch.float64, generator=generator)
    return theta.to(device), x.to(device), d.to(device), r.abs().to(device)


def by_autograd(theta, x, alpha, name, naive):
    value = ss.FUNCTIONS[name].torch_value
    h = x
    for weight in theta.unbind(-1):
        z = weight * h
        h = alpha * value(z.clone() if naive else z / alpha)
    return h


def by_mpmath(theta, x, alpha, name, naive, digits):
    """g and the gradient by the product that the paper writes, at a precision that nothing can use up."""
    value, slope = ss.FUNCTIONS[name].mp_value, ss.FUNCTIONS[name].mp_slope
    with mpmath.workdps(3 * digits + 1000):
        inner, outer = (1, alpha) if naive else (alpha, 1)
        theta, f = [mpmath.mpf(weight) for weight in theta], [mpmath.mpf(x)]
        slopes = []
        for weight in theta:
            slopes.append(outer * slope(weight * f[-1] / inner))
            f.append(alpha * value(weight * f[-1] / inner))
        return f[-1], [
            f[k] * mpmath.fprod(slopes[k:]) * mpmath.fprod(theta[k + 1 :]) for k in range(len(theta))
        ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("naive", [False, True])
def test_against_autograd(name, naive, device):
    for alpha, depth in product(ALPHAS, (1, 2, 7)):
        theta, x, d, r = draws(2000, depth, device=device)
        leaf = theta.clone().requires_grad_()
        g = by_autograd(leaf, x, alpha, name, naive)
        options = {"alpha": alpha, "function": name, "naive": naive}
        torch.testing.assert_close(theory.network(theta, x, **options), g.detach(), rtol=1e-12, atol=1e-14)
        y = g.detach() + d / 2  # least squares: h'[y - g] = 2 (y - g) = d
        ((y - g) ** 2 + r / 2 * (leaf**2).sum(-1)).sum().backward()
        found = theory.gradient(theta, x, d=d, r=r, **options)
        # autograd forms tanh' as 1 - tanh^2, which cancels
        torch.testing.assert_close(found, leaf.grad, rtol=1e-9, atol=1e-9)
        for k in range(1, depth + 1):
            assert torch.equal(theory.partial(theta, x, k, d=d, r=r, **options), found[..., k - 1])


@pytest.mark.parametrize("name", NAMES)
def test_identity(name):
    z = torch.linspace(-50, 50, 101, dtype=torch.float64)
    for alpha in (*ALPHAS, 1e20):
        for depth in (1, 3, 30):
            sides = theory.identity(z, depth, alpha, name)
            expected = z
            for _ in range(depth):
                expected = alpha * torch.as_tensor(truth.exact_value(name, (expected / alpha).numpy(), 1.0))
            torch.testing.assert_close(sides.scaled, expected, rtol=1e-12, atol=0)
            size = torch.maximum(sides.scaled.abs(), sides.plain.abs())
            assert sides.error == ((sides.scaled - sides.plain).abs() / size).nan_to_num(0.0).max()
            assert sides.error < 1e-12
    assert theory.identity([], 3, 2.0).error == 0.0


@given(
    alpha=st.floats(1e-3, 1e3),
    x=st.floats(-10, 10),
    theta=st.lists(st.floats(-10, 10), min_size=1, max_size=8),
    name=st.sampled_from(NAMES),
)
def test_scaled_equals_smaller_input(alpha, x, theta, name):
    """g_alpha(x) = alpha g_1(x / alpha), of values and gradients."""
    scaled = theory.gradient(theta, x, alpha, name)
    plain = alpha * theory.gradient(theta, x / alpha, 1.0, name)
    torch.testing.assert_close(scaled, plain, rtol=1e-10, atol=1e-300)


class TestShapes:
    def test_broadcasting(self):
        theta, x, d, _ = draws(6, 3)
        batch = theta.view(2, 3, 3)
        found = theory.gradient(batch, x.view(2, 3), d=d.view(2, 3))
        assert torch.equal(found.view(6, 3), theory.gradient(theta, x, d=d))
        assert theory.network(theta[0], x).shape == (6,)
        assert theory.gradient(theta[0], x).shape == (6, 3)
        assert theory.gradient(theta, 1.0).shape == (6, 3)
        assert theory.partial([1.0], 1.0, 1).shape == ()

    def test_input_types(self):
        theta = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
        expected = theory.gradient(theta, 0.1)
        for same in ([0.3, 0.7], (0.3, 0.7), np.array([0.3, 0.7])):
            assert torch.equal(theory.gradient(same, np.float64(0.1)), expected)
        assert not expected.requires_grad
        assert theta.tolist() == [0.3, 0.7]
        assert torch.equal(theory.gradient([1, 2], 3), theory.gradient([1.0, 2.0], 3.0))


class TestExact:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("naive", [False, True])
    def test_against_closed_forms(self, name, naive):
        theta, x, alpha = [10.0, -3.0, 0.01, 120.0, -0.5], 1.5, 2.0
        g, partials = by_mpmath(theta, x, alpha, name, naive, 40)
        options = {"alpha": alpha, "function": name, "naive": naive, "digits": 40}
        assert close(theory.exact.network(theta, x, **options), g, 39)
        for found, expected in zip(theory.exact.gradient(theta, x, **options), partials, strict=True):
            assert close(found, expected, 39)

    @pytest.mark.parametrize("name", NAMES)
    def test_depth_50_where_float64_underflows(self, name):
        theta = [10.0 + 0.1 * i for i in range(50)]
        _, expected = by_mpmath(theta, 1.5, 1, name, False, 30)
        found = theory.exact.gradient(theta, 1.5, function=name, digits=30)
        plain = theory.gradient(theta, 1.5, function=name).tolist()
        for exact, wanted, number in zip(found, expected, plain, strict=True):
            assert close(exact, wanted, 29)
            assert wanted != 0
            assert number == pytest.approx(float(wanted), rel=1e-11, abs=1e-300)
        if name == "tanh":
            assert plain[0] == 0
            assert 0 < found[0] < mpmath.mpf("1e-330")

    @pytest.mark.parametrize("name", NAMES)
    def test_float64_against_it_at_depth_50(self, name):
        theta, x, _, _ = draws(1, 50, scale=1.5)
        for alpha in (1.0, 2.0):
            found = theory.gradient(theta[0], x[0], alpha, name)
            exact = theory.exact.gradient(theta[0], x[0], alpha, name, digits=20)
            for number, expected in zip(found.tolist(), exact, strict=True):
                assert number == pytest.approx(float(expected), rel=1e-10, abs=1e-300)

    def test_far_tail(self):
        for weight in (100, 10**6):
            (found,) = theory.exact.gradient([weight], 10, digits=20)
            with mpmath.workdps(40):
                assert close(found, 10 * mpmath.sech(mpmath.mpf(10 * weight)) ** 2, 19)

    def test_loss_and_zeros(self):
        before = mpmath.mp.prec
        theta, x = [0.5, -1.5], 0.7
        found = theory.exact.gradient(theta, x, 2, d=0.3, r=0.1)
        expected = theory.gradient(theta, x, 2.0, d=0.3, r=0.1).tolist()
        assert [float(each) for each in found] == pytest.approx(expected, rel=1e-14)
        assert theory.exact.gradient([2, 0], 1)[0] == 0
        assert theory.exact.gradient([2, 3], 0)[0] == 0
        assert mpmath.mp.prec == before

    def test_without_mpmath(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mpmath", None)
        with pytest.raises(ImportError, match=r'needs mpmath, not found: pip install "sigscale\[theory\]"'):
            theory.exact.network([1.0], 1.0)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([], 1), ValueError, "theta must have a parameter for each layer; got none"),
            (([math.nan], 1), ValueError, "theta must be finite"),
            ((1.5, 1), TypeError, r"theta must be a sequence of numbers; got 1.5: pass \[1.5\]"),
            ((torch.tensor(1.5), 1), TypeError, "theta must be a sequence of numbers; got 1.5"),
            ((["a"], 1), TypeError, "theta must be made of real numbers; got 'a'"),
            (([1], 1j), TypeError, "x must be made of real numbers; got 1j"),
            (([1], 1, -2), ValueError, "alpha must be finite and > 0; got -2"),
            (([1], 1, 1, "tahn"), ValueError, "unknown function 'tahn'"),
        ],
    )
    def test_errors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            theory.exact.gradient(*arguments)
        with pytest.raises(ValueError, match=r"digits must be an integer from 1 on; got 0"):
            theory.exact.network([1], 1, digits=0)
        with pytest.raises(ValueError, match="r must be at least 0; got -1"):
            theory.exact.gradient([1], 1, r=-1)


def close(found, expected, digits):
    with mpmath.workdps(2 * digits):
        return abs(found - expected) <= abs(expected) * mpmath.mpf(10) ** -digits


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, 1.0), ValueError, r"theta must have a last dimension .*got shape \(\)"),
        (([], 1.0), ValueError, r"got shape \(0,\)"),
        (([math.inf], 1.0), ValueError, r"theta must be finite; got \[inf\]"),
        (([1.0], math.nan), ValueError, "x must be finite; got nan"),
        (([1.0], torch.tensor([math.nan])), ValueError, r"x must be finite; got shape \(1,\)"),
        (([1j], 1.0), TypeError, "theta must be made of real numbers; got torch.complex"),
        (([True], 1.0), TypeError, "got torch.bool"),
        ((["a"], 1.0), TypeError, r"theta must be a real number .*\['a'\]"),
        (([[1.0], [1.0, 2.0]], 1.0), TypeError, "rectangle"),
        (([1.0], 1.0, 0.0), ValueError, "alpha must be a real number, finite and > 0; got 0.0"),
        (([1.0], 1.0, math.inf), ValueError, "alpha must be a real number, finite and > 0; got inf"),
        (([1.0], 1.0, Fraction(10**400)), ValueError, "alpha must be .*, finite and > 0; got Fraction"),
        (([1.0], 1.0, "2"), TypeError, "alpha must be a real number, finite and > 0; got '2' of type str"),
        (([1.0], 1.0, True), TypeError, "got True of type bool"),
        (([1.0], 1.0, 1.0, "tahn"), ValueError, "unknown function 'tahn': choose one of tanh"),
        (([[1.0]] * 3, [1.0] * 2), ValueError, r"must broadcast .*\(3,\); got x \(2,\)"),
    ],
)
def test_errors(arguments, error, message):
    for call in (theory.network, theory.gradient):
        with pytest.raises(error, match=message):
            call(*arguments)


def test_errors_of_the_loss_and_of_k():
    with pytest.raises(ValueError, match=r"r must be at least 0; got -1\.0"):
        theory.gradient([1.0], 1.0, r=-1.0)
    for k, error in ((0, ValueError), (3, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=f"k must be an integer from 1 to 2; got {k}"):
            theory.partial([1.0, 2.0], 1.0, k)
    with pytest.raises(ValueError, match="depth must be an integer from 1 on; got 0"):
        theory.identity(1.0, 0, 2.0)
