"""What a sketch counts and what it answers, against sorting in fp64; see `adversarial.py` for the truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sigscale as ss
from sigscale.kernels import reference_sketch
from sigscale.kernels._triton import INTERPRETED
from tests.oracles import adversarial, truth
from tests.oracles.adversarial import CASES, DTYPES, MANTISSA_BITS

EXAMPLES = 30 if INTERPRETED else 150
Q = np.array(adversarial.QUANTILES)

cases = pytest.mark.parametrize("case", CASES)
every_m = pytest.mark.parametrize("m", MANTISSA_BITS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def tensors_of(case: str) -> list[torch.Tensor]:
    """A case in each dtype that has it."""
    return [CASES[case](dtype) for name, dtype in adversarial.TABLE if name == case]


def sketch_of(x: torch.Tensor, m: int, device: str = "cpu") -> ss.QuantileSketch:
    return ss.QuantileSketch(m).update(x.to(device))


def assert_counts(sketch: ss.QuantileSketch, want: np.ndarray) -> None:
    assert sketch.counts.dtype == torch.int64
    np.testing.assert_array_equal(sketch.counts.cpu().numpy(), want)


def answers(results: tuple[torch.Tensor, ...] | torch.Tensor) -> list[np.ndarray] | np.ndarray:
    if isinstance(results, tuple):
        return [answers(result) for result in results]
    assert results.dtype == torch.float64
    return results.cpu().numpy()


def test_oracle_edges():
    """Every bin but the last holds the numbers from its near edge on, and not its far edge."""
    for m in MANTISSA_BITS:
        index = np.arange(510 * 2**m + 5)
        lower, upper = adversarial.edges_of(index, m)
        assert (np.diff(lower) >= 0).all()
        assert (lower[2:-1] == upper[1:-2]).all()
        positive = index > len(index) // 2 + 1
        inner = np.nextafter(upper[positive][:-2], 0)
        assert (adversarial.bin_of(lower[positive], m) == index[positive]).all()
        assert (adversarial.bin_of(inner, m) == index[positive][:-2]).all()
        assert (adversarial.bin_of(-inner, m) == len(index) - 1 - index[positive][:-2]).all()


@cases
@pytest.mark.interpreter
def test_counts(case, device):
    for x, m in product(tensors_of(case), MANTISSA_BITS):
        values = x.double().numpy()
        sketch = sketch_of(x, m, device)
        assert_counts(sketch, adversarial.counts(x, m))
        assert sketch.count == len(values)
        assert sketch.zeros == (values == 0).sum()
        assert sketch.infs == np.isinf(values).sum()
        assert sketch.nans == np.isnan(values).sum()


@cases
@pytest.mark.filterwarnings("ignore:(invalid value|overflow)")
def test_bounds(case, device):
    """They are the edges of the bins that hold them: nothing tighter is certain."""
    for x, m, magnitude in product(tensors_of(case), MANTISSA_BITS, (False, True)):
        lower, upper = answers(sketch_of(x, m, device).bounds(Q, magnitude=magnitude))
        below, above = adversarial.order_statistics(x, Q, magnitude)
        if np.isnan(below).all():
            assert np.isnan([lower, upper]).all()
            continue
        np.testing.assert_array_equal(lower, adversarial.edges_of(adversarial.bin_of(below, m), m)[0])
        np.testing.assert_array_equal(upper, adversarial.edges_of(adversarial.bin_of(above, m), m)[1])
        assert (lower <= below).all()
        assert (above <= upper).all()
        values = np.abs(x.double().numpy()) if magnitude else x.double().numpy()
        quantiles = np.quantile(values[~np.isnan(values)], Q)
        sure = np.isfinite(quantiles)
        assert (lower[sure] <= quantiles[sure]).all()
        assert (quantiles[sure] <= upper[sure]).all()


@every_m
@pytest.mark.interpreter(m=[3])
def test_width_of_bounds(m, device):
    """A factor of 1 + 2^-m for normal numbers, 2^(-126-m) below them; nothing for zeros and infinities."""
    x = CASES["distinct"](torch.float32)
    for value in x[:: 40 if INTERPRETED else 10]:
        lower, upper = answers(sketch_of(value, m, device).bounds(0.5))
        near, far = sorted([abs(float(lower)), abs(float(upper))])
        assert near <= abs(value) < far
        assert far <= near * (1 + 2.0**-m) if near >= 2.0**-126 else far - near == 2.0 ** (-126 - m)
    for value in (0.0, -0.0, torch.inf, -torch.inf):
        assert [float(bound) for bound in sketch_of(torch.tensor(value), m, device).bounds(0.3)] == [
            value
        ] * 2


@cases
def test_estimates_within_bounds(case, device):
    for x, m, magnitude in product(tensors_of(case), MANTISSA_BITS, (False, True)):
        sketch = sketch_of(x, m, device)
        lower, upper = answers(sketch.bounds(Q, magnitude=magnitude))
        sure = (np.isfinite(lower) & np.isfinite(upper)) | (lower == upper)  # else inf - inf may be asked for
        for midpoint in (False, True):
            estimate = answers(sketch.quantile(Q, magnitude=magnitude, midpoint=midpoint))
            if not (x == x).any():
                assert np.isnan(estimate).all()
                continue
            assert (lower[sure] <= estimate[sure]).all()
            assert (estimate[sure] <= upper[sure]).all()


@cases
def test_error_of_midpoints(case, device):
    """Of an order statistic, at most 1 / (2^(m+1) + 1) of it and the width of a bin of subnormal numbers."""
    for x, m in product(tensors_of(case), MANTISSA_BITS):
        below, above = adversarial.order_statistics(x, Q, False)
        one = adversarial.bin_of(below, m) == adversarial.bin_of(above, m)
        one &= np.abs(below) < 2.0**128
        estimate = answers(sketch_of(x, m, device).quantile(Q, midpoint=True))[one]
        allowed = np.abs(below[one]) / (2 ** (m + 1) + 1) * (1 + 1e-12) + 2.0 ** (-126 - m)
        assert (np.abs(estimate - below[one]) <= allowed).all()
        lower, upper = adversarial.edges_of(adversarial.bin_of(below[one], m), m)
        normal = np.minimum(np.abs(lower), np.abs(upper)) >= 2.0**-126
        harmonic = 2 / (1 / lower[normal] + 1 / upper[normal])
        np.testing.assert_allclose(estimate[normal], harmonic, rtol=1e-14)


@every_m
def test_interpolation_of_estimates(m, device):
    """Linearly between order statistics; inside a bin these are spread evenly, or all at its midpoint."""
    x = torch.tensor([-2.0, 1.0, 1.0, 1.0, torch.nan, 4.0, 100.0, 0.0], dtype=torch.float64)
    q = np.linspace(0, 1, 25)
    values = np.sort(x.numpy())[:7]  # NaN comes last
    lower, upper = adversarial.edges_of(adversarial.bin_of(values, m), m)
    share = np.array([1, 1, 1 / 3, 1, 5 / 3, 1, 1]) / 2
    midpoints = np.where(values == 0, 0, 2 * lower * upper / (lower + upper + (values == 0)))
    sketch = sketch_of(x, m, device)
    for midpoint, points in ((False, lower + (upper - lower) * share), (True, midpoints)):
        want = np.interp(q * 6, np.arange(7), points)
        np.testing.assert_allclose(
            answers(sketch.quantile(q, midpoint=midpoint)), want, rtol=1e-13, atol=1e-15
        )


@every_dtype
def test_error_on_smooth_distributions(dtype, device):
    rng = np.random.default_rng(1)
    q = np.array([0.01, 0.05, 0.25, 0.4, 0.6, 0.75, 0.95, 0.99])
    for values in (rng.standard_normal(60_000) * 3e-3, rng.lognormal(-2, 2, 60_000)):
        x = torch.from_numpy(values).to(dtype)
        for magnitude in (False, True):
            exact = np.quantile(np.abs(x.double().numpy()) if magnitude else x.double().numpy(), q)
            estimate = answers(sketch_of(x, 3, device).quantile(q, magnitude=magnitude))
            np.testing.assert_allclose(estimate, exact, rtol=0.01 if dtype.itemsize > 2 else 0.015)


@cases
def test_below(case, device):
    """Exact at powers of two; elsewhere off by no more than the bin holds in which the threshold lies."""
    powers = np.exp2([-126, -24, -1, 0, 1, 10, 64, 128])
    for x, m in product(tensors_of(case), (2, 5)):
        values = x.double().numpy()
        values = values[~np.isnan(values)]
        sketch = sketch_of(x, m, device)
        if not len(values):
            assert sketch.below(1.0).isnan()
            continue
        for t in [0.0, 2.0 ** (-126 - m), *powers, np.inf]:
            assert sketch.below(t) == (np.abs(values) < t).mean()
            assert sketch.below(t, magnitude=False) == (values < t).mean()
        for t in powers:  # where a bin of negative values ends, and this number is its last
            assert sketch.below(-t, magnitude=False) == (values <= -t).mean()
        assert sketch.below(-np.inf, magnitude=False) == 0
        for t in np.abs(values[np.isfinite(values)][:: len(values) // 20 + 1]):
            for around in (t, np.nextafter(t, 0), np.nextafter(t, np.inf)):
                same = adversarial.bin_of(np.abs(values), m) == adversarial.bin_of(around, m)
                assert abs(sketch.below(around) - (np.abs(values) < around).mean()) <= same.mean() + 1e-12


@every_dtype
@pytest.mark.interpreter
def test_bit_patterns(dtype, device):
    """All of 16 bits; random ones of more, with exponents around the ends of fp32 more often."""
    if dtype.itemsize == 2:
        x = truth.every_16_bit(dtype)
    else:
        rng, n = np.random.default_rng(0), 1 << (15 if INTERPRETED else 18)
        x = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, n)).view(dtype)
    if dtype is torch.float64:
        exponents = rng.choice([-151, -150, -149, -148, -127, -126, 0, 127, 128], n)
        x = torch.cat([x, torch.from_numpy(rng.uniform(-2, 2, n) * np.exp2(exponents))])
    for m in MANTISSA_BITS:
        assert_counts(sketch_of(x, m, device), adversarial.counts(x, m))


@pytest.mark.skipif(INTERPRETED, reason="arithmetic is NumPy's there")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flush_denormal(dtype):
    x = torch.cat([CASES[case](dtype) for case, its_dtype in adversarial.TABLE if its_dtype is dtype])
    if not torch.set_flush_denormal(True):
        pytest.skip("not on this processor")
    try:
        sketches = [ss.QuantileSketch(m).update(x) for m in MANTISSA_BITS]
        edges = [reference_sketch.edges.__wrapped__(m, magnitude=False) for m in MANTISSA_BITS]
    finally:
        torch.set_flush_denormal(False)
    for sketch, found in zip(sketches, edges, strict=True):
        m = sketch.mantissa_bits
        assert_counts(sketch, adversarial.counts(x, m))
        true = adversarial.edges_of(np.arange(reference_sketch.bin_count(m) - 1), m)
        np.testing.assert_array_equal(torch.stack(found).numpy(), true)


@pytest.mark.interpreter
def test_mixed_dtypes(device):
    sketch, wide = ss.QuantileSketch(4), ss.QuantileSketch(4)
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        x = CASES["heavy tails"](dtype).to(device)
        sketch.update(x)
        wide.update(x.float())
    assert torch.equal(sketch.counts, wide.counts)


@settings(max_examples=EXAMPLES)
@given(
    values=st.lists(st.floats(width=64) | st.floats(width=32) | st.floats(width=16), max_size=30),
    dtype=st.sampled_from(DTYPES),
    m=st.sampled_from(MANTISSA_BITS),
    q=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    magnitude=st.booleans(),
)
@pytest.mark.interpreter
def test_any_values(values, dtype, m, q, magnitude):
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    sketch = sketch_of(x, m)
    assert_counts(sketch, adversarial.counts(x, m))
    lower, upper = answers(sketch.bounds(q, magnitude=magnitude))
    below, above = adversarial.order_statistics(x, np.array(q), magnitude)
    if (x == x).any():
        assert (lower <= below).all()
        assert (above <= upper).all()


@pytest.mark.skipif(INTERPRETED, reason="slow there, and no other code runs than for fewer elements")
def test_more_than_2_to_the_24_elements(device):
    part = truth.stratified_fp32(2**12)
    x = torch.cat([part.repeat(2**12), torch.tensor([3.0])])
    assert len(x) == 2**24 + 1
    want = 2**12 * adversarial.counts(part, 3) + adversarial.counts(torch.tensor([3.0]), 3)
    assert_counts(sketch_of(x, 3, device), want)


@pytest.mark.gpu
@every_m
@every_dtype
def test_more_than_2_to_the_31_elements(dtype, m):
    part = truth.every_16_bit(torch.bfloat16).to(dtype)
    x = part.cuda().repeat(2**15 + 1)[: 2**31 + 12_345]
    want = 2**15 * adversarial.counts(part, m) + adversarial.counts(part[:12_345], m)
    assert_counts(ss.QuantileSketch(m).update(x), want)


@pytest.mark.gpu
@every_m
@every_dtype
@pytest.mark.parametrize("case", ["constant", "half zeros", "normal", "patterns"])
def test_gpu_counts_equal_cpu_counts(case, dtype, m):
    """And the GPU twice the same; many tiles for each program, and a masked last one."""
    n = 2**23 + 77
    if case == "patterns":
        rng = np.random.default_rng(0)
        x = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, n * dtype.itemsize // 8 + 1)).view(dtype)[:n]
    else:
        x = CASES[case](dtype).repeat(n // adversarial.SIZE + 1)[:n]
    first, second = (sketch_of(x, m, "cuda").counts.cpu() for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(first, sketch_of(x, m).counts)
