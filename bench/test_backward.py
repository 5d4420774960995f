"""Backward passes that do more: count the gradient (`grad_sketch`), or learn alpha.

    kind        provider         what
    backward    no sketch        the gradient alone
                sigscale         with grad_sketch: counted by the kernel that computes it
                second pass      the gradient, then QuantileSketch.update of it
                torch.quantile   the gradient, then five quantiles of it, exactly
    learned     fixed alpha      a number, the gradient from the saved input
                sigscale         a tensor: one alpha for all, or one for each of 64 channels, in memory the
                                 last or, with 256 elements each, not the last dimension
                eager            alpha * f(x / alpha) with that tensor, written by hand

Directions: forward+backward, and the backward pass alone. Where the incoming gradient is constant, x is too,
so that all values counted are alike. Aims on a GPU: counting costs 1.02 in fp32 and 1.03 in bf16 from 2^26
elements on, 2.5 us more than that up to 2^22; learning alpha 1.05 at 2^26.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import sigscale
from bench.harness.activations import BACKWARD, FIRST, TRAINING, bind
from bench.harness.inputs import FIVE, Case, generate, grid, parametrize
from bench.harness.options import Settings, settings
from bench.harness.providers import ALPHA, WAITING, Activation, Learned, by_hand
from bench.harness.timing import OURS, Bench, replayed

EXPONENTS = {"cpu": [10, 14, 17, 20], "cuda": [*range(10, 29, 2)]}
SHAPES = {"layer": (-1,), "channels last": (-1, 64), "channels": (-1, 64, 256)}
CHANNELS_FROM = 14  # exponent
Ways = dict[str, Callable[[], Any]]


def cases(given: Settings) -> Iterator[Case]:
    """The grid for a device, of the first function; `test_activations.py` has all, with one alpha."""
    sizes = given.sizes(EXPONENTS)
    learned = [(of, n) for of in SHAPES for n in sizes if of == "layer" or n >= CHANNELS_FROM]
    kinds = (("backward", "values", [*grid(given.device, sizes)]), ("learned", "alphas", learned))
    for dtype in given.dtypes:
        for direction in (TRAINING, BACKWARD):
            for kind, name, chosen in kinds:
                for of, exponent in chosen:
                    what = (("kind", kind), ("function", FIRST), ("direction", direction), (name, of))
                    yield Case(what, dtype, exponent, given.device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize(metafunc, cases(settings(metafunc.config)))


def test_backward(bench: Bench, case: Case) -> None:
    bound, baseline = learning(case) if case["kind"] == "learned" else counting(case)
    refused: dict[str, str] = {}
    try:
        bound.get("torch.quantile", bound[OURS])()
    except RuntimeError as error:
        refused["torch.quantile"] = str(error).split("\n")[0]
        del bound["torch.quantile"]
    bench.compare(case.about, replayed(bound, case.device, WAITING), refused, baseline=baseline)
    bench.steady(case["kind"], bound[OURS])


def counting(case: Case) -> tuple[Ways, str]:
    """The ways to count, checked against each other, and the baseline."""
    n, f = case.elements, partial(getattr(sigscale, FIRST), alpha=ALPHA)
    g = generate(case["values"], n, case.dtype, case.device)
    x = generate(
        "constant" if case["values"] == "constant" else "Gaussian", n, case.dtype, case.device, seed=1
    )
    x.requires_grad_()
    sketch = sigscale.QuantileSketch(device=case.device)
    gradient = bind(f, x, g, case["direction"] == BACKWARD)
    counted = bind(partial(f, grad_sketch=sketch), x, g, case["direction"] == BACKWARD)
    check_counting(case, gradient(), counted(), sketch)
    bound: Ways = {"no sketch": gradient, OURS: counted}
    if case["direction"] == TRAINING:
        q = torch.tensor(FIVE, dtype=case.dtype, device=case.device)
        bound["second pass"] = lambda: sketch.update(gradient())
        bound["torch.quantile"] = lambda: torch.quantile(gradient(), q)
    return bound, "no sketch"


def check_counting(case: Case, gradient: Any, counted: Any, sketch: sigscale.QuantileSketch) -> None:
    """The same gradient with and without a sketch, bit for bit, and the sketch that of the gradient."""
    torch.testing.assert_close(
        gradient, counted, rtol=0, atol=0, msg=f"counting changes the gradient in {case}"
    )
    expected = sigscale.QuantileSketch().update(gradient).counts
    assert torch.equal(sketch.counts, expected), f"the sketch is not that of the gradient in {case}"


def learning(case: Case) -> tuple[Ways, str]:
    """The ways to learn alpha, checked against each other, and the baseline."""
    x, g = (
        generate("Gaussian", case.elements, case.dtype, case.device, seed).reshape(SHAPES[case["alphas"]])
        for seed in range(2)
    )
    x.requires_grad_()
    alpha = torch.full((1 if case["alphas"] == "layer" else x.shape[1],), ALPHA, device=case.device)
    alpha.requires_grad_()
    f, written = getattr(sigscale, FIRST), by_hand(FIRST)

    def eager(x: Tensor, alpha: Tensor) -> Tensor:
        scale = alpha.reshape(-1, *(1,) * max(x.ndim - 2, 0)).to(x.dtype)
        return scale * written(x / scale)

    functions: dict[str, Activation] = {
        "fixed alpha": partial(f, alpha=ALPHA, save="input"),
        OURS: Learned(f, alpha),
        "eager": Learned(eager, alpha),
    }
    check_learning(case, functions, x, g)
    alone = case["direction"] == BACKWARD
    return {name: bind(function, x, g, alone) for name, function in functions.items()}, "fixed alpha"


def check_learning(case: Case, functions: dict[str, Activation], x: Tensor, g: Tensor) -> None:
    """The same gradient of x with a number and with a tensor, and that of alpha as by hand, to rounding."""
    rounding = 2e-2 if case.dtype.itemsize == 2 else 1e-4
    ours = functions[OURS]
    assert isinstance(ours, Learned)
    dx, dalpha = torch.autograd.grad(ours(x), (x, ours.alpha), g)
    for name, expected, of, found in (
        ("fixed alpha", functions["fixed alpha"], x, dx),
        ("eager", functions["eager"], x, dx),
        ("eager", functions["eager"], ours.alpha, dalpha),
    ):
        (gradient,) = torch.autograd.grad(expected(x), of, g)
        atol = rounding * (case.elements) ** 0.5 if name == "eager" else rounding
        message = f"{case}: sigscale and {name} differ"
        torch.testing.assert_close(found, gradient, rtol=rounding, atol=atol, msg=message)
