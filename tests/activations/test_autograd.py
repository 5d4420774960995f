"""Gradients of every order, and how the activations live with the rest of autograd."""

from __future__ import annotations

import copy
import functools
import pickle
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy

import sigscale as ss

functions = pytest.mark.parametrize("name", list(ss.FUNCTIONS))
saves = pytest.mark.parametrize("save", ["input", "output"])


@functions
@pytest.mark.parametrize(("save", "alpha"), [("input", 0.3), ("output", 2.0)])
@pytest.mark.interpreter
@pytest.mark.works_with("double backward", "activation")
def test_gradients_of_first_and_second_order(name, save, alpha, device):
    x = torch.linspace(-2, 2, 8, dtype=torch.float64, device=device).reshape(2, 4).requires_grad_()

    def activation(x):
        return getattr(ss, name)(x, alpha, save=save)

    assert torch.autograd.gradcheck(activation, x)
    assert torch.autograd.gradgradcheck(activation, x)


@functions
@saves
@pytest.mark.interpreter(name=["tanh"])
@pytest.mark.works_with("double backward", "activation")
def test_third_derivative(name, save, device):
    """By repeated differentiation, against differentiation of the plain composition."""
    function = ss.FUNCTIONS[name]

    def third(f):
        x = torch.linspace(-1.5, 1.5, 6, dtype=torch.float64, device=device).requires_grad_()
        y = f(x).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y.detach()

    plain = third(lambda x: 1.3 * function.torch_value(x / 1.3))
    torch.testing.assert_close(third(lambda x: getattr(ss, name)(x, 1.3, save=save)), plain)


@functions
@pytest.mark.interpreter
def test_second_order_of_16_bit_tensors(name, device):
    x = torch.linspace(-2, 2, 10, device=device, dtype=torch.bfloat16).requires_grad_()
    (dx,) = torch.autograd.grad(getattr(ss, name)(x).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.sum(), x)
    wide = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(getattr(ss, name)(wide).sum(), wide, create_graph=True)
    (want,) = torch.autograd.grad(want.sum(), wide)
    assert dx.dtype == ddx.dtype == torch.bfloat16
    torch.testing.assert_close(ddx.double(), want, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "options", "kept"),
    [
        (torch.float32, {"save": "input"}, "x"),
        (torch.bfloat16, {"save": "output"}, "y"),
        *((dtype, {}, "x") for dtype in (torch.float16, torch.bfloat16)),
        *((dtype, {}, "y") for dtype in (torch.float32, torch.float64)),
    ],
    ids=str,
)
def test_saved_tensor(dtype, options, kept, device):
    x = torch.randn(5, device=device, dtype=dtype, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        y = ss.tanh(x, **options)
    assert saved == [{"x": x, "y": y}[kept].data_ptr()]


@pytest.mark.interpreter
def test_no_grad_fn_without_gradient(device):
    x = torch.randn(5, device=device)
    assert ss.tanh(x).grad_fn is None
    with torch.no_grad():
        assert ss.tanh(x.requires_grad_()).grad_fn is None
    with torch.inference_mode():
        assert ss.tanh(x).is_inference()


@saves
@pytest.mark.interpreter
def test_modified_saved_tensor(save, device):
    leaf = torch.randn(5, device=device, requires_grad=True)
    x = leaf * 1
    y = ss.tanh(x, save=save)
    (x if save == "input" else y).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    x = leaf * 1
    y = ss.tanh(x, save=save)
    (y if save == "input" else x).add_(1)  # the other one is free
    y.sum().backward()


@pytest.mark.parametrize("inside", [torch.float32, torch.bfloat16])
def test_autocast_dtype(inside, device):
    x = torch.randn(4, 4, device=device, dtype=inside, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y, like = ss.tanh(x), torch.tanh(x)
        assert y.dtype == like.dtype
        assert ss.tanh(x @ x).dtype == torch.tanh(x @ x).dtype == torch.bfloat16
        y.float().sum().backward()
    assert x.grad.dtype == inside
    torch.testing.assert_close(y, 2 * torch.tanh(x / 2))


@pytest.mark.works_with("activation checkpointing", "activation")
def test_checkpointing_and_hooks(device):
    x = torch.randn(8, device=device, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(ss.nn.Tanh(), x, use_reentrant=False)
    seen = []
    y.register_hook(lambda g: seen.append(g.clone()))
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert len(seen) == 1
    torch.testing.assert_close(dx, torch.cosh(x.detach() / 2) ** -2)


@functions
def test_modules(name, device):
    layer = getattr(ss.nn, ss.nn.class_name(name))(alpha=1.5)
    x = torch.randn(4, device=device)
    assert torch.equal(layer(x), getattr(ss, name)(x, 1.5))
    assert repr(layer) == f"{ss.nn.class_name(name)}(alpha=1.5)"
    assert layer.state_dict() == {}
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(clone) is type(layer)
        assert torch.equal(clone(x), layer(x))


@saves
def test_hooks_of_the_input_run_once(save, device):
    """Also in a backward pass that is itself differentiated."""
    for create_graph in (False, True):
        leaf = torch.full((4,), 0.5, device=device, requires_grad=True)
        x = leaf * 1
        calls = []
        x.register_hook(lambda g, calls=calls: calls.append(1) or 10 * g)
        (dx,) = torch.autograd.grad(ss.tanh(x, save=save).sum(), leaf, create_graph=create_graph)
        assert calls == [1]
        torch.testing.assert_close(dx, 10 * torch.cosh(leaf.detach() / 2) ** -2)


@functions
@saves
@pytest.mark.interpreter(name=["tanh"])
@pytest.mark.works_with("forward AD", "activation")
@pytest.mark.works_with("vmap, is_grads_batched", "activation")
def test_vectorized_and_forward_mode(name, save, device):
    x = torch.tensor([-1.0, 0.3, 2.0], device=device, dtype=torch.float64)

    def activation(x):
        return getattr(ss, name)(x, save=save)

    want = torch.autograd.functional.jacobian(activation, x)
    for options in ({}, {"strategy": "forward-mode"}):
        got = torch.autograd.functional.jacobian(activation, x, vectorize=True, **options)
        torch.testing.assert_close(got, want)
    with torch.autograd.forward_ad.dual_level():
        dual = activation(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, want.diagonal())


@pytest.mark.interpreter
def test_lazy_negation(device):
    x = torch._neg_view(torch.randn(6, device=device))
    assert x.is_neg()
    torch.testing.assert_close(ss.tanh(x), 2 * torch.tanh(x / 2))
    leaf = torch.randn(6, device=device, requires_grad=True)
    (dx,) = torch.autograd.grad(ss.tanh(leaf), leaf, x)
    torch.testing.assert_close(dx, x * torch.cosh(leaf.detach() / 2) ** -2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.interpreter
@pytest.mark.works_with("jit.trace", "activation")
@pytest.mark.works_with("fx", "activation")
def test_tracers_see_plain_operations(device):
    x = torch.randn(5, device=device)
    traced = torch.jit.trace(ss.nn.Tanh(), x)
    torch.testing.assert_close(traced(x + 1), ss.tanh(x + 1))
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(ss.nn.Tanh(), torch.nn.ReLU()))
    torch.testing.assert_close(graph(x), ss.tanh(x).relu())
    made = torch.fx.experimental.proxy_tensor.make_fx(lambda x: ss.tanh(x))(x)
    torch.testing.assert_close(made(x), ss.tanh(x))
    assert ss.tanh(x.to("meta")).shape == x.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert ss.tanh(mode.from_tensor(x), 1.2345).shape == ss.tanh(x, 1.2345).shape == x.shape
    assert type(ss.tanh(x, 1.2345)) is torch.Tensor


@pytest.mark.interpreter
def test_elements_are_independent():
    x = torch.linspace(-3, 3, 1001)
    y = torch.cat([x, torch.tensor([torch.nan, -1e4])])
    for alpha in (1.7, 2.0):
        torch.testing.assert_close(ss.sigmoid(y, alpha)[:1001], ss.sigmoid(x, alpha), rtol=3e-7, atol=0)


@functions
def test_fp16_gradient_from_an_output_out_of_range(name, device):
    """An output that overflows or is subnormal in float16 does not determine the slope."""
    for alpha in (2.0**18, 60_000.0, 2.0**-15, 2.0**-36):
        x = torch.tensor([0.0, 0.5 * alpha, -alpha, 3 * alpha]).clamp(-6e4, 6e4).to(device, torch.float16)
        x.requires_grad_()
        dx, want = (
            torch.autograd.grad(getattr(ss, name)(x, alpha, save=save).sum(), x)[0]
            for save in ("output", "input")
        )
        torch.testing.assert_close(dx, want, rtol=2e-2, atol=1e-3)
        assert dx[0] == ss.FUNCTIONS[name].slope_at_zero


@pytest.mark.parametrize(
    ("name", "learned", "policy"),
    [
        *product(ss.FUNCTIONS, [False, True], [CheckpointPolicy.MUST_SAVE]),
        *product(["tanh"], [True], [CheckpointPolicy.PREFER_SAVE, CheckpointPolicy.PREFER_RECOMPUTE]),
    ],
    ids=str,
)
@pytest.mark.works_with("activation checkpointing", "learned alpha")
def test_selective_checkpointing(name, learned, policy, device):
    x = torch.randn(6, dtype=torch.float64, device=device, requires_grad=True)
    alpha = torch.tensor(1.3, dtype=torch.float64, device=device, requires_grad=True) if learned else 1.3
    inputs = (x, alpha) if learned else (x,)

    def block(x):
        return getattr(ss, name)(x.sin(), alpha) * 2

    context = functools.partial(
        torch.utils.checkpoint.create_selective_checkpoint_contexts, lambda *_, **__: policy
    )
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False, context_fn=context)
    for got, want in zip(
        torch.autograd.grad(y.sum(), inputs), torch.autograd.grad(block(x).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(got, want)


@functions
@pytest.mark.parametrize("shape", [None, (), (3,)], ids=["fixed", "layer", "channel"])
@pytest.mark.interpreter(name=["tanh"])
@pytest.mark.works_with("func.grad, jvp, hessian", "activation", "learned alpha")
@pytest.mark.works_with("forward AD", "learned alpha")
@pytest.mark.works_with("double backward", "learned alpha")
def test_transforms(name, shape, device):
    """vmap, grad, linearize, jvp, hessian, functionalize and make_fx against reverse mode."""
    x = torch.linspace(-2, 2, 12, dtype=torch.float64, device=device).reshape(4, 3)
    alpha = [] if shape is None else [torch.full(shape, 1.3, dtype=torch.float64, device=device)]
    inputs, tangents = (x, *alpha), tuple(torch.ones_like(each) for each in (x, *alpha))

    def activation(x, *alpha):
        return getattr(ss, name)(x, *(alpha or (1.3,)))

    def total(*inputs):
        return activation(*inputs).sum()

    def of_last(last):
        return total(*inputs[:-1], last)

    y, want = torch.autograd.functional.jvp(activation, inputs, tangents)
    linear_y, linear = torch.func.linearize(activation, *inputs)
    torch.testing.assert_close(linear_y, y)
    torch.testing.assert_close(linear(*tangents), want)
    torch.testing.assert_close(torch.func.jvp(activation, inputs, tangents)[1], want)
    torch.testing.assert_close(torch.func.functionalize(activation)(*inputs), y)
    torch.testing.assert_close(
        torch.func.vmap(activation, (0, *[None] * len(alpha)))(x[:, None], *alpha)[:, 0], y
    )
    traced = torch.fx.experimental.proxy_tensor.make_fx(activation)(*inputs)
    torch.testing.assert_close(traced(*inputs), y)
    assert not [node for node in traced.graph.nodes if str(node.target).endswith("_.default")]
    gradients = torch.func.grad(total, tuple(range(len(inputs))))(*inputs)
    leaves = [each.clone().requires_grad_() for each in inputs]
    torch.testing.assert_close(gradients, torch.autograd.grad(total(*leaves), leaves))
    hessian = torch.func.hessian(of_last)(inputs[-1])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(of_last, inputs[-1]))


@functions
def test_partial_sums_of_dtensors(name):
    """A DTensor of partial sums is reduced first: nothing is written into it."""
    from torch.distributed.tensor import DTensor, Partial
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        local = torch.randn(5, requires_grad=True)
        x = DTensor.from_local(local, mesh, [Partial()])
        for alpha in (2.0, torch.tensor(1.3)):
            torch.testing.assert_close(
                getattr(ss, name)(x, alpha).full_tensor(), getattr(ss, name)(local, alpha)
            )
    finally:
        torch.distributed.destroy_process_group()
