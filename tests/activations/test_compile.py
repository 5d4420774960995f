"""Activations under torch.compile: no graph break, few graphs, gradients and `save` as in eager mode."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2

import sigscale as ss
from sigscale import _compiled
from sigscale.kernels._triton import INTERPRETED

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the compiler never reaches a kernel"),
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    counters.clear()


@pytest.fixture(params=["beside", "fused"])
def counting(request, monkeypatch):
    """Counts by an operation of their own, as on the CPU, or by that of the gradient, as on a GPU."""
    there = SimpleNamespace(**vars(_compiled.device))
    there.takes_kernel = lambda x: request.param == "fused"
    monkeypatch.setattr(_compiled, "device", there)
    return {"beside": "count_", "fused": "backward_count_"}[request.param]


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


def gradients(call, *leaves):
    y = call(*leaves)
    return y.detach(), *torch.autograd.grad(y.float().sum(), leaves)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in ss.FUNCTIONS),
        *(("tanh", dtype) for dtype in (torch.float16, torch.float32, torch.float64)),
    ],
    ids=str,
)
@pytest.mark.works_with("torch.compile", "activation")
def test_gradients(name, dtype, device):
    """Also where 1 - tanh^2 cancels, for what is kept by default and on demand, and of a module."""
    x = torch.linspace(-12, 12, 97, device=device, dtype=dtype).requires_grad_()
    module = getattr(ss.nn, ss.nn.class_name(name))(1.25)

    def activation(x):
        function = getattr(ss, name)
        return function(x) + function(x, 1.5, save="input") + function(x, 0.75, save="output") + module(x)

    torch.testing.assert_close(gradients(compiled(activation), x), gradients(activation, x))
    assert graphs() == 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.works_with("torch.compile", "activation")
def test_saturated_bf16_gradients(backend, device):
    """From the kept input they survive far out; from a rounded output they are 0."""
    x = torch.tensor([6.0, 9.0, 20.0], device=device, dtype=torch.bfloat16, requires_grad=True)
    want = torch.cosh(x.detach().double() / 2) ** -2
    _, dx = gradients(compiled(ss.tanh, backend), x)
    torch.testing.assert_close(dx.double(), want, rtol=2**-7, atol=0)
    _, dx = gradients(compiled(lambda x: ss.tanh(x, save="output"), backend), x)
    assert dx.tolist()[1:] == [0, 0]


@pytest.mark.parametrize(
    ("channels", "dtype", "counted"),
    [
        (1, torch.bfloat16, False),
        (5, torch.bfloat16, True),
        (5, torch.float32, False),
        (1, torch.float32, True),
    ],
)
@pytest.mark.works_with("torch.compile", "learned alpha")
@pytest.mark.usefixtures("counting")
def test_learned_alpha(channels, dtype, counted, device):
    x = torch.linspace(-9, 9, 120, device=device, dtype=dtype).reshape(4, 5, 6).requires_grad_()
    alpha = torch.linspace(0.5, 2, channels, device=device).requires_grad_()
    ours, eager = (ss.QuantileSketch() if counted else None for _ in range(2))
    got = gradients(compiled(lambda x, alpha: ss.tanh(x, alpha, grad_sketch=ours)), x, alpha)
    want = gradients(lambda x, alpha: ss.tanh(x, alpha, grad_sketch=eager), x, alpha)
    torch.testing.assert_close(got, want)
    assert graphs() == 1
    if counted:
        assert torch.equal(ours.counts, eager.counts)


@pytest.mark.parametrize(("name", "save"), [*((name, "input") for name in ss.FUNCTIONS), ("tanh", "output")])
@pytest.mark.works_with("torch.compile", "grad_sketch")
@pytest.mark.usefixtures("counting")
def test_counted(name, save, device):
    ours, eager = ss.QuantileSketch(4), ss.QuantileSketch(4)

    def activation(x, sketch):
        return getattr(ss, name)(x * 2, 1.5, save=save, grad_sketch=sketch)

    call = compiled(lambda x: activation(x, ours))
    for n in (33, 34, 35):
        x = torch.randn(n, device=device, requires_grad=True)
        torch.testing.assert_close(gradients(call, x), gradients(lambda x: activation(x, eager), x))
    assert torch.equal(ours.counts, eager.counts)
    assert graphs() <= 2


@pytest.mark.parametrize("learnable", [False, True])
def test_operations_of_the_backward_pass(learnable, counting):
    """Beside the arithmetic, which Inductor fuses, one operation counts, whatever the layout."""
    called = set()

    def collect(graph, inputs):
        called.update(node.args[0] for node in graph.graph.nodes if node.target is auto_functionalized_v2)
        return make_boxed_func(graph.forward)

    layer, sketch = ss.nn.Tanh(learnable=learnable), ss.QuantileSketch()
    layer.grad_sketch = sketch
    backend = aot_autograd(fw_compiler=collect)
    compiled(layer, backend)(torch.randn(3, requires_grad=True)).sum().backward()
    name = f"learned_{counting}" if learnable and counting != "count_" else counting
    operation = getattr(torch.ops.sigscale, name).default
    assert called == {operation}
    assert torch.Tag.flexible_layout in operation.tags
    assert sketch.count == 3


def test_alpha_that_varies(device):
    call = compiled(lambda x, alpha: ss.tanh(x, alpha))
    x = torch.linspace(-3, 3, 7, device=device, requires_grad=True)
    for alpha in (1, 2, 3, 1.5, 2.5):
        torch.testing.assert_close(gradients(lambda x, a=alpha: call(x, a), x)[0], ss.tanh(x.detach(), alpha))
    assert not counters["graph_break"]


def test_transforms_are_refused(device):
    """What would count wrongly or not at all; evaluation is not."""
    sketch = ss.QuantileSketch()
    x = torch.randn(3, device=device)

    def activation(x):
        return ss.tanh(x, grad_sketch=sketch)

    for call in (
        torch.func.vmap(torch.func.grad(activation)),
        torch.func.hessian(lambda x: activation(x).sum()),
    ):
        with pytest.raises(RuntimeError, match=r"cannot be counted under torch.func .*: leave grad_sk"):
            torch.compile(call, backend="aot_eager")(x)
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported, match=r"no gradient under torch.func: leave"):
            compiled(call)(x)
    torch.testing.assert_close(torch.compile(torch.func.vmap(activation), backend="aot_eager")(x), ss.tanh(x))
    torch.compiler.reset()
    leaf = x.clone().requires_grad_()
    y = compiled(activation, "eager")(leaf)
    with pytest.raises(RuntimeError, match=r"batched by vmap .* cannot be counted: leave grad_sketch out"):
        torch.autograd.grad(y, leaf, torch.eye(3, device=device), is_grads_batched=True)
    assert sketch.count == 0


def test_transforms(device):
    x = torch.linspace(-2, 2, 4, device=device, dtype=torch.float64)

    def total(x):
        return ss.tanh(x, 1.5).sum()

    def both(x):
        return torch.func.grad(total)(x), torch.func.hessian(total)(x)

    torch.testing.assert_close(compiled(both)(x), both(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_traced_gradient_counts_when_it_runs(mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    sketch, x = ss.QuantileSketch(), torch.randn(7, requires_grad=True)

    def gradient(x):
        return torch.autograd.grad(ss.tanh(x, grad_sketch=sketch).sum(), x)[0]

    graph = make_fx(gradient, tracing_mode=mode)(x)
    assert sketch.count == (7 if mode == "real" else 0)
    sketch.reset()
    want = ss.QuantileSketch().update(graph(x))
    assert torch.equal(sketch.counts, want.counts)


def test_gradient_that_would_never_be_counted():
    from functorch.compile import aot_function

    sketch = ss.QuantileSketch()
    traced = aot_function(lambda x: ss.tanh(x, grad_sketch=sketch), lambda graph, inputs: graph)
    with pytest.raises(RuntimeError, match=r"would never count it: use torch.compile, leave"):
        traced(torch.randn(3, requires_grad=True))


@pytest.mark.parametrize("name", ["count_", "backward_count_", "learned_backward_count_"])
def test_operators(name):
    counts, x, g = ss.QuantileSketch(device="cpu").counts, torch.randn(5, 2), torch.randn(5, 2)
    arguments = {
        "count_": (x, 3),
        "backward_count_": (g, x, "tanh", 1.5, False, 3),
        "learned_backward_count_": (g, x, torch.tensor([0.5, 2.0]), "tanh", 3),
    }[name]
    operator = getattr(torch.ops.sigscale, name).default
    for on, count in ((None, 10), (torch.tensor([0]), 0), (torch.tensor([1]), 10)):
        results = torch.library.opcheck(operator, (counts, on, *arguments))
        assert set(results.values()) == {"SUCCESS"}
        counts.zero_()
        operator(counts, on, *arguments)
        assert counts.sum() == count
    with pytest.raises(RuntimeError, match=r"batched by vmap .* cannot be counted"):
        torch.func.vmap(lambda x: torch.ops.sigscale.count_(counts, None, x, 3))(x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.works_with("ONNX", "learned alpha")
def test_legacy_onnx_with_a_learned_alpha():
    """Its exporter knows no exp2."""
    runtime = pytest.importorskip("onnxruntime")
    layer, x, file = ss.nn.Tanh(learnable=True, num_parameters=3), torch.randn(2, 3), io.BytesIO()
    torch.onnx.export(nn.Sequential(layer), (x,), file, dynamo=False, input_names=["x"])
    (found,) = runtime.InferenceSession(file.getvalue()).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), layer(x).detach())
    assert layer.alpha.tolist() == [2.0] * 3
