"""Merging, copying and saving sketches, on one process and two, and what tensors they take."""

from __future__ import annotations

import copy
import datetime
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import sigscale as ss
from sigscale.kernels._triton import INTERPRETED
from tests.activations.test_layout import views
from tests.oracles import adversarial
from tests.oracles.adversarial import CASES, DTYPES, MANTISSA_BITS
from tests.oracles.processes import FORKS, run_two

WAIT = datetime.timedelta(minutes=1)
EXAMPLES = 25 if INTERPRETED else 100
X = CASES["edges"](torch.float32)
PIECES = ("edges", "half zeros", "nans", "subnormals", "infinities", "empty", "heavy tails")

every_m = pytest.mark.parametrize("m", MANTISSA_BITS)


def sketch_of(x: torch.Tensor, m: int = 3) -> ss.QuantileSketch:
    return ss.QuantileSketch(m).update(x)


def same(a: ss.QuantileSketch, b: ss.QuantileSketch) -> bool:
    return a.mantissa_bits == b.mantissa_bits and torch.equal(a.counts.cpu(), b.counts.cpu())


@settings(max_examples=EXAMPLES)
@given(
    m=st.sampled_from(MANTISSA_BITS),
    cuts=st.lists(st.integers(0, 5000), max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_any_split_and_any_order_of_merging(m, cuts, order):
    whole = torch.cat([CASES[case](torch.float32) for case in PIECES])
    parts = [sketch_of(part, m) for part in torch.tensor_split(whole, sorted(cuts))]
    while len(parts) > 1:
        order.shuffle(parts)
        a, b = parts.pop(), parts.pop()
        parts.append(a + b if order.random() < 0.5 else a.__iadd__(b))
    assert same(parts[0], sketch_of(whole, m))


@every_m
@pytest.mark.interpreter(m=[3])
def test_update_equals_merge(m, device):
    pieces = [CASES[case](dtype).to(device) for case in PIECES for dtype in DTYPES]
    one, merged = ss.QuantileSketch(m), ss.QuantileSketch(m)
    for piece in pieces:
        assert one.update(piece) is one
        before = merged
        merged += sketch_of(piece, m)
        assert merged is before
    np.testing.assert_array_equal(one.counts.cpu(), sum(adversarial.counts(piece, m) for piece in pieces))
    assert same(one, merged)


def test_independent_sums_and_clones(device):
    a, b = sketch_of(X.to(device)), sketch_of(X[:7].to(device))
    for copied in (a.clone(), a + b, copy.deepcopy(a), copy.copy(a).clone(), ss.QuantileSketch() + a):
        copied.update(X.to(device))
        copied.reset()
        assert copied.count == 0
        assert same(a, sketch_of(X))
        assert same(b, sketch_of(X[:7]))
    doubled = a.clone()
    doubled += doubled
    assert same(doubled, sketch_of(torch.cat([X, X])))


def test_reset(device):
    sketch = sketch_of(X.to(device))
    counts = sketch.counts
    assert sketch.reset() is sketch
    assert sketch.counts.data_ptr() == counts.data_ptr()
    assert sketch.count == 0
    assert same(sketch.update(X[:3].to(device)), sketch_of(X[:3]))


def test_results_after_later_updates(device):
    sketch = sketch_of(torch.tensor([0.0, torch.nan, torch.inf, 2.0], device=device))
    results = sketch.count, sketch.zeros, sketch.infs, sketch.nans
    saved = sketch.state_dict()["counts"]
    sketch.update(torch.tensor([0.0, torch.nan, torch.inf, 2.0], device=device))
    assert [int(number) for number in results] == [4, 1, 1, 1]
    assert saved.sum() == 4


def test_reading_is_pure(device):
    x = torch.cat([X, torch.tensor([0.0, torch.nan])])
    sketch = sketch_of(x.to(device))
    for read in (
        lambda: sketch.quantile([0.1, 0.9], magnitude=True),
        lambda: sketch.bounds(0.5),
        lambda: sketch.below(1.0),
        lambda: sketch.to_histogram(),
        lambda: sketch.state_dict(),
        lambda: repr(sketch),
        lambda: sketch + sketch,
    ):
        first, second = read(), read()
        assert repr(first) == repr(second)
        assert same(sketch, sketch_of(x))


@every_m
def test_round_trips(m, device, tmp_path):
    sketch = sketch_of(X.to(device), m)
    torch.save(sketch.state_dict(), tmp_path / "state")
    loaded, state = ss.QuantileSketch(m), torch.load(tmp_path / "state", weights_only=True)
    loaded.load_state_dict(state)
    state["counts"].zero_()  # not those of the sketch
    for other in (loaded, pickle.loads(pickle.dumps(sketch)), copy.deepcopy(sketch), sketch.to("cpu")):
        assert same(other, sketch)
        assert torch.equal(other.quantile(0.3).cpu(), sketch.quantile(0.3).cpu())
        assert same(other.update(X.to(other.device)), sketch + sketch)
        sketch = sketch_of(X.to(device), m)
    torch.save([sketch, ss.QuantileSketch(m)], tmp_path / "sketches")
    saved, empty = torch.load(tmp_path / "sketches", weights_only=True)
    assert same(saved, sketch)
    assert (empty.mantissa_bits, empty.count) == (m, 0)
    assert sketch.to(sketch.device) is sketch
    for empty in (ss.QuantileSketch(m), pickle.loads(pickle.dumps(ss.QuantileSketch(m)))):
        empty.load_state_dict(empty.state_dict())
        assert empty.count == 0


POWERS, LARGEST = 2.0 ** np.arange(-149.0, 130), np.finfo(np.float64).max
ON_EDGES = (POWERS, -POWERS, np.array([-LARGEST, -1.0, 1.125, LARGEST]), np.array([-LARGEST, -1.0]))
HISTOGRAMS = {
    **{name: CASES[name](torch.float64) for name in ("normal", "half zeros", "heavy tails", "subnormals")},
    **{name: CASES[name](torch.float64) for name in ("nans", "empty")},
    **{f"on edges {i}": torch.from_numpy(values) for i, values in enumerate(ON_EDGES)},
}


@pytest.mark.parametrize("x", HISTOGRAMS.values(), ids=HISTOGRAMS)
def test_to_histogram(x, device):
    """As numpy counts between the same edges, all bins and merged ones."""
    values = x.numpy()[np.isfinite(x.numpy())]
    for m in MANTISSA_BITS:
        sketch = sketch_of(x.to(device), m)
        counts, edges = sketch.to_histogram()
        assert counts.dtype == np.int64
        assert edges.dtype == np.float64
        assert len(edges) == len(counts) + 1
        assert (np.diff(edges) > 0).all()
        assert counts.sum() == len(values)
        np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
        assert not len(values) or (counts[0] > 0 and counts[-1] > 0)
        for bins in (1, 2, 3, 16, 512):
            merged, between = sketch.to_histogram(bins)
            assert len(merged) == len(between) - 1 <= bins
            assert {*between} <= {*edges}
            assert (between[0], between[-1]) == (edges[0], edges[-1])
            np.testing.assert_array_equal(merged, np.histogram(values, between)[0])
            assert bins == 1 or not edges[0] < 0 < edges[-1] or 0.0 in between


def test_histogram_of_two_values():
    """Far apart, where each sign has hundreds of bins in between."""
    sketch = sketch_of(torch.tensor([-1e-30, 1e30]))
    assert len(sketch.to_histogram().counts) > 1000
    merged = sketch.to_histogram(bins=512)
    assert len(merged.counts) <= 512
    assert merged.counts.sum() == 2
    message = r"bins must be an integer from 1 on; got .*: 512 is the most that W&B"
    for error, wrong in ((ValueError, (0, -1)), (TypeError, (1.5, True, ""))):
        for bins in wrong:
            with pytest.raises(error, match=message):
                sketch.to_histogram(bins)


def test_repr(device):
    sketch = sketch_of(torch.tensor([0.0, 1.0, 1.0, torch.nan, torch.inf], device=device))
    for part in ("QuantileSketch(count=5, zeros=1, infs=1, nans=1", "max inf", "mantissa_bits=3", device):
        assert part in repr(sketch)
    assert "zeros" not in repr(sketch_of(torch.ones(3)))
    assert "count=0" in repr(ss.QuantileSketch())


@settings(max_examples=EXAMPLES)
@given(x=views(), m=st.sampled_from(MANTISSA_BITS))
@pytest.mark.interpreter
def test_any_view(x, m):
    np.testing.assert_array_equal(sketch_of(x, m).counts, adversarial.counts(x, m))


@pytest.mark.interpreter
def test_views_and_parameters(device):
    x = X.to(device)
    want = sketch_of(X)
    leaf = x.clone().requires_grad_()
    negative = torch._neg_view(-x)
    assert negative.is_neg()
    channels_last = x[:1152].reshape(4, 8, 6, 6).to(memory_format=torch.channels_last)
    for tensor in (
        leaf,
        leaf * 1,
        torch.nn.Parameter(x),
        negative,
        channels_last,
        x.repeat(2)[3 : -len(x) + 3],
    ):
        before = tensor.detach().clone()
        sketch = sketch_of(tensor)
        assert same(sketch, want)
        assert torch.equal(tensor.detach(), before)
        assert not sketch.counts.requires_grad
    assert same(sketch_of(x[3]), sketch_of(X[3:4]))
    assert same(sketch_of(x[:1].expand(5, 9)), sketch_of(X[:1].repeat(45)))
    assert leaf.grad is None


@pytest.mark.interpreter
def test_grad_and_inference_modes(device):
    sketch = ss.QuantileSketch()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            sketch.update(X.to(device)).below(1.0)
    assert same(sketch, sketch_of(X.repeat(3)))


def _first_use():
    x = torch.tensor([1.0, -2.0, 0.0])
    with torch.device("meta"):
        first = ss.QuantileSketch().update(x)
        assert first.bounds(0.75)[1].item() == 1.125
    second = ss.QuantileSketch().update(x)
    for sketch in (first, second):
        assert sketch.quantile(0.5).item() == 0
        assert sketch.below(1.5).item() == 2 / 3


def test_default_device():
    """Also not where it is set while constants are made that are kept: in a process that has made none."""
    process = FORKS.Process(target=_first_use)
    process.start()
    process.join()
    assert process.exitcode == 0


def _reduce(rank: int, folder: str) -> None:
    """What each of two processes does: the first sees half of the values, the second the rest."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=WAIT
    )
    sketch = sketch_of(X[rank::2], 4)
    assert sketch.all_reduce() is sketch
    alone = sketch_of(X, 2).all_reduce(dist.new_group([rank], use_local_synchronization=True))
    silent = (sketch_of(X, 5) if rank == 0 else ss.QuantileSketch(5)).all_reduce()
    torch.save([s.state_dict() for s in (sketch, alone, silent)], f"{folder}/{rank}")
    dist.destroy_process_group()


def test_all_reduce_of_two_processes(tmp_path):
    run_two(_reduce, tmp_path)
    for rank in range(2):
        for state, m in zip(torch.load(tmp_path / str(rank)), (4, 2, 5), strict=True):
            assert torch.equal(state["counts"], sketch_of(X, m).counts)
