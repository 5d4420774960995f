"""The benchmark of growth: the line and its end, the table and the picture."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

sys.path.append(str(Path(__file__).parents[2] / "bench"))

import growth_cases as cases
import growth_figure
import growth_table
from growth_fit import Line, fit, growths
from styles import STYLES
from tables import losses, rows

SIZES = [4**e for e in range(4, 11)]
FIXED, SLOPE = 3e-5, 2e-9  # equal at 15,000
SERIES = {series.name: series for series in cases.SERIES}


def times(fixed, slope, *, overlapped=False, noise=0.0, seed=0):
    numbers = np.random.default_rng(seed)
    exact = {n: max(fixed, slope * n) if overlapped else fixed + slope * n for n in SIZES}
    return {n: t * (1 + noise * numbers.uniform(-1, 1)) for n, t in exact.items()}


@pytest.mark.parametrize("overlapped", [False, True])
def test_a_line_is_found(overlapped):
    found = fit(times(FIXED, SLOPE, overlapped=overlapped), overlapped=overlapped)
    for name, true in {"fixed": FIXED, "slope": SLOPE, "end": 15_000}.items():
        assert found.spread(name) == pytest.approx((true,) * 3, rel=1e-9)
    assert found.line(1e6) == pytest.approx(2e-3 + (not overlapped) * FIXED)
    assert abs(found.worst[1]) < 1e-9


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_noise(overlapped, seed):
    found = fit(times(FIXED, SLOPE, overlapped=overlapped, noise=0.03, seed=seed), overlapped=overlapped)
    for name, true in {"fixed": FIXED, "slope": SLOPE, "end": 15_000}.items():
        middle, low, high = found.spread(name)
        assert middle == pytest.approx(true, rel=0.06)
        assert low <= middle <= high <= 1.1 * low
    assert abs(found.worst[1]) < 0.06


@pytest.mark.parametrize("seed", range(20))
def test_no_line_that_is_not_negative_is_nearer(seed):
    """Against another algorithm, on times of any shape."""
    numbers = np.random.default_rng(seed)
    n = np.array(SIZES[: 2 + seed % 6])
    t = 10.0 ** numbers.uniform(-6, -2, len(n))
    (fixed, scaled), distance = nnls(np.stack([1 / t, n / n[-1] / t], 1), np.ones(len(n)))
    found = fit(dict(zip(n.tolist(), t.tolist(), strict=True)))
    assert (found.line.fixed, n[-1] * found.line.slope) == pytest.approx((fixed, scaled), rel=1e-6, abs=1e-12)
    residuals = np.array(list(found.residuals.values()))
    assert np.sqrt(np.sum(residuals**2)) == pytest.approx(distance, rel=1e-9)
    assert found.residuals[n[0]] == pytest.approx((fixed + scaled * n[0] / n[-1]) / t[0] - 1)


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_but_work_and_nothing_but_launches(overlapped, seed):
    """Noise alone is not taken for the other, within what was measured."""
    work = fit(times(0, SLOPE, overlapped=overlapped, noise=0.02, seed=seed), overlapped=overlapped)
    assert work.line.slope == pytest.approx(SLOPE, rel=0.03)
    assert work.line.end < SIZES[0] / 4
    launches = fit(times(FIXED, 0, overlapped=overlapped, noise=0.02, seed=seed), overlapped=overlapped)
    assert launches.line.fixed == pytest.approx(FIXED, rel=0.03)
    assert launches.line.end > 4 * SIZES[-1]


def test_exactly_nothing():
    assert fit({1: 3.0, 2: 6.0, 4: 12.0}).line.end == pytest.approx(0, abs=1e-9)
    assert fit({1: 3.0, 2: 3.0, 4: 3.0}).line.end > 1e9
    falling = fit({1: 4.0, 2: 2.0, 4: 1.0})
    assert falling.line == Line(pytest.approx(1.75 / 1.3125), 0.0)
    assert math.isinf(falling.line.end)
    assert fit({1: 1.0, 2: 3.0, 4: 9.0}).line.fixed == 0  # it grows faster than its size


def test_two_sizes_and_fewer():
    found = fit({10: 3e-5, 20: 5e-5})
    assert (found.line.fixed, found.line.slope) == pytest.approx((1e-5, 2e-6))
    assert found.others == ()
    for too_few in ({}, {10: 3e-5}):
        with pytest.raises(ValueError, match="nothing can be fitted, a line takes 2 at least"):
            fit(too_few)


def test_where_no_line_holds():
    """As beyond a cache, of which the table tells."""
    growing = {n: t * (1 if n < 2**18 else 4) for n, t in times(FIXED, SLOPE).items()}
    size, residual = fit(growing).worst
    assert size >= 2**18
    assert residual < -0.4


def records(seconds, series="tanh, forward+backward", provider="sigscale", kind="cpu"):
    case = SERIES[series]
    return [
        {
            **case.record(n, torch.device(kind), provider),
            **{"provider": provider, "seconds": t, "quartiles": [t, t, t], "ratios": {}},
        }
        for n, t in seconds.items()
    ]


def only_row(seconds, **which):
    (row,) = rows(records(seconds, **which), "growth")
    return row


def test_row():
    row = only_row(times(FIXED, SLOPE))
    assert row.pop("largest residual").startswith(("+0 % at 2^", "-0 % at 2^"))
    assert row == {
        "series": "tanh, forward+backward",
        "provider": "sigscale",
        "sizes": "2^8 to 2^20 elements",
        "fixed us": "30.0 (30.0-30.0)",
        "ns each": "2.00 (2.00-2.00)",
        "GB/s": "10.0",  # 5 elements of 4 bytes in 2 ns
        "launch cost ends at": "15,000 (15,000-15,000) elements",
    }
    row = only_row({1: 2e-5, 4: 1.8e-5, 16: 5e-5}, series="penalty's gradient", provider="loop")
    assert row["sizes"] == "1 to 16 tensors"
    assert row["GB/s"] == ""
    assert row["largest residual"].endswith(" at 4")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({1: 1.0}, "one size: nothing can be fitted"),
        ({1: 4.0, 2: 2.0}, "never up to 2 layers"),
        ({2: 1.0, 4: 4.0}, "nothing is fixed"),
        ({2: 2.1, 4: 4.1}, "below 2 layers"),
        ({1: 1.1, 4: 4.1}, "below 1 layer"),
        ({2: 2.0, 4: 2.1}, "beyond 4 layers"),
        ({2: 3.0, 8: 6.0}, "4.0 layers"),
    ],
)
def test_where_launch_cost_ends_in_words(seconds, words):
    row = only_row(seconds, series="step of an MLP")
    assert row["launch cost ends at"] == words
    assert row["largest residual"] == ("" if len(seconds) == 1 else "two sizes determine the line")


def test_calls_that_overlap():
    """On a GPU, of series of elements."""
    seconds = times(FIXED, SLOPE, overlapped=True)
    (found,) = growths(records(seconds, kind="cuda"))
    assert found.fit.line.overlapped
    assert found.fit.line.end == pytest.approx(15_000)
    assert not growths(records(seconds, series="step of an MLP", kind="cuda"))[0].fit.line.overlapped


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.345, "12.3"),
        (0.0018649, "0.00186"),
        (123456, "123,000"),
        (999.9, "1,000"),
        (9.999, "10.0"),
    ],
)
def test_digits(value, text):
    assert growth_table.digits(value) == text


def test_losses_name_the_size():
    (record,) = records({1: 1e-5}, series="penalty's gradient")
    assert "growth penalty's gradient 1 tensor: 2.00" in losses([record | {"ratios": {"loop": [2.0] * 3}}])


def test_picture(tmp_path):
    made = [
        *records(times(FIXED, SLOPE)),
        *records({1: 1.0, 4: 2.0}, series="penalty's gradient", provider="in the loss"),
        *records({2: 1.0}, series="step of an MLP", provider="sigscale, monitored"),
    ]
    provenance = dict.fromkeys(("device", "torch", "triton", "date"), "some")
    growth_figure.draw_growth(made, provenance, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    growth_figure.draw_growth([], provenance, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert {look.style for look in growth_figure.LOOKS.values()} <= STYLES.keys()
