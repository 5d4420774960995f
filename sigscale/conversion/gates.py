"""Which sigmoids of a model look like gates or probabilities, which scaling would break."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import fx, nn

from .repeats import Flow, Place, RepeatsTracer, source
from .tracing import trace

GATE_NAME = re.compile(r"gate|gating|attn|attention|squeeze|excit|mask|prob|(^|[._\d])se([._\d]|$)", re.I)
OUTPUT, GATE = "gives the model's output: a probability?", "multiplies another tensor: a gate?"
SHARE = "is used like a probability"
LAST, NAMED = "the last module of its Sequential: a probability or a gate?", "its name is that of a gate"

# Through these a tensor passes with its values, on its way to where it is used.
PASSING_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout2d, nn.Upsample)
PASSING_CALLS = {
    *("view", "view_as", "reshape", "expand", "expand_as", "unsqueeze", "squeeze", "flatten", "permute"),
    *("transpose", "contiguous", "to", "float", "type_as", "repeat", "getitem", "chunk", "interpolate"),
}
PRODUCTS = {
    *("mul", "imul", "mul_", "multiply", "div", "divide", "truediv", "lerp", "addcmul", "einsum"),
    *("matmul", "bmm", "masked_fill"),
}
SHARES = {
    *("rsub", "log", "log_", "log1p", "logit", "bernoulli", "binary_cross_entropy"),
    *("gt", "ge", "lt", "le"),
}


def suspicions(
    model: nn.Module,
    sigmoids: Iterable[str],
    graph: fx.Graph | None = None,
    calls: Mapping[fx.Node, str] | None = None,
) -> dict[str, str]:
    """Why each of these modules, or `calls` of a graph, looks like a gate or a probability, if it does.

    The graph of the model tells; where torch.fx finds none, places in a Sequential and names must do.
    """
    sigmoids, calls = [*dict.fromkeys(sigmoids)], calls or {}
    if not sigmoids:
        return {}
    tracer = None
    if graph is None:
        if _is_chain(model):
            return dict.fromkeys({*sigmoids} & {_last(model)}, OUTPUT)
        tracer = RepeatsTracer()
        try:
            graph = trace(model, tracer).graph
        except Exception:  # whatever user code raises when it is traced
            return {name: reason for name in sigmoids if (reason := _by_place(model, name))}
    flow, found = Flow(graph, tracer), dict[str, str]()
    nodes = {name: node for node, name in calls.items()}
    for name in sigmoids:
        places = [(nodes[name], None)] if name in nodes else flow.places(name)
        reasons = (_by_use(model, flow, place) for place in places)
        if reason := next(filter(None, reasons), ""):
            found[name] = reason
    return found


def _by_use(model: nn.Module, flow: Flow, place: Place) -> str:
    """What becomes of a node's values."""
    waiting, seen = [place], {place}
    while waiting:
        for user, context in flow.users(waiting.pop()):
            if user.op == "output":
                return OUTPUT
            if user.op == "call_module":
                passes = isinstance(model.get_submodule(str(user.target)), PASSING_MODULES)
            else:
                operation = user.target if isinstance(user.target, str) else user.target.__name__
                if operation in PRODUCTS and len(set(map(source, user.all_input_nodes))) > 1:
                    return GATE
                if operation in SHARES or (operation == "sub" and not isinstance(user.args[0], fx.Node)):
                    return SHARE
                passes = operation in PASSING_CALLS
            if passes and (user, context) not in seen:
                seen.add((user, context))
                waiting.append((user, context))
    return ""


def _is_chain(model: nn.Module) -> bool:
    return all(type(module) is nn.Sequential for module in model.modules() if len(module._modules))


def _last(model: nn.Module) -> str:
    path: list[str] = []
    while len(model._modules):
        name, child = list(model._modules.items())[-1]
        assert child is not None
        path, model = [*path, name], child
    return ".".join(path)


def _by_place(model: nn.Module, name: str) -> str:
    if GATE_NAME.search(name):
        return NAMED
    parent, _, last = name.rpartition(".")
    sequence = model.get_submodule(parent)
    ends = isinstance(sequence, nn.Sequential) and last == list(sequence._modules)[-1]
    return LAST if ends else ""
