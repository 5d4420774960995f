"""Nested tensors, jagged and strided: each part as if it were alone; and what torch.jit.script is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sigscale as ss

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested:UserWarning", "ignore:.*jit.script")
LAYOUTS = {"jagged": torch.jagged, "strided": torch.strided}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def parts(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 4, generator=generator).to(dtype).requires_grad_() for n in (3, 1, 5)]


def nested(layout: torch.layout, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.nested.nested_tensor(parts(dtype), layout=layout, requires_grad=True)


def differentiated(activation, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    y = activation(x)
    assert y.is_nested
    assert y.layout is x.layout
    sum(part.square().sum() for part in y.unbind()).backward()
    return [part.detach() for part in y.unbind()], [*x.grad.unbind()]


@layouts
@pytest.mark.parametrize("name", ss.FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.works_with("NestedTensor, jagged", "activation")
@pytest.mark.works_with("NestedTensor, strided", "activation")
def test_nested(name, layout, dtype):
    values, gradients = differentiated(lambda x: getattr(ss, name)(x, 1.5), nested(layout, dtype))
    for x, y, g in zip(parts(dtype), values, gradients, strict=True):
        expected = getattr(ss, name)(x, 1.5)
        expected.square().sum().backward()
        torch.testing.assert_close(y, expected.detach())
        torch.testing.assert_close(g, x.grad)


@layouts
@pytest.mark.works_with("NestedTensor, jagged", "learned alpha")
@pytest.mark.works_with("NestedTensor, strided", "learned alpha")
def test_learned_alpha(layout):
    module, twin = ss.nn.Tanh(learnable=True), ss.nn.Tanh(learnable=True)
    differentiated(module, nested(layout))
    twin(torch.cat(parts())).square().sum().backward()
    torch.testing.assert_close(module.log2_alpha.grad, twin.log2_alpha.grad)
    with pytest.raises(ValueError, match=r"one element for a nested tensor, .* use num_parameters=1"):
        ss.nn.Tanh(learnable=True, num_parameters=4)(nested(layout))


@layouts
@pytest.mark.works_with("NestedTensor, jagged", "grad_sketch")
@pytest.mark.works_with("NestedTensor, strided", "grad_sketch")
def test_counted(layout):
    sketch = ss.QuantileSketch()
    _, gradients = differentiated(lambda x: ss.tanh(x, grad_sketch=sketch), nested(layout))
    assert torch.equal(sketch.counts, ss.QuantileSketch().update(torch.cat(gradients)).counts)


@pytest.mark.works_with("NestedTensor, jagged", "monitor")
@pytest.mark.works_with("NestedTensor, strided", "monitor", says="refused")
def test_monitored():
    model, plain = nn.Sequential(nn.Tanh(), ss.nn.Tanh()), nn.Sequential(nn.Tanh(), ss.nn.Tanh())
    with ss.GradientMonitor(model) as monitor, ss.GradientMonitor(plain) as other:
        differentiated(model, nested(torch.jagged))
        plain(torch.cat(parts())).square().sum().backward()
        monitor.step()
        other.step()
        torch.testing.assert_close(monitor.history().values, other.history().values)
        with pytest.raises(TypeError, match="the input of '0' is a nested tensor: leave it out"):
            model(nested(torch.strided))


def test_compiled():
    compiled = torch.compile(lambda x: ss.tanh(x, 1.5), fullgraph=True, backend="aot_eager")
    found = differentiated(compiled, nested(torch.jagged))
    torch.testing.assert_close(found, differentiated(lambda x: ss.tanh(x, 1.5), nested(torch.jagged)))
    counting = torch.compile(lambda x, sketch: ss.tanh(x, grad_sketch=sketch), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        counting(nested(torch.jagged), ss.QuantileSketch())


@pytest.mark.works_with("jit.script", "activation", "monitor", says="refused")
def test_script_is_refused():
    message = r"Tanh\(alpha=...\), .* use torch.export.export or torch.jit.trace, or script sigscale.fold"
    with pytest.raises(TypeError, match=message):
        torch.jit.script(nn.Sequential(nn.Linear(2, 2), ss.nn.Tanh()))
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with ss.GradientMonitor(model), pytest.raises(TypeError, match=r"Tanh while it is monitored: close\(\)"):
        torch.jit.script(model)
    torch.jit.script(model)
    with pytest.raises(torch.jit.frontend.NotSupportedError, match=r"use torch.compile, .* or jit.trace\n"):
        torch.jit.script(ss.tanh)
