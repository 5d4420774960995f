"""PyTorch's own modules for the functions that sigscale scales."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from ..kernels.registry import Function
from ..nn import class_name

PROBES = torch.tensor([-30.0, -1.5, -0.3, 0.0, 0.7, 2.0, 20.0], dtype=torch.float64, device="cpu")


def stock_module(function: Function) -> nn.Module:
    """f as a module that needs nothing but PyTorch: of torch.nn, or calls of PyTorch's operations."""
    name = class_name(function.name)
    layer = getattr(nn, name, None)
    if layer is not None and _is(layer(), function):
        return layer()  # type: ignore[no-any-return]
    graph = fx.Graph()
    x = graph.placeholder("input")
    for operation in [getattr(torch, alias, None) for alias in (function.name, *function.torch_aliases)]:
        if operation is not None and _is(operation, function):
            graph.output(graph.call_function(operation, (x,)))
            return fx.GraphModule(nn.Module(), graph, name)
    try:
        traced = fx.symbolic_trace(lambda input: function.torch_value(input))
    except Exception as error:
        raise ValueError(
            f"cannot fold {function.name}: PyTorch has no such function, and torch.fx cannot trace its "
            f"torch_value: {error}: write it in PyTorch operations"
        ) from error
    return fx.GraphModule(traced, traced.graph, name)


def _is(operation: Callable[[Tensor], Tensor], function: Function) -> bool:
    """Whether an operation that has the function's name has its values as well."""
    return torch.allclose(operation(PROBES), function.torch_value(PROBES), rtol=1e-13, atol=0.0)
