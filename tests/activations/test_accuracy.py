"""Errors of every function, dtype and alpha against correctly rounded results; bounds from the registry."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import sigscale as ss
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.activation import backward, forward
from sigscale.kernels.device import takes_kernel
from tests.oracles import truth

SLOPE_ERROR = 3e-6
SAMPLE = 2**15 if INTERPRETED else 2**18
ALPHAS = (0.3, 2.0) if INTERPRETED else truth.ALPHAS  # at least 1 / alpha rounded, and exact

functions = pytest.mark.parametrize("name", list(ss.FUNCTIONS))
narrow = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])


def bound(name, device):
    """In ulp of fp32, of what computes tensors of this device."""
    function = ss.FUNCTIONS[name]
    return function.kernel_ulp if takes_kernel(torch.ones(1, device=device)) else function.torch_ulp


def activation(name, x, alpha, device):
    return getattr(ss, name)(x.to(device), alpha).cpu()


def slopes(name, x, alpha, device, save="input"):
    """f'(x / alpha) as the backward pass gives it for a gradient of ones."""
    x = x.to(device)
    saved = x if save == "input" else forward(ss.FUNCTIONS[name], x, alpha)
    ones = torch.ones_like(saved)
    return backward(ss.FUNCTIONS[name], ones, saved, alpha, from_output=save == "output").cpu()


@functions
def test_truth(name):
    """mp_slope is the derivative of mp_value; the fast truth is the exact one, to a millionth of an ulp."""
    function = ss.FUNCTIONS[name]
    u = np.concatenate([s * np.geomspace(1e-30, 80.0, 60) for s in (1, -1)])
    with mpmath.workdps(200):
        want = [float(mpmath.diff(function.mp_value, mpmath.mpf(v))) for v in u.tolist()]
    exact = truth.exact_slope(name, u, 1.0)
    np.testing.assert_allclose(exact, want, rtol=1e-15)
    near = {"rtol": 2.0**-43, "atol": truth.VANISHING}
    np.testing.assert_allclose(truth.slope(name, u, 1.0), exact, **near)
    np.testing.assert_allclose(truth.value(name, u, 1.0), truth.exact_value(name, u, 1.0), **near)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "arctan", "softsign"])
def test_truth_is_what_pytorch_computes(name):
    theirs = getattr(torch, name, None) or getattr(F, name)
    x = torch.linspace(-30, 30, 301, dtype=torch.float64)
    torch.testing.assert_close(torch.from_numpy(truth.exact_value(name, x.numpy(), 1.0)), theirs(x))


@functions
@narrow
@pytest.mark.interpreter
def test_every_16_bit_input(name, dtype, device):
    x = truth.every_16_bit(dtype)
    misrounded = 0
    for alpha in ALPHAS:
        error = truth.ulps(activation(name, x, alpha, device), truth.value(name, x.double().numpy(), alpha))
        assert error.max() <= 0.51, f"alpha = {alpha}: {error.max():.4f} ulp at {x[int(error.argmax())]}"
        misrounded += int((error > 0.5 + 1e-9).sum())
    assert misrounded <= 1e-4 * len(ALPHAS) * x.numel()


@functions
@narrow
@pytest.mark.interpreter
def test_every_16_bit_derivative(name, dtype, device):
    x = truth.every_16_bit(dtype)
    smallest = torch.finfo(torch.float32).smallest_normal  # below, the hardware flushes to zero
    for alpha in ALPHAS:
        exact = truth.slope(name, x.double().numpy(), alpha)
        got = slopes(name, x, alpha, device)
        assert not (got < 0).any()
        error = truth.ulps(got, exact)
        error[torch.from_numpy(exact < 1.01 * smallest) & (got <= smallest)] = 0.0
        assert error.max() <= 0.51, f"alpha = {alpha}: {error.max():.4f} ulp at {x[int(error.argmax())]}"


@functions
@pytest.mark.interpreter
def test_fp32(name, device):
    x = truth.stratified_fp32(SAMPLE)
    for alpha in ALPHAS:
        error = truth.ulps(activation(name, x, alpha, device), truth.value(name, x.double().numpy(), alpha))
        worst = f"alpha = {alpha}: {error.max():.3f} ulp at {x[int(error.argmax())]:.9g}"
        assert error.max() <= bound(name, device), worst


@functions
@pytest.mark.interpreter
def test_fp32_derivative(name, device):
    x = truth.stratified_fp32(SAMPLE)
    for alpha in ALPHAS:
        exact = truth.slope(name, x.double().numpy(), alpha)
        got = slopes(name, x, alpha, device).double().numpy()
        assert np.array_equal(np.isnan(got), np.isnan(exact))
        normal = exact >= 2.0**-126
        error = np.abs(got[normal] / exact[normal] - 1.0)
        worst = f"alpha = {alpha}: {error.max():.3g} at {x[normal][int(error.argmax())]:.9g}"
        assert error.max() <= SLOPE_ERROR, worst
        assert np.nanmax(np.abs(got - exact)[~normal]) <= 2.0**-125


@functions
@pytest.mark.interpreter
def test_fp32_derivative_from_output(name, device):
    """As good as the rounding of the output allows: 4 ulp of alpha in y, through d slope / d y."""
    x = truth.stratified_fp32(SAMPLE)
    x = x[x.isfinite()]
    for alpha in ALPHAS:
        exact = truth.slope(name, x.double().numpy(), alpha)
        got = slopes(name, x, alpha, device, save="output").double().numpy()
        assert np.min(got) >= 0
        assert np.max(np.abs(got - exact)) <= 8 * 2.0**-23, alpha


@functions
@pytest.mark.interpreter
def test_fp64(name, device):
    x = torch.from_numpy(np.concatenate([s * np.geomspace(1e-300, 1e300, 1000) for s in (1, -1)]))
    for alpha in ALPHAS:
        exact = truth.exact_value(name, x.numpy(), alpha)
        error = truth.ulps(activation(name, x, alpha, device), exact)
        # Two roundings by alpha; where f decays like e^u, the first is magnified by |u|.
        assert torch.all((error <= 4 + (x / alpha).abs()) | (torch.from_numpy(exact).abs() < 2.0**-1000))
        exact = truth.exact_slope(name, x.numpy(), alpha)
        for save in ("input", "output"):
            got = slopes(name, x, alpha, device, save).numpy()
            np.testing.assert_allclose(got, exact, rtol=1e-12, atol=1e-15)


@functions
@pytest.mark.parametrize("dtype", list(truth.FORMATS), ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.interpreter
def test_limits_and_zeros(name, dtype, device):
    function = ss.FUNCTIONS[name]
    x = torch.tensor([torch.inf, -torch.inf, 0.0, -0.0, torch.nan], dtype=dtype)
    y = activation(name, x, 1.7, device)
    limits = np.array([function.upper, function.lower, function.value_at_zero])
    assert truth.ulps(y[:3], 1.7 * limits).max() <= 1
    assert y[4].isnan()
    if function.symmetry == "odd":
        for alpha in (0.3, 1.7, 2.0, 3.7):
            zeros = activation(name, x[2:4], alpha, device)
            assert torch.signbit(zeros).tolist() == [False, True], alpha
    slope = slopes(name, x, 1.7, device)
    assert slope[:4].tolist() == [0.0, 0.0, function.slope_at_zero, function.slope_at_zero]


@functions
@pytest.mark.interpreter
def test_extreme_alpha(name, device):
    x = torch.tensor([0.0, 1e-15, 1.0, -3.0, 1e10, -1e30, 3e38, torch.inf])
    for alpha in (2.0**-36, 1e-9, 64.0, 1e9, 2.0**36):
        tail = -alpha * torch.linspace(80, 120, 81)  # e^u becomes subnormal here, alpha e^u later
        y = activation(name, torch.cat([x, tail]), alpha, device)
        exact = truth.exact_value(name, torch.cat([x, tail]).double().numpy(), alpha)
        assert truth.ulps(y, exact).max() <= bound(name, device), alpha


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_fp64_tails_are_subnormal(alpha, device):
    """Where exp(-u) overflows, sigmoid and the slopes are still as large as exp(u), not zero."""
    x = alpha * torch.tensor([-700.0, -709.5, -720.0, -740.0, -800.0], dtype=torch.float64)
    want = alpha * torch.exp(x / alpha)
    tiny = 4 * 2.0**-1074
    torch.testing.assert_close(activation("sigmoid", x, alpha, device), want, rtol=1e-12, atol=tiny)
    torch.testing.assert_close(slopes("sigmoid", x, alpha, device), want / alpha, rtol=1e-12, atol=tiny)
    torch.testing.assert_close(slopes("tanh", x / 2, alpha, device), 4 * want / alpha, rtol=1e-12, atol=tiny)


@pytest.mark.parametrize("name", ["tanh", "arctan", "softsign"])
def test_smallest_gradients(name):
    """Of slope 1 they are what they were, however small."""
    g = torch.arange(1.0, 9.0).mul_(2.0**-149)
    dx = backward(ss.FUNCTIONS[name], g, torch.zeros(8), 1.0, from_output=False)
    assert torch.equal(dx, g)


@pytest.mark.interpreter
def test_where_16_bit_gradients_vanish(device):
    """bf16 rounds tanh to 1 from |u| = 3.5 on; from the saved input the slope survives to |u| = 40."""
    x = torch.tensor([6.75, 7.0, 16.0, 40.0, -80.0], dtype=torch.bfloat16, device=device, requires_grad=True)
    exact = truth.slope("tanh", x.detach().cpu().double().numpy(), 2.0)
    for differentiable, bound in ((False, 0.51), (True, 1.0)):
        (dx,) = torch.autograd.grad(ss.tanh(x, 2.0).sum(), x, create_graph=differentiable)
        assert truth.ulps(dx.detach().cpu(), exact).max() <= bound
    (dx,) = torch.autograd.grad(ss.tanh(x, 2.0, save="output").sum(), x)
    assert dx.ne(0).tolist() == [True, False, False, False, False]


@pytest.mark.skipif(not INTERPRETED, reason="perturbs the interpreter's arithmetic")
@functions
@pytest.mark.interpreter
def test_fp32_survives_the_hardware(name, monkeypatch):
    """The special-function unit errs by up to 2^-22 (exp2), 2^-23 (reciprocal) and flushes subnormals."""
    from sigscale.kernels import functions, math

    def erring(function, bound):
        def perturbed(*arguments):
            result = function(*arguments)
            data = result.handle.data
            signs = np.where(data.view(np.uint32) * np.uint32(2654435761) >> 31, bound, -bound)
            data[...] = data * (1.0 + signs)
            data[np.abs(data) < 2.0**-126] = 0.0
            return result

        return perturbed

    reciprocal = erring(math.quotient, 2.0**-23)
    exp2 = erring(math.exp2, 2.0**-22)
    for module in (math, functions):
        monkeypatch.setattr(module, "exp2", exp2)
        monkeypatch.setattr(module, "quotient", lambda x, y: x * reciprocal(1.0, y))
    test_fp32(name, "cpu")
    test_fp32_derivative(name, "cpu")


@pytest.mark.parametrize(
    ("device", "chunk", "stride"),
    [("cpu", 2**10, 2**26), pytest.param("cuda", 2**27, 2**27, marks=pytest.mark.gpu)],
)
@functions
@pytest.mark.interpreter
def test_every_fp32_input(name, device, chunk, stride):
    """All 2^32 bit patterns, forward and derivative; without a GPU, stretches of them."""
    function = ss.FUNCTIONS[name]
    for alpha in (1.7,) if INTERPRETED else truth.ALPHAS:
        value, slope = (0.0, 0.0), (0.0, 0.0)  # the largest error, and where
        for first in range(-(2**31), 2**31, stride):
            x = torch.arange(first, first + chunk, dtype=torch.int32, device=device).view(torch.float32)
            u = x.double() / alpha
            error = truth.ulps(getattr(ss, name)(x, alpha), alpha * truth.torch_value(name, u))
            value = max(value, (error.max().item(), x[error.argmax()].item()))
            exact = truth.torch_slope(name, u)
            got = backward(function, torch.ones_like(x), x, alpha, from_output=False).double()
            error = torch.where(exact >= 2.0**-126, (got / exact - 1.0).abs(), 0.0)
            slope = max(slope, (error.max().item(), x[error.argmax()].item()))
        print(f"{name}, alpha = {alpha}: {value[0]:.3f} ulp at {value[1]:.9g}")
        print(f"{name}, alpha = {alpha}: slope off by {slope[0]:.3g} at {slope[1]:.9g}")
        assert value[0] <= bound(name, device)
        assert slope[0] <= SLOPE_ERROR
