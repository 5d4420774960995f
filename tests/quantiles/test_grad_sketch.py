"""Gradients counted by the backward pass: exactly those that it stores, which do not change."""

from __future__ import annotations

import copy
import threading
import time
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import sigscale as ss
from sigscale.kernels._triton import INTERPRETED
from tests.activations.test_layout import views
from tests.oracles import adversarial
from tests.oracles.adversarial import DTYPES, MANTISSA_BITS, bits

EXAMPLES = 25 if INTERPRETED else 100
SIZES = (0, 1, 8191, 20_000) if INTERPRETED else (0, 1, 127, 8191, 8192, 8193, 20_000, 300_007)

OTHERS = [name for name in ss.FUNCTIONS if name != "tanh"]

functions = pytest.mark.parametrize("name", list(ss.FUNCTIONS))
saves = pytest.mark.parametrize("save", ["input", "output"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def input_and_gradient(n: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs from the middle to saturation; gradients with every special value, in every tile."""
    rng = np.random.default_rng(n)
    x = torch.from_numpy(rng.standard_normal(n) * np.exp(rng.uniform(-3, 4, n))).to(dtype)
    specials = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny]
    specials = torch.tensor([*specials, torch.finfo(dtype).smallest_normal / 8], dtype=torch.float64).to(
        dtype
    )
    g = torch.from_numpy(rng.standard_normal(n) * np.exp2(rng.uniform(-30, 10, n))).to(dtype)
    which = torch.from_numpy(rng.integers(0, 2 * len(specials), n))
    g = torch.where(which < len(specials), specials[which % len(specials)], g)
    return x.to(device), g.to(device)


def gradient(name, x, g, sketch=None, **options):
    leaf = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(getattr(ss, name)(leaf, grad_sketch=sketch, **options), leaf, g)
    return dx


def assert_counted(sketch: ss.QuantileSketch, *gradients: torch.Tensor) -> None:
    """By the truth of `adversarial.py`, and by the sketch's own counting."""
    m = sketch.mantissa_bits
    want = sum(adversarial.counts(dx, m) for dx in gradients)
    np.testing.assert_array_equal(sketch.counts.cpu().numpy(), want)
    alone = ss.QuantileSketch(m)
    for dx in gradients:
        alone.update(dx)
    assert torch.equal(sketch.counts, alone.counts)


@pytest.mark.parametrize(
    ("name", "dtype", "save"),
    [
        *product(["tanh"], DTYPES, ["input", "output"]),
        *product(OTHERS, [torch.bfloat16], ["input"]),
        *product(OTHERS, [torch.float32], ["output"]),
    ],
    ids=str,
)
@pytest.mark.interpreter(name=["tanh"])
def test_counts_and_gradient(name, dtype, save, device):
    for i, n in enumerate(SIZES if device == "cpu" else (*SIZES, 2**22 + 3)):
        x, g = input_and_gradient(n, dtype, device)
        sketch = ss.QuantileSketch(MANTISSA_BITS[i % 4])
        options = {"save": save, "alpha": (2.0, 1.7)[i % 2]}
        plain, dx = gradient(name, x, g, **options), gradient(name, x, g, sketch, **options)
        assert torch.equal(bits(dx), bits(plain))
        assert_counted(sketch, dx)


@dtypes
@pytest.mark.interpreter
def test_every_mantissa_bits(dtype, device):
    x, g = input_and_gradient(9000, dtype, device)
    for m in MANTISSA_BITS:
        sketch = ss.QuantileSketch(m)
        assert_counted(sketch, gradient("tanh", x, g, sketch))


@pytest.mark.parametrize(
    ("name", "dtype"), [*product(["tanh"], DTYPES), *product(OTHERS, [torch.float32])], ids=str
)
@pytest.mark.interpreter(name=["tanh"])
def test_adversarial_gradients(name, dtype, device):
    """At 0 slopes are powers of two: numbers arrive as they are, but for the exponent."""
    for case in (case for case, of in adversarial.TABLE if of is dtype):
        g = adversarial.CASES[case](dtype).to(device)
        sketch = ss.QuantileSketch(2)
        assert_counted(sketch, gradient(name, torch.zeros_like(g), g, sketch, save="input"))


@pytest.mark.parametrize(("name", "save"), [("tanh", "output"), ("softsign", "input")])
@pytest.mark.interpreter
def test_any_layout(name, save, device):
    @settings(max_examples=EXAMPLES)
    @given(x=views(), how=st.sampled_from(["alike", "transposed", "expanded", "negative"]))
    def check(x, how):
        x = x.to(device)
        g = torch.linspace(-3, 3, max(x.numel(), 1), device=device)[: x.numel()].to(x.dtype).reshape(x.shape)
        if how == "transposed" and x.ndim:
            g = g.transpose(0, -1).contiguous().transpose(0, -1)
        if how == "expanded":
            g = torch.full((), 0.5, dtype=x.dtype, device=device).expand(x.shape)
        if how == "negative":
            g = torch._neg_view(g)
        sketch = ss.QuantileSketch()
        dx = gradient(name, x, g, sketch, save=save)
        assert torch.equal(dx, gradient(name, x, g, save=save))
        assert_counted(sketch, dx)

    check()


@pytest.mark.interpreter
def test_accumulation(device):
    """Over repeated passes and over activations that share a sketch, in any dtype; never in a forward."""
    sketch, counted = ss.QuantileSketch(), []
    leaf = torch.randn(333, device=device, requires_grad=True)
    y = ss.tanh(leaf, grad_sketch=sketch)
    assert sketch.device is None
    for g in (torch.ones_like(leaf), torch.randn_like(leaf)):
        counted += torch.autograd.grad(y, leaf, g, retain_graph=True)
    for name, dtype in (("sigmoid", torch.bfloat16), ("softsign", torch.float32)):
        x, g = input_and_gradient(200, dtype, device)
        counted.append(gradient(name, x, g, sketch))
    assert_counted(sketch, *counted)
    twice = ss.QuantileSketch()
    x = torch.randn(50, device=device, requires_grad=True)
    inner = ss.arctan(x, grad_sketch=twice)
    ds, dx = torch.autograd.grad(ss.tanh(inner, grad_sketch=twice).sum(), (inner, x))
    assert_counted(twice, ds, dx)


@pytest.mark.skipif(INTERPRETED, reason="kernels add atomically")
def test_thread_safety(monkeypatch):
    """Their backward passes run side by side, and PyTorch's addition to a CPU tensor is no atomic one."""

    def add_slowly(self, other):
        before = self.clone()
        time.sleep(0.001)
        return self.copy_(before.add(other))

    def train():
        for _ in range(10):
            ss.tanh(torch.ones(7, requires_grad=True), grad_sketch=sketch).sum().backward()

    monkeypatch.setattr(torch.Tensor, "__iadd__", add_slowly)
    sketch = ss.QuantileSketch()
    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sketch.count == 4 * 10 * 7


@pytest.mark.interpreter
def test_nothing_to_count(device):
    sketch = ss.QuantileSketch()
    x = torch.randn(5, device=device)
    assert torch.equal(ss.tanh(x, grad_sketch=sketch), ss.tanh(x))
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        assert ss.tanh(leaf, grad_sketch=sketch).grad_fn is None
    with torch.inference_mode():
        ss.tanh(leaf, grad_sketch=sketch)
    w = torch.ones(5, device=device, requires_grad=True)
    (ss.tanh(x, grad_sketch=sketch) * w).sum().backward()
    assert sketch.device is None
    assert sketch.count == 0


@functions
@saves
@pytest.mark.interpreter(name=["tanh"])
@pytest.mark.works_with("double backward", "grad_sketch")
def test_double_backward_counts_once(name, save, device):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64, device=device).requires_grad_()
    sketch = ss.QuantileSketch()

    def activation(x):
        return getattr(ss, name)(x, 1.3, save=save, grad_sketch=sketch)

    (dx,) = torch.autograd.grad(activation(x).sum(), x, create_graph=True)
    assert_counted(sketch, dx.detach())
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    (plain,) = torch.autograd.grad(getattr(ss, name)(x, 1.3, save=save).sum(), x, create_graph=True)
    assert torch.equal(dx, plain)
    assert torch.equal(ddx, torch.autograd.grad(plain.sum(), x)[0])
    assert torch.autograd.gradcheck(activation, x)
    assert torch.autograd.gradgradcheck(activation, x)


@pytest.mark.parametrize("save", ["input", None])
@pytest.mark.parametrize("sketch", [None, ss.QuantileSketch()], ids=["", "counted"])
def test_overwritten_input(save, sketch):
    """x += y, a residual connection in place, needs save="output", which the error names."""
    leaf = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)
    for keep in ("output", save):
        x = leaf * 2
        x += ss.tanh(x, save=keep, grad_sketch=sketch)
        if keep == "output":
            x.sum().backward()
            continue
        with pytest.raises(RuntimeError, match=r'(?s)inplace operation.*save="output" keeps the output inst'):
            x.sum().backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.interpreter
@pytest.mark.works_with("activation checkpointing", "grad_sketch")
def test_checkpointing_counts_once(use_reentrant, device):
    sketch = ss.QuantileSketch()
    x = torch.randn(64, device=device, requires_grad=True)
    y = checkpoint(lambda x: ss.tanh(x * 2, grad_sketch=sketch), x, use_reentrant=use_reentrant)
    assert sketch.count == 0
    y.sum().backward()
    assert_counted(sketch, x.grad / 2)


@functions
def test_module_grad_sketch(name, device):
    layer = getattr(ss.nn, ss.nn.class_name(name))(1.5)
    x = torch.randn(40, device=device, requires_grad=True)
    layer(x).sum().backward()
    layer.grad_sketch = ss.QuantileSketch()
    assert layer.state_dict() == {}
    other = copy.deepcopy(layer)
    (dx,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(dx, x.grad)
    assert_counted(layer.grad_sketch, dx)
    assert other.grad_sketch.count == 0
    layer.grad_sketch = None
    layer(x).sum().backward()


@pytest.mark.skipif(INTERPRETED, reason="the compiler never reaches a kernel")
@pytest.mark.filterwarnings("ignore")
def test_compile(device):
    sketch = ss.QuantileSketch()
    compiled = torch.compile(lambda x: ss.tanh(x * 2, 1.5, grad_sketch=sketch) + 1, backend="eager")
    gradients = []
    for n in (33, 33, 20):
        x = torch.randn(n, device=device, requires_grad=True)
        gradients += [dx / 2 for dx in torch.autograd.grad(compiled(x).sum(), x)]
    assert_counted(sketch, *gradients)


def test_fake_and_meta_tensors(device):
    sketch = ss.QuantileSketch()
    x = torch.randn(5, requires_grad=True, device="meta")
    ss.tanh(x, grad_sketch=sketch).sum().backward()
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.randn(5, device=device)).requires_grad_()
        ss.tanh(fake, grad_sketch=sketch).sum().backward()
        assert fake.grad.shape == (5,)
    assert sketch.count == 0
    x, g = input_and_gradient(100, torch.float32, device)
    assert_counted(sketch, gradient("tanh", x, g, sketch))


@pytest.mark.interpreter
def test_subclasses_and_lazy_negation(device):
    class Tagged(torch.Tensor):
        pass

    for wrap in (lambda x: x.as_subclass(Tagged), torch._neg_view, torch.nn.Parameter):
        x = wrap(torch.randn(70, device=device)).detach().requires_grad_()
        sketch = ss.QuantileSketch()
        ss.tanh(x, grad_sketch=sketch).sum().backward()
        assert type(sketch.counts) is torch.Tensor
        assert_counted(sketch, x.grad.as_subclass(torch.Tensor))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.interpreter
@pytest.mark.works_with("func.grad, jvp, hessian", "grad_sketch", says="refused")
@pytest.mark.works_with("vmap, is_grads_batched", "grad_sketch", says="refused")
def test_transforms_are_refused(device):
    sketch = ss.QuantileSketch()
    x = torch.randn(3, device=device, requires_grad=True)

    def activation(x):
        return ss.tanh(x, grad_sketch=sketch)

    for call in (
        torch.func.grad(lambda x: activation(x).sum()),
        torch.func.vmap(torch.func.grad(activation)),
        torch.func.jacrev(activation),
        torch.func.hessian(lambda x: activation(x).sum()),
    ):
        with pytest.raises(RuntimeError, match=r"cannot be counted under torch.func .*: leave grad_sk"):
            call(x.detach())
    torch.testing.assert_close(torch.func.vmap(activation)(x), ss.tanh(x))
    y = activation(x)
    with pytest.raises(RuntimeError, match=r"batched by vmap .* cannot be counted: leave grad_sketch out"):
        torch.autograd.grad(y, x, torch.eye(3, device=device), is_grads_batched=True)
    with pytest.raises(RuntimeError, match=r"batched by vmap .* cannot be counted"):
        torch.autograd.functional.jacobian(activation, x.detach(), vectorize=True)
    assert sketch.count == 0
    jacobian = torch.autograd.functional.jacobian(activation, x.detach())
    assert_counted(sketch, *jacobian)
    with torch.autograd.forward_ad.dual_level():
        dual = activation(torch.autograd.forward_ad.make_dual(x.detach(), torch.ones_like(x)))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent.shape == (3,)


@pytest.mark.parametrize("wrong", [True, 0.5, "sketch", torch.zeros(3), ss.QuantileSketch], ids=str)
def test_wrong_grad_sketch(wrong):
    with pytest.raises(TypeError, match=r"grad_sketch must be a QuantileSketch; got .*: pass sigscale.Quan"):
        ss.tanh(torch.ones(3), grad_sketch=wrong)


def test_sketch_on_another_device(device):
    x = torch.randn(3, device=device, requires_grad=True)
    y = ss.tanh(x, grad_sketch=ss.QuantileSketch(device="meta"))
    with pytest.raises(ValueError, match=r"counts on meta, the tensor is on .*: take one sketch a device"):
        y.sum().backward()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_more_than_2_to_the_31_elements(dtype):
    n = 2**31 + 12_345
    g = torch.randn(2**20, device="cuda", dtype=dtype).repeat(2**11 + 1)[:n]
    sketch = ss.QuantileSketch()
    dx = gradient("softsign", torch.ones_like(g), g, sketch)
    assert torch.equal(sketch.counts, ss.QuantileSketch().update(dx).counts)
    assert sketch.count == n


@pytest.mark.gpu
@dtypes
def test_gpu_determinism(dtype):
    x, g = input_and_gradient(2**22 + 1, dtype, "cuda")
    for m in MANTISSA_BITS:
        sketches = [ss.QuantileSketch(m) for _ in range(3)]
        results = [bits(gradient("tanh", x, g, sketch)) for sketch in sketches]
        assert all(torch.equal(dx, results[0]) for dx in results)
        assert all(torch.equal(sketch.counts, sketches[0].counts) for sketch in sketches)
