"""The scale of each value in the folded model: a system of equations, and its solution.

The folded model computes v / s(v) wherever the model computes v. Values that a call ties together, such
as the input and the output of a pooling layer, have the same scale; an activation pins it to its alpha,
the model's inputs and outputs to 1. Linear layers tie nothing: their weights absorb the ratio.

A scale is a float64 vector with one element, or one for each channel. Where flattening turns a channel into
several adjacent ones, all of them have its scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ._memory import reach
from ._trace import Trace

ONE = torch.ones(1, dtype=torch.float64, device="cpu")


def as_scale(alpha: float | Tensor) -> Tensor:
    """A number or a learned alpha as a scale."""
    return torch.as_tensor(alpha, dtype=torch.float64, device="cpu").detach().flatten()


class Pin(NamedTuple):
    """What a call demands of the scale of a value, and why."""

    node: fx.Node
    scale: Tensor
    by: fx.Node
    why: str


class Concatenation(NamedTuple):
    """Values concatenated along the channels, each with a scale of its own."""

    result: fx.Node
    parts: list[fx.Node]
    sizes: list[int]


class Scales:
    """Collects the equations; after `solve()`, `of(value)` is the scale of a value."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._ties: dict[fx.Node, list[tuple[fx.Node, fx.Node]]] = {node: [] for node in trace.graph.nodes}
        self._pins: dict[fx.Node, list[Pin]] = {}
        self._single: dict[fx.Node, fx.Node] = {}
        self._concatenations: list[Concatenation] = []
        self._ruled: set[tuple[fx.Node, fx.Node]] = set()
        self._group: dict[fx.Node, list[fx.Node]] = {}

    def tie(self, values: Iterable[fx.Node], by: fx.Node) -> None:
        """These values have the same scale."""
        values = [*values]
        self._ruled.update((value, by) for value in values)
        for a, b in pairwise(values):
            self._ties[a].append((b, by))
            self._ties[b].append((a, by))

    def pin(self, value: fx.Node, scale: Tensor, by: fx.Node, why: str) -> None:
        """This value has this scale."""
        if scale.numel() > 1 and torch.equal(scale, scale[:1].expand_as(scale)):
            scale = scale[:1]
        if scale.numel() > 1 and not self.trace.shapes:
            raise ValueError(
                f"cannot fold {self.trace.named(by)} without shapes, since it has an alpha for each channel: "
                "pass example_inputs, a tuple of what the model is called with"
            )
        self._ruled.add((value, by))
        self._pins.setdefault(value, []).append(Pin(value, scale, by, why))

    def single(self, value: fx.Node, by: fx.Node) -> None:
        """The scale of this value is one number for all channels."""
        self._single.setdefault(value, by)

    def free(self, values: Iterable[fx.Node], by: fx.Node) -> None:
        """These values may have any scale: the call `by` does not depend on it."""
        self._ruled.update((value, by) for value in values)

    def pin_others(self, by: fx.Node) -> None:
        """Operands that depend on the inputs keep the scale 1 unless a rule says otherwise."""
        for value in by.all_input_nodes:
            if (value, by) not in self._ruled and value not in self.trace.constants:
                self.pin(value, ONE, by, "takes it as it is")

    def concatenate(self, result: fx.Node, parts: list[fx.Node]) -> None:
        """The scale of the result is the scales of the parts, one after the other."""
        self._ruled.update((part, result) for part in parts)
        sizes = [self.trace.shapes[part][1] for part in parts]
        self._concatenations.append(Concatenation(result, parts, sizes))

    def of(self, value: fx.Node) -> Tensor:
        """The scale of a value, after solve(); 1 where nothing demands another."""
        scale = self._solved(value)
        return ONE if scale is None else scale

    def across(self, value: fx.Node, channels: int) -> Tensor:
        """The scale of a value, with one element or one for each of its channels."""
        scale = self.of(value)
        if scale.numel() == 1:
            return scale
        if channels % scale.numel() == 0:
            return scale.repeat_interleave(channels // scale.numel())
        rows = scale.view(channels, -1) if scale.numel() % channels == 0 else None
        if rows is None or not torch.equal(rows, rows[:, :1].expand_as(rows)):
            raise ValueError(
                f"cannot fold {scale.numel()} scales of channels into {self.trace.named(value)}, which has "
                f"{channels} channels: learn one alpha for all, or one for each of these"
            )
        return rows[:, 0]

    def solve(self) -> None:
        """Find the scale of every value; ValueError that names the calls with contradictory demands."""
        for start in self._ties:
            if start not in self._group:
                group = [*reach([start], self._tied)]
                self._group.update(dict.fromkeys(group, group))
        for group in {id(group): group for group in self._group.values()}.values():
            self._check(group)
        waiting = list(self._concatenations)
        while waiting:
            ready = next((c for c in waiting if self._is_ready(c)), None)
            if ready is not None:
                waiting.remove(ready)
                self._settle(ready)
            else:
                self._choose(waiting[0])
        for value, shape in self.trace.shapes.items():
            if len(shape) > 1:  # operations on a whole channel need one scale for it
                self.across(value, shape[1])

    def _tied(self, node: fx.Node) -> list[fx.Node]:
        return [other for other, _ in self._ties[node]]

    def _solved(self, value: fx.Node) -> Tensor | None:
        pins = [pin.scale for node in self._group[value] for pin in self._pins.get(node, ())]
        return max(pins, key=Tensor.numel, default=None)

    def _check(self, group: list[fx.Node]) -> None:
        """Raise ValueError if the demands on a group contradict each other."""
        pins = [pin for node in group for pin in self._pins.get(node, ())]
        if not pins:
            return
        widest = max(pins, key=lambda pin: pin.scale.numel())
        size = widest.scale.numel()
        for pin in pins:
            same = size % pin.scale.numel() == 0 and torch.equal(
                pin.scale.repeat_interleave(size // pin.scale.numel()), widest.scale
            )
            if not same:
                raise ValueError(self._contradiction(widest, pin))
        mixing = next((self._single[node] for node in group if node in self._single), None)
        if size > 1 and mixing is not None:
            raise ValueError(
                f"cannot fold {self.trace.named(widest.by)}, whose scale differs from channel to channel, "
                f"since {self.trace.named(mixing)} needs one for all channels: learn one alpha for the layer"
            )

    def _is_ready(self, c: Concatenation) -> bool:
        return self._solved(c.result) is not None or all(self._solved(part) is not None for part in c.parts)

    def _settle(self, c: Concatenation) -> None:
        """Pin the parts by the result, or the result by the parts."""
        why = "concatenates channels, each of which keeps its scale"
        if self._solved(c.result) is None:
            scales = [self.across(p, n).expand(n) for p, n in zip(c.parts, c.sizes, strict=True)]
            self.pin(c.result, torch.cat(scales), c.result, why)
            self._check(self._group[c.result])
            return
        scale = self.across(c.result, sum(c.sizes)).expand(sum(c.sizes))
        for part, piece in zip(c.parts, scale.split(c.sizes), strict=True):
            self.pin(part, piece, c.result, why)
            self._check(self._group[part])

    def _choose(self, c: Concatenation) -> None:
        """Give an undetermined part the scale of the others, if that is one number."""
        known = [scale for part in c.parts if (scale := self._solved(part)) is not None]
        scale = known[0] if known and known[0].numel() == 1 else ONE
        part = next(part for part in c.parts if self._solved(part) is None)
        self.pin(part, scale, c.result, "concatenates channels")

    def _contradiction(self, a: Pin, b: Pin) -> str:
        named = self.trace.named
        between = [node for node in self._path(a.node, b.node) if node not in (a.by, b.by)]
        called = [node.target for node, _ in self.trace.layers()]
        shared = " (called more than once)"
        names = dict.fromkeys(named(x) + shared * (called.count(x.target) > 1) for x in between)
        return (
            f"cannot fold the model: {named(a.by)} {a.why}, and {named(b.by)} {b.why}, with "
            + (f"only {', '.join(names)} in between" if names else "nothing in between")
            + ". A linear, convolution or batch-norm layer that is called once absorbs a gain: put one "
            "there, give both the same alpha, or fold a part, as in model.part = sigscale.fold(model.part)"
            + ("" if self.trace.shapes else "; where channels are concatenated, example_inputs can help")
        )

    def _path(self, start: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The calls that tie one value to another."""
        came, calls = reach([start], self._tied), []
        while (before := came[end]) is not None:
            calls.append(next(by for other, by in self._ties[end] if other is before))
            end = before
        return calls
