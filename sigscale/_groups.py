"""What an optimizer's parameter groups hold, seen from a penalty: its own parameters, and others."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

Group = dict[str, Any]
Gradients = tuple[list[Tensor], list[Tensor], bool]


class Held(NamedTuple):
    """The parameters of a group: all, the penalized, and the others."""

    parameters: list[Tensor]
    mine: list[Tensor]
    others: list[Tensor]

    @classmethod
    def of(cls, parameters: Iterable[Tensor], members: frozenset[int]) -> Held:
        parameters = [*parameters]
        mine = [p for p in parameters if id(p) in members]
        return cls(parameters, mine, [p for p in parameters if id(p) not in members])

    def still(self, parameters: list[Tensor]) -> bool:
        return len(parameters) == len(self.parameters) and all(map(is_, parameters, self.parameters))

    def penalized(self) -> Gradients:
        """Penalized parameters with a gradient, their gradients, and whether others have one."""
        mine, gradients, others = [], [], any(p.grad is not None for p in self.others)
        for parameter in self.mine:
            gradient = parameter.grad
            if gradient is None:
                continue
            if not parameter.requires_grad:
                others = True
                continue
            if gradient.layout is not torch.strided:
                raise TypeError(
                    f"a weight penalty takes dense gradients; got layout {gradient.layout} for a parameter "
                    f"of shape {tuple(parameter.shape)}: make it with sparse=False, or exclude it"
                )
            mine.append(parameter)
            gradients.append(gradient)
        return mine, gradients, others


class Pulls(dict[float, tuple[list[Tensor], list[Tensor]]]):
    """Parameters and their gradients, by the sign with which the penalty enters the gradient."""

    def add(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        sign = -1.0 if group.get("maximize") else 1.0
        mine, theirs = self.get(sign, ([], []))
        self[sign] = (mine + parameters, theirs + gradients) if mine else (parameters, gradients)
