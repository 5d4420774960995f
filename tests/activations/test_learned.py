"""An alpha that learns, for a layer and by channel: values and gradients against fp64, in every layout."""

from __future__ import annotations

from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sigscale as ss
from sigscale.kernels._triton import INTERPRETED
from sigscale.kernels.learned import UNIT, row_width
from tests.oracles import truth

OTHERS = [name for name in ss.FUNCTIONS if name != "tanh"]
functions = pytest.mark.parametrize("name", list(ss.FUNCTIONS))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Of the gradient of alpha, relative to the magnitudes of what is added up: errors of terms and of the sum.
TOLERANCE = {torch.float16: 5e-5, torch.bfloat16: 5e-5, torch.float32: 3e-6, torch.float64: 1e-13}


def alpha_terms(name, x, alpha):
    """f(u) - u f'(u) at u = x / alpha in fp64."""
    u = np.clip(x / alpha, -1e15, 1e15)
    return truth.value(name, u, 1.0) - u * truth.slope(name, u, 1.0)


def expected(name, x, alpha, g):
    """y, dx and dalpha in fp64 NumPy, and the sum of the magnitudes of dalpha's terms."""
    x, g, alpha = (t.detach().double().cpu().numpy() for t in (x, g, alpha))
    wide = alpha.reshape(-1, *(1,) * (x.ndim - 2)) if alpha.size > 1 else alpha.reshape(())
    terms = g * alpha_terms(name, x, wide)
    axes = tuple(d for d in range(x.ndim) if d != 1) if alpha.size > 1 else None
    sums = [np.sum(t, axis=axes).reshape(alpha.shape) for t in (terms, np.abs(terms))]
    return truth.value(name, x, wide), g * truth.slope(name, x, wide), *sums


def check(name, x, alpha, g):
    """The function and its gradients with respect to x and alpha against fp64."""
    x, alpha = x.detach().requires_grad_(), alpha.detach().requires_grad_()
    y = getattr(ss, name)(x, alpha)
    y.backward(g)
    value, dx, dalpha, size = (torch.from_numpy(np.asarray(t)) for t in expected(name, x, alpha, g))
    loose = {"rtol": 1e-2, "atol": 1e-3} if x.dtype.itemsize == 2 else {"rtol": 4e-6, "atol": 1e-30}
    torch.testing.assert_close(y.double().cpu(), value, **loose)
    torch.testing.assert_close(x.grad.double().cpu(), dx, **loose)
    assert alpha.grad.shape == alpha.shape
    error = (alpha.grad.double().cpu() - dalpha).abs()
    rounding = torch.finfo(alpha.dtype).eps * dalpha.abs()
    assert (error <= TOLERANCE[x.dtype] * size + rounding + 1e-30).all(), (error / size).max()


SHAPES = [(7,), (33, 10), (2, 8, 16, 16), (2, 3, 40, 40), (5, 16, 1, 7), (3, 1, 9), (1, 5000)]
SHAPES += [(1300, 3)] if INTERPRETED else [(1300, 3), (3, 5, 10_000)]  # the last one in parts


@pytest.mark.parametrize(
    ("name", "shape"),
    [*(("tanh", shape) for shape in SHAPES), *((name, (4, 3, 5, 6)) for name in ss.FUNCTIONS)],
    ids=str,
)
@pytest.mark.interpreter(name=["tanh"], are_large=[False])
@pytest.mark.usefixtures("are_large")
def test_shapes(name, shape, device):
    generator = torch.Generator().manual_seed(len(shape))
    for channels in {1, shape[1] if len(shape) > 1 else 1}:
        alpha = (torch.rand(channels, generator=generator) + 0.5).to(device)
        x, g = (torch.randn(shape, generator=generator).mul(2).to(device) for _ in range(2))
        check(name, x, alpha, g)
        if len(shape) == 4:
            check(name, x.contiguous(memory_format=torch.channels_last), alpha, g)
            check(name, x.transpose(1, 3).contiguous().transpose(1, 3), alpha, g)
            check(name, x.expand(3, *shape)[:, 0], alpha, g[:1].expand(3, *shape[1:]))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in OTHERS), *(("tanh", dtype) for dtype in DTYPES)],
    ids=str,
)
@pytest.mark.interpreter
def test_dtypes(name, dtype, device):
    x, g = (torch.randn(6, 5, 40, device=device).mul(3).to(dtype) for _ in range(2))
    check(name, x, torch.tensor([0.3, 1.0, 1.7, 2.0, 3.7], device=device), g)
    check(name, x, torch.tensor(1.7, device=device), g)
    check(name, x, torch.tensor([1.75], device=device, dtype=dtype), g)


@given(
    outer=st.integers(1, 40),
    channels=st.integers(1, 70),
    inner=st.integers(1, 60),
    last=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=12 if INTERPRETED else 40)
@pytest.mark.interpreter
def test_any_geometry(outer, channels, inner, last, seed):
    """Channels of which rows, tiles and groups hold any number, in the middle of memory or at its end."""
    torch.manual_seed(seed)
    x, g = torch.randn(2, outer, channels, inner)
    if last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    check("softsign", x, torch.rand(channels) + 0.5, g)


@given(period=st.integers(1, 1 << 20), block=st.sampled_from([512, 1024, 2048, 8192]))
def test_rows_fill_their_tiles(period, block):
    width = row_width(period, block)
    assert width % period == 0
    assert width % UNIT == 0
    assert width / (-(-width // block) * block) >= 0.5
    if period <= block // 8 or period % block == 0:
        assert width / (-(-width // block) * block) >= 0.85


@functions
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_default_dtype_changes_nothing(name, dtype, device):
    def gradient():
        alpha = torch.tensor(1.7, dtype=torch.float32, device=device, requires_grad=True)
        getattr(ss, name)(x, alpha).sum().backward()
        return alpha.grad

    x = torch.randn(1000, device=device)
    want, before = gradient(), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(gradient(), want)
    finally:
        torch.set_default_dtype(before)


@functions
@pytest.mark.interpreter
def test_alpha_gradient_near_zero(name, device):
    """Term by term: relative accuracy where f(u) - u f'(u) is a millionth of f(u)."""
    u = torch.logspace(-4, 1.5, 200, device=device)
    function = ss.FUNCTIONS[name]
    for sign in (1, -1):
        alphas = torch.ones(200, device=device).requires_grad_()
        getattr(ss, name)((sign * u).reshape(1, 200), alphas).sum().backward()
        with mpmath.workdps(40):
            points = [sign * mpmath.mpf(v) for v in u.tolist()]
            exact = [float(function.mp_value(v) - v * function.mp_slope(v)) for v in points]
        exact = torch.tensor(exact, dtype=torch.float64)
        torch.testing.assert_close(alphas.grad.double().cpu(), exact, rtol=4e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "alpha"), [*((name, [0.7, 2.5, 1.1]) for name in ss.FUNCTIONS), ("tanh", 1.3)]
)
@pytest.mark.interpreter(name=["tanh"])
def test_gradients_of_first_and_second_order(name, alpha, device):
    alpha = torch.tensor(alpha, dtype=torch.float64, device=device, requires_grad=True)
    x = torch.linspace(-2, 2, 12, dtype=torch.float64, device=device).reshape(2, 3, 2).requires_grad_()
    f = getattr(ss, name)
    assert torch.autograd.gradcheck(f, (x, alpha))
    assert torch.autograd.gradgradcheck(f, (x, alpha))
    assert torch.autograd.gradcheck(lambda a: f(x.detach(), a), alpha)
    assert torch.autograd.gradcheck(lambda x: f(x, alpha.detach()), x)
    first, twice = (torch.autograd.grad(f(x, alpha).sum(), (x, alpha), create_graph=g) for g in (False, True))
    torch.testing.assert_close(twice, first)


@pytest.mark.parametrize("alpha", [1.5, [1.5, 0.6]])
@pytest.mark.interpreter
def test_needed_gradients_only(alpha, device):
    x, both = torch.randn(5, 2, 7, device=device), torch.tensor(alpha, device=device)
    full = [t.clone().requires_grad_() for t in (x, both)]
    ss.tanh(*full).sum().backward()
    for needed in product([False, True], repeat=2):
        some = [t.clone().requires_grad_(wanted) for t, wanted in zip((x, both), needed, strict=True)]
        y = ss.tanh(*some)
        assert y.requires_grad == any(needed)
        if y.requires_grad:
            y.sum().backward()
        for t, whole, wanted in zip(some, full, needed, strict=True):
            assert torch.equal(t.grad, whole.grad) if wanted else t.grad is None


@pytest.mark.parametrize("alpha", [1.5, [1.5, 0.6, 2.0]])
@pytest.mark.interpreter
def test_deterministic_and_dx_as_with_a_number(alpha, device):
    x, g = (torch.randn(40, 3, 31, device=device) for _ in range(2))
    alpha = torch.tensor(alpha, device=device)

    def gradients(alpha):
        inputs = x.clone().requires_grad_(), alpha.clone().requires_grad_()
        ss.sigmoid(*inputs).backward(g)
        return [t.grad for t in inputs]

    for first, second in zip(gradients(alpha), gradients(alpha), strict=True):
        assert torch.equal(first, second)
    for channel, number in enumerate(alpha.flatten().tolist() if alpha.ndim else []):
        part = x[:, channel].clone().requires_grad_()
        ss.sigmoid(part, number, save="input").backward(g[:, channel])
        torch.testing.assert_close(gradients(alpha)[0][:, channel], part.grad, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    ("alpha", "dtype", "mantissa_bits"),
    [
        *((2.0, dtype, 3) for dtype in (torch.float16, torch.float32)),
        *(([2.0, 1.5, 1.0], dtype, 3) for dtype in (torch.bfloat16, torch.float64)),
        (2.0, torch.bfloat16, 5),
        ([2.0, 1.5, 1.0], torch.float32, 5),
    ],
)
@pytest.mark.interpreter(mantissa_bits=[3])
def test_counted(alpha, dtype, mantissa_bits, device):
    """The sketch is that of the stored gradient, and changes neither it nor alpha's."""
    x, g = (torch.randn(50, 3, 101, device=device).to(dtype) for _ in range(2))
    g[::3] = 0
    alpha = torch.tensor(alpha, device=device)
    results = []
    for sketch in (None, ss.QuantileSketch(mantissa_bits)):
        inputs = x.clone().requires_grad_(), alpha.clone().requires_grad_()
        ss.tanh(*inputs, grad_sketch=sketch).backward(g)
        results.append([t.grad for t in inputs])
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert torch.equal(sketch.counts, ss.QuantileSketch(mantissa_bits).update(results[0][0]).counts)


@pytest.mark.interpreter
def test_infinities_and_nan(device):
    """Where f is saturated, its derivative with respect to alpha is its limit, not NaN."""
    x = torch.tensor([[torch.inf, -torch.inf, torch.nan, 3e38]], device=device)
    for name, function in ss.FUNCTIONS.items():
        alpha = torch.ones(4, device=device, requires_grad=True)
        getattr(ss, name)(x, alpha).sum().backward()
        want = torch.tensor([function.upper, function.lower, torch.nan, function.upper], device=device)
        torch.testing.assert_close(alpha.grad, want.float(), equal_nan=True)


@pytest.mark.interpreter
def test_empty(device):
    for shape in ((0,), (0, 3), (4, 3, 0)):
        alpha = torch.ones(3 if len(shape) > 1 else 1, device=device, requires_grad=True)
        x = torch.empty(shape, device=device, requires_grad=True)
        y = ss.tanh(x, alpha)
        y.sum().backward()
        assert y.shape == x.grad.shape == x.shape
        assert torch.equal(alpha.grad, torch.zeros_like(alpha))


@pytest.mark.parametrize("num_parameters", [1, 3])
def test_module_learns_alpha(num_parameters, device):
    layer = ss.nn.Tanh(alpha=1.0, learnable=True, num_parameters=num_parameters, device=device)
    x = torch.randn(64, 3, 5, device=device)
    target = torch.tensor([0.5, 2.0, 3.0], device=device)[:num_parameters].reshape(-1, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(layer(x), target * torch.tanh(x / target)).backward()
        optimizer.step()
    torch.testing.assert_close(layer.alpha.detach(), target.flatten(), rtol=0.05, atol=0)


def test_module_state(device):
    layer = ss.nn.Arctan(learnable=True, num_parameters=2, device=device)
    assert repr(layer) == "Arctan(alpha=2, learnable=True, num_parameters=2)"
    assert layer.learnable
    assert layer.num_parameters == 2
    assert torch.equal(layer.alpha.detach().cpu(), torch.tensor([2.0, 2.0]))
    assert list(layer.state_dict()) == ["log2_alpha"]
    with torch.no_grad():
        layer.log2_alpha.copy_(torch.tensor([0.0, 3.0]))
    assert repr(layer) == "Arctan(alpha=1..8, learnable=True, num_parameters=2)"
    other = ss.nn.Arctan(alpha=1.5, learnable=True, num_parameters=2, device=device)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.alpha.detach().cpu(), torch.tensor([1.0, 8.0]))
    other.reset_parameters()
    torch.testing.assert_close(other.alpha.detach().cpu(), torch.tensor([1.5, 1.5]))
    layer.alpha = 4.0
    assert torch.equal(layer.alpha.detach().cpu(), torch.tensor([4.0, 4.0]))
    fixed = ss.nn.Arctan(alpha=1.5)
    assert not fixed.learnable
    assert not fixed.state_dict()
    assert fixed.num_parameters == 0


INTEGER = "num_parameters must be an integer from 1.*got "
LEARNS = {"learnable": True}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (LEARNS | {"num_parameters": 1.5}, TypeError, INTEGER + r"1\.5"),
        (LEARNS | {"num_parameters": True}, TypeError, INTEGER + "True"),
        (LEARNS | {"num_parameters": 0}, ValueError, INTEGER + "0"),
        ({"num_parameters": 3}, ValueError, "num_parameters=3 is for an alpha that learns: pass learnable=T"),
        (LEARNS | {"save": "output"}, ValueError, 'save="output" is not possible with an alpha that learns'),
        (LEARNS | {"alpha": -1}, ValueError, "finite and > 0; got -1"),
        (LEARNS | {"alpha": torch.tensor(2.0)}, TypeError, "got a tensor of shape"),
        ({"learnable": "yes"}, TypeError, "learnable must be True or False"),
        ({"learnable": "no", "num_parameters": 3}, TypeError, "learnable must be True or False"),
    ],
)
def test_wrong_arguments_of_a_module(arguments, error, message):
    with pytest.raises(error, match=message):
        ss.nn.Tanh(**arguments)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (torch.tensor(2), TypeError, r"floating-point dtype; got torch\.int64: use alpha\.float\(\)"),
        (torch.ones(4), ValueError, r"got shape \(4,\) for x of shape \(4, 3\): use num_parameters=1 or 3"),
        (torch.ones(3, 1), ValueError, r"got shape \(3, 1\)"),
        (torch.tensor(2.0, device="meta"), ValueError, "on the device of x, cpu; got meta"),
        (torch.tensor([1.0, -2, 1]), ValueError, "from -2 to 1: if it was learned, training diverged"),
        (torch.tensor(torch.nan), ValueError, "from nan to nan"),
        (torch.tensor(2.0**37), ValueError, r"between 2\^-36 and 2\^36"),
        (torch.empty(0), ValueError, "one element, or one for each"),
    ],
)
def test_wrong_alphas(alpha, error, message):
    with pytest.raises(error, match=message):
        ss.tanh(torch.randn(4, 3), alpha)


def test_no_channels():
    with pytest.raises(ValueError, match=r"got shape \(0,\) for x of shape \(4, 0\): use num_parameters=1$"):
        ss.tanh(torch.randn(4, 0), torch.empty(0))


def test_wrong_calls():
    with pytest.raises(ValueError, match="not possible with an alpha that learns"):
        ss.tanh(torch.randn(4, 3), torch.tensor(2.0), save="output")
    with pytest.raises(ValueError, match="use num_parameters=1"):
        ss.tanh(torch.randn(3), torch.ones(3))


def test_diverged_alpha():
    layer = ss.nn.Tanh(learnable=True)
    with torch.no_grad():
        layer.log2_alpha.fill_(50.0)
    with pytest.raises(ValueError, match=r"training diverged; lower its learning rate, or reset it with lay"):
        layer(torch.randn(3))
    layer.reset_alpha()
    assert torch.equal(layer(torch.zeros(3)), torch.zeros(3))


@pytest.mark.gpu
def test_out_of_range_alpha_on_gpu():
    """Where nothing waits for the device, by NaN."""
    x = torch.randn(4, 3, device="cuda", requires_grad=True)
    alpha = torch.tensor([1.0, -1.0, 2.0**40], device="cuda", requires_grad=True)
    y = ss.tanh(x, alpha)
    y.sum().backward()
    for t in (y[:, 1:], x.grad[:, 1:], alpha.grad[1:]):
        assert t.isnan().all()
    assert not y[:, 0].isnan().any()
