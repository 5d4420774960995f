"""Exact quantiles against torch.quantile, numpy.quantile and the sorted values."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import sigscale as ss
from sigscale.kernels import reference_select
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.device import takes_kernel
from sigscale.kernels.select import Selection, quantiles_of_many
from tests.oracles.adversarial import CASES, TABLE

MODULE = sys.modules["sigscale.quantile"]  # the attribute of this name is the function
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MODES = ("linear", "lower", "higher", "midpoint", "nearest")
SOME = MODES[:1] if INTERPRETED else MODES  # all else is done with what the kernels select
GRID = [0.0, 1e-7, 0.05, 0.25, 0.3, 0.5, 0.777, 0.95, 1.0]
RANKS = 10 if INTERPRETED else 100
OF_TORCH = {ss.quantile: torch.quantile, ss.nanquantile: torch.nanquantile}


def by_torch(function, x, q, *args, **kwargs):
    """torch.quantile, for 16-bit types in float32, rounded."""
    wide = x.float() if x.dtype.itemsize == 2 else x
    q = torch.tensor(q, dtype=wide.dtype, device=x.device)
    return OF_TORCH[function](wide, q, *args, **kwargs).to(x.dtype)


def assert_same(result, expected):
    assert result.dtype == expected.dtype
    assert result.device == expected.device
    torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", [case for case in CASES if case != "empty"])
@pytest.mark.interpreter
def test_adversarial_tensors(case, device):
    grid = GRID[:: 3 if INTERPRETED else 1]
    for dtype in (dtype for name, dtype in TABLE if name == case):
        x = CASES[case](dtype).to(device)
        functions = OF_TORCH if x.isnan().any() or not INTERPRETED else [ss.quantile]
        for interpolation, function in product(SOME, functions):
            result = function(x, grid, interpolation=interpolation)
            assert_same(result, by_torch(function, x, grid, interpolation=interpolation))


@pytest.mark.parametrize("case", CASES)
def test_against_numpy(case, device):
    """The same values; interpolated ones to the last bit, which torch.lerp rounds otherwise."""
    for dtype in (torch.float32, torch.float64):
        x = CASES[case](dtype).to(device, torch.float64)
        if not x.numel() or x.isinf().any() or x.isnan().any():
            pytest.skip("not NumPy's case")
        for mode in ("lower", "higher", "nearest"):
            theirs = np.quantile(x.cpu().numpy(), GRID, method=mode)
            assert_same(ss.quantile(x, GRID, interpolation=mode).cpu(), torch.from_numpy(theirs))
        theirs = torch.from_numpy(np.quantile(x.cpu().numpy(), GRID))
        torch.testing.assert_close(ss.quantile(x, GRID).cpu(), theirs, rtol=3e-16, atol=5e-324)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q", [0.3, [], GRID])
@pytest.mark.interpreter(q=[0.3], dtype=[torch.bfloat16, torch.float64])
def test_dimensions(dtype, q, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 70, 3, generator=generator).to(dtype)
    x[1, 2, 0] = torch.nan
    x[3, :, 1] = torch.nan
    for tensor in (x.to(device), x.to(device).permute(2, 0, 1), x.to(device)[::2, 5:, 1:]):
        for function in OF_TORCH:
            for dim in (None, 0, 1, -1):
                for keepdim in (False, True):
                    if q:
                        expected = by_torch(function, tensor, q, dim, keepdim)
                        assert_same(function(tensor, q, dim, keepdim), expected)
                    else:  # refused by torch.quantile
                        assert function(tensor, q, dim, keepdim).shape[0] == 0
    zero_d = x[0, 0, 0].to(device)
    assert_same(ss.quantile(zero_d, 0.5, 0, True), zero_d)


@pytest.mark.interpreter
def test_selection_in_long_rows(device, monkeypatch):
    x = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    expected = ss.quantile(x, GRID, dim=1)
    monkeypatch.setattr(MODULE, "LONG_ROW", 500)
    monkeypatch.setattr(MODULE, "_by_sorting", None)
    assert_same(ss.quantile(x, GRID, dim=1), expected)


@pytest.mark.parametrize("case", ["normal", "half zeros", "constant", "heavy tails", "nans", "sorted"])
@pytest.mark.interpreter(case=["half zeros", "nans"])
def test_selection_from_many(case, device, monkeypatch):
    """Where values are counted, not sorted: every rank of the sorted tensor."""
    monkeypatch.setattr(reference_select, "SORTED", 0)
    monkeypatch.setattr(reference_select, "FEW", dict.fromkeys((2, 4, 8), 50))
    for dtype in DTYPES:
        x = CASES[case](dtype)
        x = x.repeat(-(-3000 // x.numel())).to(device)
        ascending = x.sort().values
        for ranks in torch.arange(x.numel(), device=device)[:: x.numel() // RANKS].split(10):
            selection = Selection(x)
            assert_same(selection.order_statistics(ranks), ascending[ranks])
            assert selection.nans == x.isnan().sum()


values = st.floats(width=32, allow_subnormal=True)


@settings(max_examples=5 if INTERPRETED else 60)
@given(st.lists(values, min_size=1, max_size=60), st.lists(st.floats(0, 1), min_size=1, max_size=7))
@pytest.mark.parametrize("few", [0, 8192])
@pytest.mark.interpreter(few=[0])
def test_any_values(few, numbers, q):
    x = torch.tensor(numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_select, "SORTED", 0)
        patch.setattr(reference_select, "FEW", dict.fromkeys((2, 4, 8), few))
        for function in OF_TORCH:
            for interpolation in SOME:
                result = function(x, q, interpolation=interpolation)
                assert_same(result, by_torch(function, x, q, interpolation=interpolation))


def test_beyond_what_float32_counts(device):
    """Ranks above 2^24 would alias in float32."""
    if takes_kernel(torch.empty(0)) and device == "cpu":
        pytest.skip("long in the interpreter")
    n = 2**24 + 3
    x = torch.arange(n, dtype=torch.float64, device=device).flip(0)
    h = 0.3 * (n - 1)
    assert abs(ss.quantile(x, 0.3).item() - h) < 1e-6
    single = torch.zeros(n, device=device)
    single[: n // 2] = 1.0
    assert ss.quantile(single, (n - n // 2) / (n - 1) + 1e-7).item() == 1.0
    assert ss.quantile(single.bfloat16(), [0.4, 0.6]).tolist() == [0.0, 1.0]


@pytest.mark.gpu
def test_beyond_32_bits():
    n = 2**31 + 5
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    x[-3:] = 1
    x[:2] = -1
    assert ss.quantile(x, [0.0, 0.5, 1.0]).tolist() == [-1.0, 0.0, 1.0]
    assert Selection(x).order_statistics(torch.tensor([1, 2], device="cuda")).tolist() == [-1.0, 0.0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_tensors(dtype):
    """Gathered where values spread; read again where too many are alike."""
    x = torch.randn(1 << 23, dtype=dtype, device="cuda")
    q = torch.tensor([0.05, 0.5, 0.95], device="cuda")
    ranks = (q.double() * (x.numel() - 1)).long()
    for values, gathers in ((x, True), (x.sort().values, True), (x.relu(), False), (x.sign(), False)):
        selection = Selection(values, q)
        assert torch.equal(selection.order_statistics(ranks), values.sort().values[ranks])
        marks, lengths, _ = selection._gathered
        assert bool(marks.any()) == gathers
        assert lengths[-1] == 0


@pytest.mark.gpu
def test_capture_in_a_graph():
    x = torch.randn(100_000, device="cuda")
    small = [torch.randn(n, device="cuda") for n in (1, 10, 1000)]
    for _ in range(2):
        ss.quantile(x, GRID), ss.nanquantile(x, GRID), ss.foreach_quantile(small, GRID)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = ss.quantile(x, GRID), ss.nanquantile(x, GRID), ss.foreach_quantile(small, GRID)[2]
    x.normal_()
    small[2].normal_()
    graph.replay()
    for result, tensor in zip(results, (x, x, small[2]), strict=True):
        assert_same(result, by_torch(ss.quantile, tensor, GRID))


@pytest.mark.gpu
def test_no_gpu_sync():
    x = torch.randn(100_000, device="cuda")
    ss.quantile(x, GRID), ss.nanquantile(x, GRID), ss.foreach_quantile([x[:99], x[:5]], GRID)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ss.quantile(x, GRID), ss.nanquantile(x, GRID), ss.foreach_quantile([x[:99], x[:5]], GRID)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.interpreter
def test_foreach_quantile(device):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, generator=generator) for n in (1, 2, 7, 100, 3000)]
    tensors += [tensors[4][:65][1:], tensors[4].view(50, 60).t(), tensors[3].double(), tensors[3].bfloat16()]
    tensors += [tensors[3], torch.tensor([1.0, torch.nan]), CASES["infinities"](torch.float16)]
    tensors = [tensor.to(device) for tensor in tensors]
    for q in (GRID[::4],) if INTERPRETED else (0.3, GRID[::4]):
        for interpolation in MODES[:1] if INTERPRETED else MODES:
            results = ss.foreach_quantile(tensors, q, interpolation=interpolation)
            for result, tensor in zip(results, tensors, strict=True):
                assert_same(result, by_torch(ss.quantile, tensor, q, interpolation=interpolation))
    assert ss.foreach_quantile([], 0.5) == []


def test_rows_alone_and_together(device, monkeypatch):
    """Ranks are computed alike for a row alone and among others, also where PyTorch has them in float32."""
    monkeypatch.setattr(MODULE, "_ranks_in_float64", lambda: False)
    monkeypatch.setattr(MODULE, "EXACT_FLOAT32", 5000)
    x = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)).to(device) * 1000
    alone = torch.stack([ss.quantile(row, GRID) for row in x], 1)
    assert_same(ss.quantile(x, GRID, dim=1), alone)
    assert_same(ss.quantile(x.requires_grad_(), GRID, dim=1).detach(), alone)


def test_gradient(device):
    """That of torch.quantile, for which the values are sorted."""
    x = torch.randn(31, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device)
    x.requires_grad_()
    for dim in (None, 0):
        (ours,) = torch.autograd.grad(ss.quantile(x, [0.3, 0.5], dim).sum(), x)
        (theirs,) = torch.autograd.grad(by_torch(ss.quantile, x, [0.3, 0.5], dim).sum(), x)
        assert_same(ours, theirs)


def test_under_vmap(device):
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).to(device)
    assert_same(torch.func.vmap(lambda row: ss.quantile(row, 0.3))(x), ss.quantile(x, 0.3, dim=1))


@pytest.mark.interpreter
def test_input_unchanged(device):
    x = CASES["nans"](torch.float32).repeat(1000).to(device)
    before = x.clone()
    ss.quantile(x, GRID)
    assert torch.equal(x.view(torch.int32), before.view(torch.int32))


class Transfers(TorchDispatchMode):
    """Notes operations that read a tensor on the host."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.seen.append(function)
        return function(*args, **kwargs or {})


@pytest.mark.skipif(not takes_kernel(torch.empty(0)), reason="the twin on CPUs may read its tensors")
@pytest.mark.interpreter
def test_no_host_reads():
    x = torch.randn(500)
    ss.quantile(x, GRID), ss.nanquantile(x, GRID)
    with Transfers() as transfers:
        Selection(x).order_statistics(torch.tensor([3]))
        quantiles_of_many([x], torch.tensor([[[3, 4]]]), torch.tensor([[0.5]]))
    assert not transfers.seen


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_dtype_and_device(dtype):
    x = torch.randn(1 << 15, generator=torch.Generator().manual_seed(0))
    expected = torch.quantile(x, torch.tensor(GRID))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            result = ss.quantile(x, GRID)
    finally:
        torch.set_default_dtype(before)
    assert_same(result, expected)


def test_any_iterable_of_tensors(device):
    tensors = [torch.arange(3.0, device=device)] * 2
    first, second = ss.foreach_quantile(iter(tensors), [0.5])
    assert first.tolist() == second.tolist() == [1.0]
    assert first is not second


@pytest.mark.interpreter
def test_many_quantiles(device):
    """More than one selection takes, and so many that sorting is faster."""
    x = torch.randn(1 << 15, generator=torch.Generator().manual_seed(0)).to(device)
    for count in (101,) if INTERPRETED else (101, 2001):
        q = torch.linspace(0, 1, count).tolist()
        assert_same(ss.quantile(x, q), by_torch(ss.quantile, x, q))


@pytest.mark.interpreter
def test_fake_tensors():
    with FakeTensorMode():
        assert ss.quantile(torch.randn(100), [0.5, 0.1]).shape == (2,)
    assert (
        ss.quantile(torch.arange(3.0), [0.5, 0.1]).tolist()
        == by_torch(ss.quantile, torch.arange(3.0), [0.5, 0.1]).tolist()
    )
