"""Bad input to sketches, which changes nothing, and to exact quantiles: rule, value and remedy."""

from __future__ import annotations

from operator import add, iadd

import numpy as np
import pytest
import torch

import sigscale as ss

X = torch.tensor([0.0, -1.0, 2.5, torch.inf, torch.nan, 1e-42])


def sketch_of(x: torch.Tensor, m: int = 3) -> ss.QuantileSketch:
    return ss.QuantileSketch(m).update(x)


def same(a: ss.QuantileSketch, b: ss.QuantileSketch) -> bool:
    return a.mantissa_bits == b.mantissa_bits and torch.equal(a.counts.cpu(), b.counts.cpu())


@pytest.mark.parametrize("bits", [1, 6, 0, -3, 2.5, True, None, "3"])
def test_bad_mantissa_bits(bits):
    with pytest.raises(ValueError, match=rf"must be one of 2, 3, 4, 5; got {bits!r}: .+"):
        ss.QuantileSketch(bits)


@pytest.mark.parametrize("q", [-1e-9, 1.0000001, torch.nan, torch.inf, [0.5, 2], torch.tensor([[-1.0]])])
def test_quantiles_outside_0_to_1(q):
    sketch = sketch_of(X)
    for call in (sketch.quantile, sketch.bounds):
        with pytest.raises(ValueError, match=r"q must be from 0 to 1; got .*: .+"):
            call(q)


@pytest.mark.parametrize("q", ["0.5", None, 0.5j, [[0.1], [0.2, 0.3]]], ids=str)
def test_quantiles_of_wrong_type(q):
    with pytest.raises(TypeError, match=r"q must be a number or a sequence of numbers; got .*: pass 0.5"):
        sketch_of(X).quantile(q)


@pytest.mark.parametrize(
    ("q", "shape"),
    [(0.5, ()), ([], (0,)), ((0.1, 0.9), (2,)), (torch.rand(2, 3), (2, 3)), (np.float32(0.5), ()), (1, ())],
)
def test_shapes_of_results(q, shape, device):
    sketch = sketch_of(X.to(device))
    for result in (sketch.quantile(q), *sketch.bounds(q, magnitude=True)):
        assert result.shape == shape
        assert result.dtype == torch.float64
        assert result.device == sketch.device


@pytest.mark.parametrize("threshold", [torch.nan, "1", None, 1j, True, [1.0]])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match=r"threshold must be a number; got .*: pass a float"):
        sketch_of(X).below(threshold)


@pytest.mark.parametrize("magnitude", [True, False])
def test_thresholds_beyond_floats(magnitude):
    sketch = sketch_of(torch.tensor([-1.0, 2.0]))
    assert sketch.below(10**400, magnitude=magnitude) == 1
    assert sketch.below(-(10**400), magnitude=magnitude) == 0


def test_incompatible_sketches():
    sketch, other, elsewhere = sketch_of(X), sketch_of(X, 4), ss.QuantileSketch(device="meta")
    for call, operands, error, message in (
        (iadd, (sketch, other), ValueError, "mantissa_bits=3 and 4 .*: merge sketches of the same"),
        (add, (sketch, other), ValueError, "mantissa_bits=3 and 4"),
        (iadd, (sketch, X), TypeError, r"only a QuantileSketch can be merged, got Tensor: use update"),
        (add, (sketch, [1.0]), TypeError, "unsupported operand"),
        (iadd, (sketch, elsewhere), ValueError, "counts on cpu, .* on meta"),
        (add, (elsewhere, sketch), ValueError, "counts on meta, .* on cpu"),
        (ss.QuantileSketch.update, (elsewhere, X), ValueError, r"on meta, .*sketch \+= other.to\(device\)"),
    ):
        with pytest.raises(error, match=message):
            call(*operands)
    assert same(sketch, sketch_of(X))


@pytest.mark.parametrize(
    ("x", "received"),
    [
        (torch.arange(3), "dtype torch.int64: convert it with x.float"),
        (torch.ones(3, dtype=torch.complex64), "dtype torch.complex64: apply it to the real"),
        (torch.ones(3).to_sparse(), "layout torch.sparse_coo: convert it with x.to_dense"),
        ([1.0], "list: use torch.as_tensor"),
        (np.ones(3), "ndarray: use torch.as_tensor"),
        (1.0, "float: use torch.as_tensor"),
        (None, "NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_bad_input(x, received):
    sketch = ss.QuantileSketch()
    with pytest.raises(TypeError, match=rf"update\(\) takes a dense tensor .*got {received}"):
        sketch.update(x)
    assert sketch.device is None
    assert sketch.count == 0


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (ss.QuantileSketch(4).state_dict(), r"mantissa_bits=4 .*mantissa_bits=3.*QuantileSketch\(4\)"),
        ({"mantissa_bits": 3, "counts": torch.zeros(7, dtype=torch.int64)}, "mantissa_bits=3"),
        ({"mantissa_bits": 3, "counts": torch.zeros(4086, dtype=torch.int32)}, "int32"),
        ({"mantissa_bits": 3, "counts": torch.zeros(4086)}, "float32"),
        ({"mantissa_bits": 3, "counts": [0] * 4086}, "counts of type list, not an int64 tensor"),
        ({"step": 7}, "counts of type NoneType, not an int64 tensor"),
    ],
    ids=["other bits", "other length", "int32", "float32", "list", "of something else"],
)
def test_bad_states(state, message):
    sketch = sketch_of(X)
    with pytest.raises(ValueError, match=message):
        sketch.load_state_dict(state)
    assert same(sketch, sketch_of(X))


def test_all_reduce_without_processes():
    with pytest.raises(RuntimeError, match=r"not initialized: call .*init_process_group"):
        sketch_of(X).all_reduce()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1.0], 0.5), TypeError, r"quantile\(\) takes a dense tensor .* got list"),
        ((torch.arange(3), 0.5), TypeError, r"got dtype torch.int64: convert it with x.float\(\)"),
        ((torch.ones(3), 1.5), ValueError, r"q must be from 0 to 1; got 1.5"),
        ((torch.ones(3), [0.1, float("nan")]), ValueError, r"q must be from 0 to 1; got nan"),
        ((torch.ones(3), "half"), TypeError, r"q must be a number or a sequence of numbers; got 'half'"),
        ((torch.ones(3), None), TypeError, r"q must be a number or a sequence of numbers; got None"),
        ((torch.ones(3), [[0.1]]), ValueError, r"one-dimensional; got shape \(1, 1\): use q.flatten"),
        ((torch.ones(3, 0), 0.5, 1), ValueError, r"needs values; got shape \(3, 0\) with dim=1"),
        ((torch.ones(0), 0.5), ValueError, r"needs values; got shape \(0,\)"),
        ((torch.ones(3), 0.5, 4), IndexError, r"Dimension out of range"),
    ],
)
def test_bad_input_of_quantile(arguments, error, text):
    with pytest.raises(error, match=text):
        ss.quantile(*arguments)


@pytest.mark.parametrize("dim", [True, 1.0, "0", (0, 1)], ids=str)
def test_dimension_of_wrong_type(dim):
    with pytest.raises(TypeError, match=r"dim must be an int or None \(all\); got .*: flatten the dim"):
        ss.quantile(torch.ones(2, 2), 0.5, dim)


def test_numpy_dimension():
    assert ss.quantile(torch.arange(6.0).view(2, 3), 0.5, np.int64(1)).tolist() == [1, 4]


def test_unknown_options_of_quantile():
    with pytest.raises(ValueError, match=r"interpolation must be one of linear, .*; got 'cubic'"):
        ss.quantile(torch.ones(3), 0.5, interpolation="cubic")
    with pytest.raises(ValueError, match=r"nan_policy must be one of propagate, omit; got 'raise'"):
        ss.quantile(torch.ones(3), 0.5, nan_policy="raise")
    with pytest.raises(ValueError, match=r"interpolation must be"):
        ss.foreach_quantile([torch.ones(3)], 0.5, interpolation=None)
    with pytest.raises(TypeError, match=r"foreach_quantile\(\) takes a dense tensor"):
        ss.foreach_quantile([torch.ones(3), 1.0], 0.5)


@pytest.mark.parametrize(
    ("tensors", "error", "text"),
    [
        (5, TypeError, "takes a sequence of tensors, got int: pass a list, or use quantile"),
        ({"a": torch.ones(3)}, TypeError, r"a sequence of tensors, got dict: pass its values\(\)"),
        ("ab", TypeError, "a sequence of tensors, got str: pass a list"),
        ([torch.ones(3), torch.ones(2, 0)], ValueError, r"tensors\[1\]: .*got shape \(2, 0\): leave"),
        ([torch.ones(1), torch.arange(3)], TypeError, r"tensors\[1\]: .*got dtype torch.int64: conv"),
        ([torch.ones(1), None], TypeError, r"tensors\[1\]: .*got NoneType: use torch.as_tensor"),
    ],
    ids=["int", "dict", "str", "empty", "integers", "None"],
)
def test_bad_input_of_foreach_quantile(tensors, error, text):
    with pytest.raises(error, match=text) as caught:
        ss.foreach_quantile(tensors, 0.5)
    assert "foreach_quantile()" in str(caught.value)


def test_bad_q_of_foreach_quantile():
    with pytest.raises(ValueError, match="one-dimensional"):
        ss.foreach_quantile([torch.ones(3)], [[0.5]])


def test_foreach_quantile_of_values():
    assert ss.foreach_quantile({"a": torch.ones(3)}.values(), 0.5) == [1]
    assert ss.foreach_quantile([], 0.5) == []
