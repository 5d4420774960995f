"""Many sketches at once: counting the tensors of a network in one launch, and reading all sketches in one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sigscale.kernels import multi_tensor, sketch, summary
from sigscale.kernels.reference_sketch import bin_count
from tests.oracles import adversarial
from tests.oracles.adversarial import CASES, DTYPES
from tests.oracles.summarized import summarized

pytestmark = pytest.mark.interpreter

GRID = (0.0, 0.05, 0.25, 0.5, 0.95, 1.0)
THRESHOLDS = (1e-8, 2.0**-3, 0.7, 100.0)


def many(device):
    """Tensors of all kinds: dtypes, layouts, unaligned, empty ones, of one element, longer than a chunk."""
    tensors = [
        CASES[case](dtype) for dtype in DTYPES for case in CASES if dtype is torch.float64 or "32" not in case
    ]
    tensors += [torch.randn(n) for n in (1, 1, 2047, 2049, multi_tensor.CHUNK + 1)]
    tensors += [
        tensors[-1][3:],
        torch.randn(30, 40).t(),
        torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last),
    ]
    tensors += [torch.randn(7, 9)[:, 2:6], torch.randn(5).expand(4, 5), torch.tensor(0.5)]
    return [tensor.to(device) for tensor in tensors]


@pytest.mark.parametrize("m", [2, 3, 5])
def test_counts(m, device):
    torch.manual_seed(0)
    tensors = many(device)
    rows = [(7 * i) % 50 for i in range(len(tensors))]  # in some order, some of them shared
    counts = torch.zeros(50, bin_count(m), dtype=torch.int64, device=device)
    sketch.count_many(counts, rows, tensors, m)
    sketch.count_many(counts, rows[:3], tensors[:3], m)
    expected = np.zeros(counts.shape, dtype=np.int64)
    for row, tensor in [*zip(rows, tensors, strict=True), *zip(rows[:3], tensors[:3], strict=True)]:
        expected[row] += adversarial.counts(tensor, m)
    np.testing.assert_array_equal(counts.cpu().numpy(), expected)


def test_nothing_to_count(device):
    counts = torch.zeros(2, bin_count(3), dtype=torch.int64, device=device)
    sketch.count_many(counts, [], [], 3)
    sketch.count_many(counts, [1, 0], [torch.empty(0, device=device)] * 2, 3)
    assert not counts.any()


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("m", [2, 3, 4, 5])
@pytest.mark.interpreter(m=[2, 5])
def test_summaries(m, magnitude, device):
    """The kernel's arithmetic is that of the plain-PyTorch twin; sums are in another order."""
    tensors = [CASES[case](torch.float64).to(device) for case in CASES]
    counts = torch.zeros(len(tensors), bin_count(m), dtype=torch.int64, device=device)
    sketch.count_many(counts, range(len(tensors)), tensors, m)
    scale = torch.ones(len(tensors), dtype=torch.float64, device=device)
    scale[::2] = 2.0**16
    q, thresholds = (torch.tensor(t, dtype=torch.float64, device=device) for t in (GRID, THRESHOLDS))
    result = summarized(counts, scale, q, thresholds, m, magnitude=magnitude)
    on_cpu = [t.cpu() for t in (counts, scale, q, thresholds)]
    twin = summary.summarize(*on_cpu, m, magnitude=magnitude)
    sizes = summary.summarize(*on_cpu, m, magnitude=True)[:, 4]  # of the terms of the mean
    (counted, mean, searched, shares), (twin_counted, twin_mean, twin_searched, twin_shares) = (
        table.cpu().split((4, 1, len(GRID), len(THRESHOLDS)), 1) for table in (result, twin)
    )
    torch.testing.assert_close(counted, twin_counted, rtol=0, atol=0)
    torch.testing.assert_close(searched, twin_searched, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(shares, twin_shares, rtol=1e-14, atol=0, equal_nan=True)
    close = (mean - twin_mean).squeeze(1).abs() <= 1e-14 * sizes
    assert (close | mean.isinf().squeeze(1) | mean.isnan().squeeze(1)).all()
    assert torch.equal(mean.isnan(), twin_mean.isnan())
    assert torch.equal(mean.isinf(), twin_mean.isinf())


def test_a_summary_is_true(device):
    """Of a tensor with known statistics; scaled by 8."""
    x = torch.tensor([0.0, -1.0, 2.0, 4.0, torch.inf, torch.nan], device=device)
    counts = torch.zeros(1, bin_count(3), dtype=torch.int64, device=device)
    sketch.count(counts[0], x, 3)
    numbers = [torch.tensor(t, dtype=torch.float64, device=device) for t in ([8.0], [0.0, 1.0], [0.25, 1.0])]
    for magnitude, least in ((True, 0.0), (False, -1.125 / 8)):
        (row,) = summarized(counts, *numbers, 3, magnitude=magnitude).tolist()
        assert row[:5] == [6.0, 1.0, 1.0, 1.0, torch.inf]
        assert least <= row[5] <= least + 0.125 / 8
        assert row[6] == torch.inf
        assert row[7:] == [0.4, 0.8]


def test_means_beyond_fp32_have_no_preferred_sign(device):
    """The bin of fp64 magnitudes from 2^128 on has no middle worth the name, on either side of zero."""
    x = torch.tensor([1e39, -1e39, 2e300, -2e300, 3.0, -3.0], dtype=torch.float64, device=device)
    counts = torch.zeros(3, bin_count(3), dtype=torch.int64, device=device)
    for row, part in zip(counts, (x, x[::2], x[1::2]), strict=True):
        sketch.count(row, part, 3)
    ones, none = torch.ones(3, dtype=torch.float64, device=device), counts.new_zeros(0, dtype=torch.float64)
    both, above, below = summarized(counts, ones, none, none, 3, magnitude=False)[:, 4].tolist()
    assert both == 0
    assert above == -below == (2 * 2.0**128 + 3.125) / 3


@pytest.mark.gpu
def test_thousands_of_tensors():
    torch.manual_seed(0)
    tensors = [torch.randn(n % 997 + 1, device="cuda") for n in range(5000)]
    tensors.append(torch.randn(100_000_000, device="cuda"))
    counts = torch.zeros(5001, bin_count(3), dtype=torch.int64, device="cuda")
    sketch.count_many(counts, range(5001), tensors, 3)
    for row in (0, 1, 996, 4999, 5000):
        expected = torch.zeros_like(counts[0])
        sketch.count(expected, tensors[row], 3)
        assert torch.equal(counts[row], expected)
    assert counts.sum() == sum(tensor.numel() for tensor in tensors)


@pytest.mark.gpu
def test_capture_in_a_graph():
    tensors = [torch.randn(n, device="cuda") for n in (1, 1000, 200_000)]
    counts = torch.zeros(3, bin_count(3), dtype=torch.int64, device="cuda")
    for _ in range(2):
        sketch.count_many(counts, range(3), tensors, 3)
    counts.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sketch.count_many(counts, range(3), tensors, 3)
    del tensors[0]
    torch.cuda.empty_cache()
    expected = torch.zeros_like(counts)
    sketch.count_many(expected, [1, 2], tensors, 3)
    counts.zero_()
    graph.replay()
    assert torch.equal(counts[1:], expected[1:])
