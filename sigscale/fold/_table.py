"""Which rule each function and method of PyTorch has; those that are not here have `unknown`."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

from ._rules import (
    EXTREMES,
    RANKING,
    ZEROS,
    Rule,
    assign,
    attribute,
    average,
    compare,
    concatenate,
    describe,
    differences,
    direct,
    extreme,
    item,
    join,
    keep,
    mix,
    multiply,
    pad,
    reshape,
    spatial,
    unknown,
)
from ._scales import Scales
from ._tracer import DESCRIBING

KEEPING = """relu leaky_relu prelu rrelu dropout dropout1d dropout2d dropout3d feature_dropout abs neg
    positive pos clone contiguous detach to float double half bfloat16 cpu cuda interpolate upsample"""
POOLING = "max avg adaptive_max adaptive_avg lp"
RESHAPING = "flatten reshape view view_as reshape_as unflatten squeeze unsqueeze"
MIXING = """permute transpose t swapaxes swapdims movedim moveaxis select narrow index_select gather
    take_along_dim chunk split tensor_split unbind cumsum amax amin flip roll expand expand_as repeat
    repeat_interleave tile broadcast_to pixel_shuffle pixel_unshuffle channel_shuffle unfold fold max_unpool1d
    max_unpool2d max_unpool3d"""
AVERAGING = "mean sum"
JOINING = "add sub subtract maximum minimum where stack hstack vstack"
COMPARING = "gt ge lt le eq ne"
CONCATENATING = "cat concat concatenate"
MULTIPLYING = "mul multiply div divide truediv true_divide"
DIRECTING = "argmax argmin argsort"


def _names() -> dict[str, Rule]:
    groups: dict[Rule, str] = {
        keep: KEEPING,
        reshape: RESHAPING,
        average: AVERAGING,
        extreme: EXTREMES,
        mix: f"{MIXING} {RANKING}",
        direct: DIRECTING,
        assign: "setitem copy",
        differences: "diff",
        item: "getitem",
        join: JOINING,
        compare: COMPARING,
        concatenate: CONCATENATING,
        multiply: MULTIPLYING,
        describe: " ".join((*DESCRIBING, *ZEROS)),
        pad: "pad",
    }
    rules = {name: rule for rule, names in groups.items() for name in names.split()}
    for d in (1, 2, 3):
        for kind in POOLING.split():
            rules[f"{kind}_pool{d}d"] = rules[f"{kind}_pool{d}d_with_indices"] = spatial(d)
    return rules


METHODS = _names()
FUNCTIONS_BY_OBJECT = {
    found: rule
    for name, rule in METHODS.items()
    for namespace in (torch, F, operator)
    for variant in (name, f"{name}_", f"i{name}")
    if callable(found := getattr(namespace, variant, None))
} | {getattr: attribute}


def apply_rule(scales: Scales, node: fx.Node) -> None:
    """Collect what a call of a function or a method demands."""
    if node.op == "call_method":
        rule = METHODS.get(scales.trace.kind(node), unknown)
    else:
        rule = FUNCTIONS_BY_OBJECT.get(node.target, unknown)
    if rule is reshape and scales.trace.writes(node):
        rule = mix  # the shape that is known of the operand is not that of its later uses
    (unknown if "out" in node.kwargs else rule)(scales, node)
