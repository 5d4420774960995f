"""Theorems 1 and 2 on random draws, where they are false, and the four properties."""

from __future__ import annotations

import dataclasses
import math

import mpmath
import pytest
import torch

import sigscale as ss
from sigscale import theory
from tests.theory.test_network import by_mpmath

BOUNDARY = theory.theorem_1_boundary()
U = 0.7717023192091043  # where u sech^2(u) is largest, 0.4477


def allowed(t, depth, count=3000, seed=0):
    """Draws that satisfy the assumptions of Theorem 1: theta, x, d, r."""
    generator = torch.Generator().manual_seed(seed)
    theta, noise = torch.rand(2, count, depth, dtype=torch.float64, generator=generator)
    x, d, r = torch.randn(3, count, dtype=torch.float64, generator=generator)
    least = math.log(1 / t) / torch.minimum(x.abs(), torch.tensor(0.5, dtype=torch.float64))
    theta = torch.where(noise < 0.5, 1.0, 10 ** (3 * theta)) * (1 + 1e-12) * least.unsqueeze(-1)
    return (
        theta * (2 * torch.randint(0, 2, theta.shape, generator=generator) - 1),
        x,
        d,
        (1 + r.abs()) * d.abs(),
    )


def by_autograd(theta, x, d, r):
    """The gradients of the linear loss h(z) = d z, without and with the penalty."""
    leaf = theta.clone().requires_grad_()
    g = x
    for weight in leaf.unbind(-1):
        g = torch.tanh(weight * g)
    (plain,) = torch.autograd.grad((-d * g).sum(), leaf)
    return plain, plain + r.unsqueeze(-1) * theta


class TestTheorem1:
    @pytest.mark.parametrize("depth", [1, 2, 5, 50])
    def test_holds(self, depth):
        for t in (1e-8, 0.01, 0.2, 1 / math.e, 0.5, 0.6, 0.62):
            theta, x, d, r = allowed(t, depth)
            result = theory.theorem_1(t, theta, x, d, r)
            assert result.assumed.all()
            assert result.holds
            plain, penalized = by_autograd(theta, x, d, r)
            torch.testing.assert_close(result.unregularized, plain.abs(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(result.regularized, penalized.abs(), rtol=1e-9, atol=1e-12)
            assert (plain.abs() <= d.abs().unsqueeze(-1) * t).all()
            assert (penalized.abs() >= d.abs().unsqueeze(-1) * math.log(1 / t)).all()

    def test_depth_50_beyond_float64(self):
        t, x = 0.01, 1.5
        theta = [float(theory.smallest_parameter(t, x)) + i / 10 for i in range(50)]
        plain = theory.exact.gradient(theta, x, d=1)
        penalized = theory.exact.gradient(theta, x, d=1, r=1)
        assert all(0 < abs(each) <= t for each in plain)
        assert all(abs(each) >= math.log(1 / t) for each in penalized)
        result = theory.theorem_1(t, theta, x)
        assert result.unregularized[0] == 0 < abs(plain[0])
        assert result.holds

    def test_assumptions(self):
        least = float(theory.smallest_parameter(0.1, 0.25))
        assert least == pytest.approx(math.log(10) / 0.25)
        assert theory.theorem_1(0.1, [least], 0.25).assumed
        assert not theory.theorem_1(0.1, [least, 0.99 * least], 0.25).assumed
        assert not theory.theorem_1(0.1, [least], 0.25, d=-2.0, r=1.9).assumed
        assert theory.theorem_1(0.1, [least], 0.25, d=-2.0).assumed
        assert not theory.theorem_1(0.1, [1e300], 0.0).assumed
        result = theory.theorem_1(0.1, [0.1], 1.0)
        assert not result.first
        assert result.holds  # nothing is claimed of it

    def test_bound_behind_the_boundary(self):
        """|dg/dtheta^k| <= 0.4477 / |theta^k| at any depth, any x and theta."""
        generator = torch.Generator().manual_seed(1)
        largest = 0.0
        for depth in (1, 2, 3, 8, 30):
            theta, x = torch.randn(2, 4000, depth, dtype=torch.float64, generator=generator) * 3
            bound = theory.gradient(theta, x[:, 0]).abs() * theta.abs()
            largest = max(largest, bound.max().item())
        assert 0.44 < largest <= U / math.cosh(U) ** 2

    def test_boundary(self):
        """Against mpmath, in which u = argmax u sech^2(u) and L exp(-L) = M / 2 are solved to 30 digits."""
        with mpmath.workdps(30):
            u = mpmath.findroot(lambda u: mpmath.diff(lambda v: v * mpmath.sech(v) ** 2, u), 0.8)
            half = u * mpmath.sech(u) ** 2 / 2
            assert float(u) == pytest.approx(U, rel=1e-15)
            assert BOUNDARY.second == pytest.approx(float(mpmath.exp(-mpmath.sqrt(half))), rel=1e-14)
            assert BOUNDARY.first == pytest.approx(float(mpmath.exp(mpmath.lambertw(-half))), rel=1e-14)

    @pytest.mark.parametrize("beyond", [1e-6, 0.01, 0.1])
    def test_false_just_beyond_the_boundary(self, beyond):
        """theta = 2 L, x = u / theta at depth 1, for both claims; a little smaller t, and they are true."""
        for claim, boundary in (("first", BOUNDARY.first), ("second", BOUNDARY.second)):
            for t, true in ((boundary + beyond, False), (boundary - beyond, True)):
                theta = float(theory.smallest_parameter(t, 1.0))
                result = theory.theorem_1(t, [theta], U / theta)
                assert result.assumed
                assert getattr(result, claim).item() is true, claim

    def test_second_claim_beyond_the_boundary(self):
        """With r = |d|, or so much more that the penalized derivative is 0."""
        for t in (0.63, 0.7, 0.8, 0.9, 0.99):
            theta = float(theory.smallest_parameter(t, 1.0))
            x = U / theta
            r = max(1.0, theory.partial([theta], x, 1).item() / theta)
            result = theory.theorem_1(t, [theta], x, r=r)
            assert result.assumed
            assert not result.second

    def test_pinned_counterexamples(self):
        """t = 0.9 violates both claims, t = 0.7 the second; by hand, without the package."""
        pinned = ((0.9, 0.22, 3.5, 9.2, (False, False)), (0.7, 0.72, 1.0, 1.0, (True, False)))
        for t, theta, x, r, claims in pinned:
            slope = x / math.cosh(theta * x) ** 2
            assert theta >= math.log(1 / t) / 0.5
            assert (slope <= t, abs(r * theta - slope) >= math.log(1 / t)) == claims
            result = theory.theorem_1(t, [theta], x, r=r)
            assert result.assumed
            assert (result.first.item(), result.second.item()) == claims
            assert not result.holds

    def test_logistic_function_breaks_both_claims(self):
        """A first layer at -A has an output of e^-A, which a second one of e^A brings back: no bound in t."""
        bend = 1.543 * math.exp(-1.543) / (1 + math.exp(-1.543)) ** 2
        for t in (0.01, 0.05, 0.1, 0.3, 0.5):
            least = 2 * math.log(1 / t)
            x = least / 0.224
            theta = [-least, 1.543 * math.exp(least * x)]
            result = theory.theorem_1(t, theta, x, d=-1.0, function="sigmoid")
            assert result.assumed
            assert result.unregularized[0] == pytest.approx(x * bend, rel=0.01)
            assert result.unregularized[0] > 1.3 > t
            assert result.regularized[0] < 0.01 < math.log(1 / t)
            assert result.first.tolist() == result.second.tolist() == [False, True]
        least = 2 * math.log(1e6)  # nor at tiny t, for the first claim
        result = theory.theorem_1(1e-6, [-least, 1.5 * math.exp(least)], 1.0, function="sigmoid")
        assert result.assumed
        assert result.unregularized[0] > 0.2
        assert result.first.tolist() == [False, True]

    @pytest.mark.parametrize(("name", "slope"), [("arctan", 1 / (1 + 25)), ("softsign", 1 / 36)])
    def test_slow_tails_at_small_t(self, name, slope):
        """x = 1/2, theta = 2 log(1/t) = 10 has the derivative f'(5) / 2, more than t = exp(-5)."""
        result = theory.theorem_1(math.exp(-5), [10.0 + 1e-12], 0.5, function=name)
        assert result.assumed
        assert result.unregularized.item() == pytest.approx(slope / 2, rel=1e-9)
        assert not result.first

    @pytest.mark.parametrize("t", [0.0, 1.0, -0.5, math.nan])
    def test_bad_t(self, t):
        for call in (
            lambda: theory.theorem_1(t, [1.0], 1.0),
            lambda: theory.smallest_parameter(t, 1.0),
            lambda: theory.theorem_1_domain([0.5, t]),
        ):
            with pytest.raises(ValueError, match=rf"t must be a real number in \(0, 1\); got {t}: the th"):
                call()

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"got r \(2,\)"):
            theory.theorem_1(0.1, [[1.0]] * 3, 1.0, r=[1.0, 2.0])
        with pytest.raises(TypeError, match="t must be a real number"):
            theory.theorem_1("0.1", [1.0], 1.0)


@pytest.fixture(scope="module")
def rows():
    return theory.theorem_1_domain(draws=3001)


class TestDomain:
    def test_counterexamples_exactly_beyond_the_boundary(self, rows):
        assert BOUNDARY.second < 0.63
        for row in rows:
            assert row.draws == 3001
            assert (row.first > 0) == (row.t > BOUNDARY.first), row
            assert (row.second > 0) == (row.t > BOUNDARY.second), row
            assert (row.worst_first is None) == (row.first == 0)
            assert (row.worst_second is None) == (row.second == 0)

    def test_worst_counterexamples(self, rows):
        found = 0
        for row in rows:
            for claim, worst in (("first", row.worst_first), ("second", row.worst_second)):
                if worst is None:
                    continue
                found += 1
                result = theory.theorem_1(row.t, worst.theta, worst.x, worst.d, worst.r)
                assert result.assumed
                assert not getattr(result, claim)[worst.k - 1]
                draws = (worst.theta, worst.x, worst.d, worst.r)
                draws = (torch.tensor(each, dtype=torch.float64) for each in draws)
                plain, penalized = by_autograd(*draws)
                value = (plain if claim == "first" else penalized)[worst.k - 1].abs().item()
                assert worst.found == pytest.approx(value, abs=1e-12)
                assert worst.claimed == pytest.approx(row.t if claim == "first" else math.log(1 / row.t))
                assert (worst.found > worst.claimed) == (claim == "first")
        assert found > 8

    def test_reproducible(self):
        assert theory.theorem_1_domain([0.7, 0.9], 500) == theory.theorem_1_domain([0.7, 0.9], 500)
        assert theory.theorem_1_domain([0.9], 500) != theory.theorem_1_domain([0.9], 500, seed=1)

    def test_few_draws(self):
        assert [row.draws for row in theory.theorem_1_domain([0.9], draws=1)] == [1]
        assert theory.theorem_1_domain([]) == []
        with pytest.raises(ValueError, match="draws must be an integer from 1 on; got 0"):
            theory.theorem_1_domain(draws=0)

    def test_other_functions(self):
        """The boundary of the second claim, exp(-sqrt(M/2)), with M = 1/2 and 1/4; small t for the first."""
        for name, boundary in (("arctan", math.exp(-0.5)), ("softsign", math.exp(-math.sqrt(0.125)))):
            ts = [0.01, 0.1, 0.3, boundary - 0.01, boundary + 0.02]
            rows = theory.theorem_1_domain(ts, 6000, function=name)
            assert [row.first > 0 for row in rows[:4]] == [True, False, False, False]
            assert [row.second > 0 for row in rows] == [False] * 4 + [True]

    def test_logistic_function(self):
        rows = theory.theorem_1_domain([0.01, 0.1, 0.3, 0.6], 14_000, function="sigmoid")
        assert all(row.first > 0 for row in rows)
        assert rows[-1].second > 0


class TestTheorem2:
    @pytest.mark.parametrize("depth", [1, 2, 7, 50, 500])
    def test_holds(self, depth):
        result = theory.theorem_2(depth, x=-1.5, d=0.3)
        assert result.holds
        assert result.limit == pytest.approx(0.3 * 1.5**depth)
        assert result.bound.tolist() == pytest.approx(
            [0.3 / 2 ** (depth - k + 1) for k in range(1, depth + 1)]
        )
        error = result.error[-8:].amax(-1)
        torch.testing.assert_close(error[:4] / error[1:5], torch.full((4,), 4.0).double(), rtol=0.1, atol=0)

    @pytest.mark.parametrize("depth", [1, 10, 50])
    def test_numbers_against_mpmath(self, depth):
        """h_i = alpha tanh(1.5 h_(i-1) / alpha), the product as the paper writes it, and naive scaling."""
        result = theory.theorem_2(depth)
        for row in (0, 1, 3, len(result.alphas) - 1):
            assert result.alphas[row].item() == 2.0**row
            for naive, found in ((False, result.scaled), (True, result.naive)):
                _, expected = by_mpmath([1.5] * depth, 1.5, 2.0**row, "tanh", naive, 20)
                assert found[row].tolist() == pytest.approx([*map(float, expected)], rel=1e-9, abs=1e-300)

    def test_signs(self):
        generator = torch.Generator().manual_seed(0)
        theta = 1.5 * (2 * torch.randint(0, 2, (50, 20), generator=generator) - 1)
        expected = theory.theorem_2(20).unscaled.expand(50, 20)
        torch.testing.assert_close(theory.gradient(theta, -1.5).abs(), expected)

    def test_naive_scaling(self):
        assert theory.theorem_2(1).naive_explodes.all()
        for depth in (2, 3, 20):
            result = theory.theorem_2(depth)
            assert not result.naive_explodes.any()
            assert (result.naive[-1] == 0).all()

    def test_naive_scaling_at_the_origin(self):
        """dg/dx at 0 is (alpha theta)^l naively, theta^l scaled; x = 1e-30 is linear."""
        theta = [0.7] * 5
        for naive, factor in ((False, 1.0), (True, 3.0)):
            slope = theory.network(theta, 1e-30, 3.0, naive=naive).item() / 1e-30
            assert slope == pytest.approx((factor * 0.7) ** 5, rel=1e-12)

    def test_other_functions(self):
        for name in ("arctan", "softsign"):
            assert theory.theorem_2(20, function=name).second.all()
        assert not theory.theorem_2(20, function="softsign").first.all()
        logistic = theory.theorem_2(20, function="sigmoid")
        assert logistic.first.all()
        assert not logistic.second.any()
        assert logistic.error[-1, -1] > 1e4  # grows like alpha / 2

    @pytest.mark.parametrize(
        "arguments",
        [
            *({"depth": depth} for depth in (0, 501)),
            *({"depth": 3, "x": x} for x in (1.0, [1.5, -1.5])),
            *({"depth": 3, "d": d} for d in (0.0, [1.0, 2.0])),
            {"depth": 500, "d": 1e300},  # whose limit is infinite in float64
        ],
    )
    def test_errors(self, arguments):
        with pytest.raises(ValueError, match=r"depth must be|Theorem 2 is about .*got x="):
            theory.theorem_2(**arguments)


class TestProperties:
    def test_table(self):
        """bounded by 1, vanishing, positive, linear, linear if centered; sup |f|, tail, limits, slope."""
        half_pi, inf, nan = math.pi / 2, math.inf, math.nan
        expected = {
            "tanh": (True, True, True, True, True, 1, inf, -1, 1, 1),
            "sigmoid": (True, True, True, False, True, 1, inf, 0, 1, nan),
            "arctan": (False, True, True, True, True, half_pi, 1, -half_pi, half_pi, 1),
            "softsign": (True, True, True, True, True, 1, 1, -1, 1, 1),
        }
        rows = theory.properties()
        assert [row.name for row in rows] == list(ss.FUNCTIONS) == list(expected)
        for row in rows:
            found = (row.bounded, row.vanishing, row.positive, row.linear, row.linear_if_centered)
            assert found == expected[row.name][:5], row
            numbers = (row.bound, row.tail, row.lower, row.upper, row.slope)
            assert numbers == pytest.approx(expected[row.name][5:], rel=1e-5, abs=1e-5, nan_ok=True), row
            assert row.centered_slope == pytest.approx(ss.FUNCTIONS[row.name].slope_at_zero, rel=1e-4)

    @pytest.mark.parametrize(
        ("value", "slope", "verdicts"),
        [
            (lambda u: u, torch.ones_like, (False, False, True, True)),
            (lambda u: -u.tanh(), lambda u: -(u.cosh() ** -2), (True, True, False, False)),
            (lambda u: u.tanh() ** 3, lambda u: 3 * (u.tanh() / u.cosh()) ** 2, (True, True, True, False)),
            (lambda u: u.abs().tanh(), lambda u: u.sign() * u.cosh() ** -2, (True, True, True, False)),
            (lambda u: u.abs().log1p() * u.sign(), lambda u: 1 / (1 + u.abs()), (False, False, True, True)),
            (lambda u: u.clamp(max=0) + u.clamp(min=0).tanh(), lambda u: u.clamp(min=0).cosh() ** -2,
                (False, False, True, True)),
        ],
        ids=["identity", "decreasing", "cubic", "even", "logarithmic", "one-sided"],
    )  # fmt: skip
    def test_registered_function(self, value, slope, verdicts):
        late = {"name": "late", "torch_value": value, "torch_slope": slope}
        ss.FUNCTIONS.register(dataclasses.replace(ss.FUNCTIONS["tanh"], **late))
        try:
            row = theory.properties()[-1]
        finally:
            ss.FUNCTIONS.unregister("late")
        assert row.name == "late"
        assert (row.bounded, row.vanishing, row.positive, row.linear) == verdicts
