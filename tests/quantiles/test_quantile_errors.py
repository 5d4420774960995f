"""What exact quantiles refuse, and in which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sigscale as ss


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
        ((torch.ones(3, 0), 0.5, 1), ValueError, r"needs values: got shape \(3, 0\) with dim=1"),
        ((torch.ones(3), 0.5, 4), IndexError, r"Dimension out of range"),
    ],
)
def test_bad_input(arguments, error, text):
    with pytest.raises(error, match=text):
        ss.quantile(*arguments)


@pytest.mark.parametrize("dim", [True, 1.0, "0", (0, 1)], ids=str)
def test_dimensions_that_are_no_integers(dim):
    with pytest.raises(TypeError, match=r"dim must be an int or None \(all\); got .*: flatten the dim"):
        ss.quantile(torch.ones(2, 2), 0.5, dim)


def test_a_dimension_that_numpy_gave():
    assert ss.quantile(torch.arange(6.0).view(2, 3), 0.5, np.int64(1)).tolist() == [1, 4]


def test_unknown_options():
    with pytest.raises(ValueError, match=r"interpolation must be one of linear, .*; got 'cubic'"):
        ss.quantile(torch.ones(3), 0.5, interpolation="cubic")
    with pytest.raises(ValueError, match=r"nan_policy must be one of propagate, omit; got 'raise'"):
        ss.quantile(torch.ones(3), 0.5, nan_policy="raise")
    with pytest.raises(ValueError, match=r"interpolation must be"):
        ss.foreach_quantile([torch.ones(3)], 0.5, interpolation=None)
    with pytest.raises(TypeError, match=r"foreach_quantile\(\) takes a dense tensor"):
        ss.foreach_quantile([torch.ones(3), 1.0], 0.5)
