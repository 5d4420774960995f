"""What a GPU would execute, executed without one: the compiled kernels against their plain-PyTorch twins."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("triton")
import sigscale as ss
from sigscale.kernels import (
    activation,
    launcher,
    learned,
    multi_tensor,
    reference,
    reference_sketch,
    select,
    sketch,
    summary,
)
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.reference_sketch import bin_count
from tests.oracles import emulated
from tests.oracles.adversarial import CASES, DTYPES
from tests.oracles.summarized import summarized

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
OTHERS = [name for name in ss.FUNCTIONS if name != "tanh"]
CHOSEN = ("nans", "heavy tails", "subnormals", "half zeros", "edges", "one element", "constant")


@pytest.fixture
def ran(monkeypatch):
    return emulated.use(monkeypatch)


def expected_counts(x, m):
    counts = torch.zeros(bin_count(m), dtype=torch.int64)
    reference_sketch.count(counts, x, m)
    return counts


@pytest.mark.parametrize(
    ("dtype", "m"), [*((dtype, 3) for dtype in DTYPES), *((torch.float32, m) for m in (2, 4, 5))]
)
def test_sketch(dtype, m, ran):
    cases = [*CHOSEN, "beyond fp32", "rounding up"] if dtype is torch.float64 else CHOSEN
    whole = torch.cat([CASES[case](dtype) for case in cases])
    for x in (torch.cat([whole, whole.flip(0)]), CASES["one element"](dtype), CASES["constant"](dtype)):
        assert torch.equal(ss.QuantileSketch(m).update(x).counts, expected_counts(x, m))
    assert set(ran) == {"sketch_kernel"}


@pytest.mark.parametrize(
    ("name", "from_output", "dtype"),
    [
        *product(["tanh"], [False, True], DTYPES),
        *product(OTHERS, [False], [torch.bfloat16]),
        *product(OTHERS, [True], [torch.float32]),
    ],
)
def test_backward(name, from_output, dtype, ran):
    """Where NumPy's exponential and reciprocal stand for the hardware's."""
    function = ss.FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5001, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    g = torch.randn(5001, generator=generator, dtype=torch.float64).to(dtype)
    g[::7], g[5], g[8] = 0, torch.nan, -torch.inf
    saved = reference.forward(function, x, 1.7) if from_output else x
    counts = torch.zeros(bin_count(3), dtype=torch.int64)
    dx = activation.backward(function, g, saved, 1.7, from_output=from_output, counts=counts)
    assert torch.equal(counts, expected_counts(dx, 3))
    plain = activation.backward(function, g, saved, 1.7, from_output=from_output)
    torch.testing.assert_close(dx, plain, rtol=0, atol=0, equal_nan=True)
    twin = reference.backward(function, g, saved, 1.7, from_output=from_output)
    torch.testing.assert_close(dx, twin, equal_nan=True)
    assert ran == ["backward_sketch_kernel", "backward_kernel"]


@pytest.mark.parametrize(
    ("name", "dtype"), [*product(["tanh"], DTYPES[:-1]), *product(OTHERS, [torch.float32])]
)
def test_forward(name, dtype, ran):
    """fp64 is left out: its functions are a library's, whose threads go separate ways."""
    x = torch.randn(5001, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    torch.testing.assert_close(getattr(ss, name)(x, 1.7), reference.forward(ss.FUNCTIONS[name], x, 1.7))
    assert ran == ["forward_kernel"]


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        *product(["tanh"], [(5001,), (3, 24, 50), (40, 7, 9)], [torch.bfloat16, torch.float32]),
        ("tanh", (3, 24, 50), torch.float16),
        *product(OTHERS, [(40, 7, 9)], [torch.float32]),
    ],
    ids=str,
)
def test_learned_alpha(name, shape, dtype, ran):
    """One alpha; rows that tiles fill and groups of channels; rows that they do not fill, and no groups."""
    function = ss.FUNCTIONS[name]
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(shape, generator=generator).mul(2).to(dtype) for _ in range(2))
    alpha = torch.rand(shape[1] if len(shape) > 1 else 1, generator=generator) + 0.5
    y = learned.forward(function, x, alpha)
    torch.testing.assert_close(y, reference.learned_forward(function, x, alpha))
    counts = torch.zeros(bin_count(3), dtype=torch.int64)
    for counted in ({}, {"counts": counts}):
        dx, dalpha = learned.backward(function, g, x, alpha, dx=True, dalpha=True, **counted)
        twin = reference.learned_backward(function, g, x, alpha, dx=True, dalpha=True)
        torch.testing.assert_close(dx, twin[0])
        torch.testing.assert_close(dalpha, twin[1], rtol=1e-4, atol=1e-3)
    assert torch.equal(counts, expected_counts(dx, 3))
    assert set(ran) == {"learned_forward_kernel", "learned_backward_kernel"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantiles(dtype, ran):
    for case in ("nans", "heavy tails", "signed zeros"):
        x = CASES[case](dtype)
        x = torch.cat([x, x.flip(0), x])
        wide = x.float() if dtype.itemsize == 2 else x
        q = [0.0, 0.3, 1.0]
        by_name = {"quantile": torch.quantile, "nanquantile": torch.nanquantile}
        for name, theirs in by_name.items() if case == "nans" else [("quantile", torch.quantile)]:
            expected = theirs(wide, torch.tensor(q, dtype=wide.dtype)).to(dtype)
            found = getattr(ss, name)(x, q)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert set(ran) == {"digit_kernel", "narrow_kernel"}


@pytest.fixture
def gathering(ran, monkeypatch):
    """From small tensors on, the first pass gathers what later ones are likely to read."""
    monkeypatch.setattr(select, "GATHERED", 0)
    monkeypatch.setattr(select, "SAMPLE_BITS", 11)
    return ran


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_of_gathered_values(dtype, gathering):
    """Without x, of which no later pass reads a value."""
    x = torch.randn(9001, generator=torch.Generator().manual_seed(0), dtype=dtype)
    ordered, q, ranks = x.sort().values, torch.tensor([0.05, 0.9]), torch.tensor([450, 451, 8100, 8101])
    selection = select.Selection(x, q)
    x.fill_(torch.nan)
    assert torch.equal(selection.order_statistics(ranks), ordered[ranks])
    assert gathering[:3] == ["sample_kernel", "mark_kernel", "digit_kernel"]
    marks, lengths, _ = selection._gathered
    assert 0 < marks.sum() < 0.1 * marks.numel()
    assert 900 < lengths[:-1].sum() < 2 * 900
    assert lengths[-1] == 0


@pytest.mark.parametrize("case", ["wrong guess", "no room"])
def test_quantiles_where_gathering_fails(case, gathering, monkeypatch):
    """Values that are not marked, or do not fit, are found by reading x again."""
    x = torch.randn(9001, generator=torch.Generator().manual_seed(0))
    if case == "no room":
        monkeypatch.setattr(select, "ROOM", 64)
    selection = select.Selection(x, torch.tensor([0.9]))
    ranks = torch.tensor([8100] if case == "no room" else [8100, 20])
    assert torch.equal(selection.order_statistics(ranks), x.sort().values[ranks])
    assert selection._gathered[1][-1] == (case == "no room")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantiles_with_gathering(dtype, gathering):
    for case in ("nans", "heavy tails", "half zeros", "constant", "infinities"):
        x = CASES[case](dtype)
        x = x.repeat(-(-3000 // x.numel()))
        for name in ("quantile", "nanquantile") if case == "nans" else ["quantile"]:
            expected = getattr(torch, name)(x, torch.tensor([0.0, 0.3, 1.0], dtype=dtype))
            found = getattr(ss, name)(x, [0.0, 0.3, 1.0])
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "q"),
    [*product(DTYPES, [[0.3, 0.5, 1.0]]), (torch.float32, [i / 16 for i in range(17)])],
    ids=lambda value: str(len(value) if isinstance(value, list) else value),
)
def test_quantiles_of_many(dtype, q, ran):
    """In one launch for each dtype, alignment and 15 quantiles, and nothing else that a device would do."""
    tensors = [CASES[case](dtype) for case in ("nans", "infinities", "signed zeros", "distinct", "constant")]
    tensors = [torch.cat([x] * 3)[:n] for x, n in zip(tensors, (999, 5000, 2048, 700, 1), strict=True)]
    modes = ("linear", "midpoint", "nearest") if dtype is torch.float32 and len(q) == 3 else ["linear"]
    for interpolation in modes:
        ran.clear()
        results = ss.foreach_quantile([*tensors, tensors[3][3:]], q, interpolation=interpolation)
        assert ran == ["multi_select_kernel"] * 2 * -(-len(q) // 15)
        for result, x in zip(results, [*tensors, tensors[3][3:]], strict=True):
            wide = x.float() if dtype.itemsize == 2 else x
            numbers = torch.tensor(q, dtype=wide.dtype)
            expected = torch.quantile(wide, numbers, interpolation=interpolation).to(dtype)
            torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_many_tensors(ran):
    torch.manual_seed(0)
    tensors = [CASES[case](dtype) for dtype in DTYPES for case in CHOSEN]
    tensors += [
        torch.randn(multi_tensor.CHUNK + 5),
        torch.randn(70)[1:],
        torch.randn(30, 40).t(),
        torch.empty(0),
    ]
    rows = [i % 9 for i in range(len(tensors))]
    counts = torch.zeros(9, bin_count(3), dtype=torch.int64)
    expected = torch.zeros_like(counts)
    sketch.count_many(counts, rows, tensors, 3)
    for row, tensor in zip(rows, tensors, strict=True):
        reference_sketch.count(expected[row], launcher.dense(tensor), 3)
    assert torch.equal(counts, expected)
    small = [tensor for tensor in (*tensors[::5], *tensors[-3:]) if 0 < tensor.numel() <= 20_000]
    for result, tensor in zip(ss.foreach_quantile(small, 0.3), small, strict=True):
        wide = tensor.float() if tensor.dtype.itemsize == 2 else tensor
        expected = torch.quantile(wide, 0.3).to(tensor.dtype)
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)
    q, thresholds = torch.tensor([0.0, 0.3]).double(), torch.tensor([1e-3]).double()
    scale = torch.full((9,), 4.0, dtype=torch.float64)
    for magnitude in (True, False):
        table = summarized(counts, scale, q, thresholds, 3, magnitude=magnitude)
        twin = summary.summarize(counts, scale, q, thresholds, 3, magnitude=magnitude)
        torch.testing.assert_close(table[:, 5:], twin[:, 5:], rtol=1e-15, atol=0, equal_nan=True)
        torch.testing.assert_close(table[:, :4], twin[:, :4], rtol=0, atol=0)
    assert {"multi_sketch_kernel", "multi_select_kernel", "finish_kernel"} <= set(ran)
