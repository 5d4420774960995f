"""An optimizer's step(): whether it runs hooks, which call is the outermost, and more weight decay for it."""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import MutableMapping
from functools import cache
from types import FrameType
from typing import Any

from torch.optim import Optimizer

HOOKED_STEP = Optimizer.profile_hook_step(lambda _: None).__code__  # the frame of every step() with hooks
INNER = ("optimizer", "base_optimizer", "_base_optimizer", "_optimizer")  # of wrappers such as Lookahead


def steppable(optimizer: Any) -> Optimizer:
    """The optimizer, or the one it wraps, whose step() runs hooks; TypeError if there is none."""
    inner, seen = optimizer, set[int]()
    while hasattr(inner, "param_groups") and id(inner) not in seen:
        if isinstance(inner, Optimizer) and _runs_hooks(inner):
            return inner
        seen.add(id(inner))
        inner = next((getattr(inner, name) for name in INNER if hasattr(inner, name)), None)
    if seen:
        raise TypeError(
            "the optimizer's step() must run hooks, as those of torch.optim do; got "
            f"{type(optimizer).__name__}, which does not call Optimizer.__init__: pass the optimizer that it "
            "wraps, or add penalty() to the loss"
        )
    raise TypeError(
        f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}: pass the optimizer "
        "itself, not a scheduler or a scaler"
    )


def _runs_hooks(optimizer: Optimizer) -> bool:
    """Whether its constructor was PyTorch's, which gives it hooks and its class a step() that runs them."""
    return hasattr(type(optimizer).step, "hooked") and hasattr(optimizer, "_optimizer_step_pre_hooks")


def is_within_step(optimizer: Optimizer) -> bool:
    """Whether another step() of the optimizer called the one whose hooks run now, as super().step() does.

    PyTorch patches step() in each class of which an optimizer was made, and each patched step() runs the
    hooks. The stack tells them apart; a mark on the optimizer would stay there after an exception.
    """
    steps = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is HOOKED_STEP and vars(frame.f_locals["self"]) is vars(optimizer):
            steps += 1
        frame = frame.f_back
    return steps > 1


class RaisedDouble:
    """Mixed into an optimizer's class: the same optimizer, attribute for attribute, with more weight decay.

    step() runs on it, so that the optimizer's own groups are never touched, whatever happens in there.
    """

    __slots__ = ("raised",)  # since __dict__ is the optimizer's
    raised: MutableMapping[int, float]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups = list(self.__dict__["param_groups"])
        for index, by in self.raised.items():
            groups[index] = {**groups[index], "weight_decay": groups[index]["weight_decay"] + by}
        return groups


def raised_double(optimizer: Optimizer, raised: MutableMapping[int, float]) -> Optimizer:
    """The optimizer with the weight_decay of groups, by their index, raised by as much as `raised` says."""
    kind: Any = type(optimizer)
    if isinstance(optimizer, RaisedDouble):  # by another penalty
        raised = ChainMap(raised, optimizer.raised)
    else:
        kind = _double_of(kind)
    double: Any = object.__new__(kind)
    double.__dict__, double.raised = optimizer.__dict__, raised
    return double  # type: ignore[no-any-return]


@cache
def _double_of(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (RaisedDouble, kind), {})
