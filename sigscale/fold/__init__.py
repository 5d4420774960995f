"""`fold`: a model without alpha that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves

from .._calls import unscale_calls
from .._checks import check_example_inputs
from .._conversion import become_plain, plain_class
from .._names import wrappers
from .._overlay import is_overlaid
from ..functional import functional
from ..kernels.functions import FUNCTIONS, Function
from ..nn.activation import Scaled, class_name
from ..nn.recurrent import Recurrent
from ._layers import absorber, equations, rescale, rescaling
from ._trace import Trace, cloned, needs_graph, trace
from ._tracer import called_function, scaled_function

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PROBES = torch.tensor([-30.0, -1.5, -0.3, 0.0, 0.7, 2.0, 20.0], dtype=torch.float64, device="cpu")


def fold(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """A copy of a model in which alpha * f(x / alpha) is f(x), with other weights and the same outputs.

    By f_a[f_a[... f_a[z]]] = a f[f[... f[z / a]]], an alpha-scaled network is a plain one up to the scale of
    its hidden values, which the weights of linear, convolution, embedding, recurrent and normalization layers
    absorb: W x + b becomes (s_in / s_out) W x + b / s_out, where s_in and s_out are the scales before and
    after it. Positively homogeneous operations, such as ReLU, pooling, dropout, reshaping and sums of
    branches, pass a scale on. All others keep the scale 1, as do the model's inputs and outputs.

    The copy consists of PyTorch's modules and your own: `torch.export`, ONNX and pickle take it without
    sigscale. If forward calls functions such as `sigscale.tanh(x)`, or has optional arguments, the copy is a
    `torch.fx.GraphModule` that takes the arguments it was folded for. The copy is valid for the mode,
    training or evaluation, that the model is in.

    Args:
        model: any module that `torch.fx` can trace. Optional arguments of its forward that example_inputs do
            not give keep their defaults for good. The copy is without wrappers such as
            `DistributedDataParallel`.
        example_inputs: a tensor, or a tuple of the arguments of forward; needed where alpha differs from
            channel to channel, for the shapes. The outputs of model and copy are then compared.

    Returns:
        The copy. Its parameters have the dtypes, devices and requires_grad of the model's, computed in
        float64 and rounded once; the model does not change.

    Raises:
        TypeError: `model` is not a module, or example_inputs neither a tensor nor a tuple.
        ValueError: a scale would have to change where no layer can absorb it, as at an activation that gives
            the model's output; torch.fx cannot trace the model; a weight leaves the range of its dtype;
            modules have hooks, which would see other values, or lack their parameters. The error names the
            modules.
        RuntimeError: the outputs for `example_inputs` differ by more than rounding.

    Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), ss.nn.Tanh(alpha=2.0), torch.nn.Linear(8, 1))
        >>> plain = ss.fold(model)
        >>> plain[1]
        Tanh()
        >>> x = torch.randn(5, 8)
        >>> torch.allclose(plain(x), model(x), atol=1e-6)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold() takes a torch.nn.Module, got {type(model).__name__}: pass the model itself")
    *_, model = wrappers(model)
    _check(model)
    inputs = check_example_inputs(example_inputs, "fold(model, (x,))")
    traced = trace(model, inputs)
    scales = equations(traced)
    scales.solve()
    factors = rescaling(traced, scales)
    folded = copy.deepcopy(model)
    rescale(folded, factors)
    folded = _plain(folded, traced)
    if inputs is not None:
        _compare(copy.deepcopy(model), copy.deepcopy(folded), inputs)
    return folded


def _check(model: nn.Module) -> None:
    """Raise ValueError if a module cannot be folded whatever the others are."""
    for path, layer in model.named_modules():
        why = _unfit(layer)
        if why:
            raise ValueError(f"cannot fold '{path}' ({type(layer).__name__}), {why}")


def _unfit(layer: nn.Module) -> str:
    for key, tensor in (*layer._parameters.items(), *layer._buffers.items()):
        if tensor is None:
            continue
        if nn.parameter.is_lazy(tensor):
            return "which is lazy: call the model once before folding"
        if tensor.is_meta:
            return f"whose {key} is on the meta device: load its values before folding"
    if isinstance(layer, Scaled) and is_parametrized(layer):
        return (
            "which has an alpha and parametrized weights, which cannot absorb it: call "
            "torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if isinstance(layer, Recurrent) and absorber(layer) is None:
        return "a subclass whose forward may differ from sigscale.nn's: use the class of sigscale.nn itself"
    if is_overlaid(layer) or any(vars(layer)[hooks] for hooks in HOOKS):
        return (
            "which has hooks, and these would see other values than before: remove them first, by "
            "handle.remove() or monitor.close(), or if they compute a weight, by "
            "torch.nn.utils.remove_weight_norm or torch.nn.utils.prune.remove"
        )
    return ""


def _plain(model: nn.Module, traced: Trace) -> nn.Module:
    """The rescaled copy without alphas; as a graph where forward calls functions of sigscale."""
    as_graph = needs_graph(model, traced.graph, traced.defaults)
    for layer in model.modules():
        unscale_calls(layer)
    plain: dict[nn.Module, nn.Module] = {}
    for node, _ in traced.layers():
        layer = model.get_submodule(str(node.target))
        if isinstance(layer, Scaled) and (kind := plain_class(layer)) is not None:
            become_plain(layer, kind)
        elif (function := scaled_function(layer)) is not None:
            plain[layer] = stock_module(function).train(layer.training)
    for parent in list(model.modules()):
        parent._modules.update({name: plain[m] for name, m in parent._modules.items() if m in plain})
    if as_graph:
        model = _as_graph(model, traced)
    _check_plain(model)
    return model


def _as_graph(model: nn.Module, traced: Trace) -> fx.GraphModule:
    """The copy as a graph of calls; ValueError if forward has effects that a graph would lose."""
    if traced.changed:
        has = (
            f"has the optional {', '.join(traced.defaults)}" if traced.defaults else "calls scaled functions"
        )
        raise ValueError(
            f"cannot fold {type(model).__name__}, whose forward {has}, so that the copy is a graph of calls, "
            f"and which changes {'; '.join(traced.changed)}: leave that out, write into a registered buffer, "
            "as in self.calls.add_(1), or fold the parts that do without"
        )
    graph = fx.Graph()  # which, unlike the traced one, does not remember sigscale's tracer
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(traced.graph, copies))
    _protect_writes(graph, model, {copies[node].name for node in traced.written})
    needless = {copies[node].name for node in traced.constants - traced.written}
    for node in graph.nodes:
        if node.op == "get_attr" and not hasattr(model, str(node.target).split(".")[0]):
            setattr(model, str(node.target), traced.attribute(node))  # of a tensor that forward makes
        function = called_function(node.target) if node.op == "call_function" else None
        if function is not None:
            model.add_module(name := f"folded_{node.name}", stock_module(function))
            with graph.inserting_before(node):
                call = graph.call_module(name, (node.args[0] if node.args else node.kwargs["x"],))
            node.replace_all_uses_with(call)
            needless.add(node.name)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.name not in needless)
    return fx.GraphModule(model, graph, type(model).__name__)


def _protect_writes(graph: fx.Graph, model: nn.Module, written: set[str]) -> None:
    """Pass buffers that are written into through a module, since pickle traces and records its calls."""
    for node in graph.find_nodes(op="get_attr"):
        if node.name in written:
            model.add_module(name := "folded_buffer", nn.Identity())
            with graph.inserting_after(node):
                same = graph.call_module(name, (node,))
            node.replace_all_uses_with(same, delete_user_cb=lambda user, same=same: user is not same)


def _check_plain(model: nn.Module) -> None:
    """Raise ValueError if sigscale is still needed."""
    functions = [functional(function) for function in FUNCTIONS.values()]
    for path, layer in model.named_modules():
        calls_inside = any(value is function for value in vars(layer).values() for function in functions)
        if isinstance(layer, Scaled) or calls_inside:
            raise ValueError(
                f"cannot fold '{path}' ({type(layer).__name__}): it holds an activation of sigscale that "
                "forward does not call, or that a module of PyTorch calls inside, where torch.fx does not "
                "look: delete it, or write that module in parts"
            )


def _compare(model: nn.Module, folded: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Raise RuntimeError if the outputs of the copies differ by more than rounding explains."""
    outputs = []
    for network in (model, folded):
        with torch.no_grad(), torch.random.fork_rng():  # the same dropout for both
            found = network(*cloned(inputs))
        outputs.append([x for x in tree_leaves(found) if isinstance(x, Tensor)])
    for expected, found in zip(*outputs, strict=True):
        if not expected.is_floating_point() or expected.numel() == 0:
            continue
        dtypes = {expected.dtype, *(p.dtype for p in model.parameters() if p.is_floating_point())}
        tolerance = max(torch.finfo(dtype).eps for dtype in dtypes) ** 0.5
        size = expected.double().abs().max().item()
        error = (found.double() - expected.double()).abs().max().item()
        if not error <= tolerance * size and not torch.equal(found, expected):
            raise RuntimeError(
                f"the outputs of the folded copy differ by {error:.3g} from the model's, whose largest is "
                f"{size:.3g}; rounding explains {tolerance * size:.3g}. Fold model.double() to see whether "
                "the model amplifies rounding; else its forward depends on more than torch.fx can see"
            )


def stock_module(function: Function) -> nn.Module:
    """f as a module that needs only PyTorch: one of torch.nn, or a graph of PyTorch's operations."""
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
    """Whether an operation with the function's name also has its values."""
    return torch.allclose(operation(PROBES), function.torch_value(PROBES), rtol=1e-13, atol=0.0)
