"""A weight penalty attached to an optimizer: a hook before step() that adds the penalty's gradient."""

from __future__ import annotations

import sys
import weakref
from collections import ChainMap
from collections.abc import Callable, MutableMapping
from functools import cache
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from ._selection import GroupParameters
from .kernels.penalty import add_penalty

# Whose weight_decay=r adds r theta to the gradient, after `maximize` has flipped its sign and a gradient
# scaler's factor is gone; exactly these classes, since a subclass may do otherwise (AdamW does).
COUPLED = {
    optim.SGD, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.ASGD,
}  # fmt: skip
HOOKED_STEP = Optimizer.profile_hook_step(lambda _: None).__code__  # the frame of every step() with hooks
INNER = ("optimizer", "base_optimizer", "_base_optimizer", "_optimizer")  # of wrappers such as Lookahead
ATTACHED: weakref.WeakKeyDictionary[Optimizer, list[Attachment]] = weakref.WeakKeyDictionary()

BySign = dict[float, tuple[list[Tensor], list[Tensor]]]
"""Parameters and their gradients, by the sign with which the penalty enters the gradient."""


class Penalty(Protocol):
    """What an attachment needs from a `WeightPenalty`."""

    @property
    def parameters(self) -> tuple[Tensor, ...]: ...

    @property
    def l2(self) -> float: ...

    @property
    def l1(self) -> float: ...

    def value_of(self, parameters: list[Tensor]) -> Tensor: ...


class Attachment:
    """A penalty attached to an optimizer, until `remove()` or the end of a `with` block.

    `ways` says how the penalty reaches each of the optimizer's parameter groups: by "weight_decay", raised
    during a step at no cost, or by "gradient".
    """

    def __init__(self, penalty: Penalty, optimizer: Optimizer) -> None:
        self.penalty = penalty
        self._held: list[GroupParameters] = []
        self._optimizer = weakref.ref(optimizer)
        self._handle = optimizer.register_step_pre_hook(self._before_step)
        ATTACHED.setdefault(optimizer, []).append(self)

    def remove(self) -> None:
        """Restore the optimizer; calling it again does nothing."""
        self._held.clear()
        self._handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and self in ATTACHED.get(optimizer, ()):
            ATTACHED[optimizer].remove(self)

    @property
    def ways(self) -> tuple[str, ...]:
        """For each parameter group "weight_decay", "gradient" or, if nothing in it is penalized, "none"."""
        optimizer = self._optimizer()
        if optimizer is None:
            return ()
        members = self._members()
        return tuple(self._way(optimizer, group, members) for group in optimizer.param_groups)

    def _way(self, optimizer: Optimizer, group: dict[str, Any], members: frozenset[int]) -> str:
        trained = [p for p in group["params"] if p.requires_grad or p.grad is not None]
        mine = [p for p in trained if p.requires_grad and id(p) in members]
        if not mine:
            return "none"
        decays = self._by_weight_decay(optimizer, group, others=len(mine) < len(trained))
        return "weight_decay" if decays else "gradient"

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        optimizer = self._optimizer()
        if optimizer is None or self not in ATTACHED.get(optimizer, ()):
            return f"Attachment({self.penalty!r}, removed)"
        return f"Attachment({self.penalty!r}, {type(optimizer).__name__}: {', '.join(self.ways)})"

    def _members(self) -> frozenset[int]:
        return frozenset(map(id, self.penalty.parameters))

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the gradient now or, with a closure, after each call of it."""
        if is_within_step(optimizer):
            return None
        if kwargs.get("grad_scaler") is not None:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() takes the GradScaler itself, so that the penalty cannot "
                "know whether gradients are scaled: detach it and add penalty() to the loss"
            )
        step, *others = args
        closure = others[0] if others else kwargs.get("closure")
        if closure is None:
            raised = self._add(optimizer)[1]
            return ((raised_double(step, raised), *others), kwargs) if raised else None
        raised = {}
        penalized = self._after(closure, optimizer, raised)
        if type(optimizer) in COUPLED:
            step = raised_double(step, raised)
        if others:
            return (step, penalized, *others[1:]), kwargs
        return (step,), {**kwargs, "closure": penalized}

    def _after(
        self, closure: Callable[[], Any], optimizer: Optimizer, raised: dict[int, float]
    ) -> Callable[[], Any]:
        """A closure that adds the penalty to the gradients and to the loss."""

        def penalized() -> Any:
            loss = closure()
            everything, now = self._add(optimizer)
            raised.clear()
            raised.update(now)
            if loss is None:
                return None
            for sign, (parameters, _) in everything.items():
                loss = loss + sign * self.penalty.value_of(parameters)
            return loss

        return penalized

    def _add(self, optimizer: Optimizer) -> tuple[BySign, dict[int, float]]:
        """Add the penalty's gradient to those of the parameters that step() is going to change.

        Returns what is penalized, and by how much to raise the weight_decay of groups instead.
        """
        groups = optimizer.param_groups
        if len(groups) != len(self._held) or not all(
            held.still(group["params"]) for held, group in zip(self._held, groups, strict=True)
        ):
            members = self._members()
            self._held = [GroupParameters.of(group["params"], members) for group in groups]
        everything, by_gradient, raised = BySign(), BySign(), dict[int, float]()
        all_plain = True
        for index, (held, group) in enumerate(zip(self._held, groups, strict=True)):
            mine, gradients, others, plain = held.with_gradients()
            if not mine:
                continue
            targets = [everything]
            if self._by_weight_decay(optimizer, group, others):
                raised[index] = self.penalty.l2
            else:
                targets.append(by_gradient)
                all_plain &= plain
            for target in targets:
                found = target.setdefault(-1.0 if group.get("maximize") else 1.0, ([], []))
                found[0].extend(mine)
                found[1].extend(gradients)
        scale = getattr(optimizer, "grad_scale", None)  # while GradScaler leaves unscaling to the step itself
        l2, l1 = self.penalty.l2, self.penalty.l1
        with torch.no_grad():
            for sign, (parameters, gradients) in by_gradient.items():
                add_penalty(gradients, parameters, sign * l2, sign * l1, scale, known_plain=all_plain)
        return everything, raised

    def _by_weight_decay(self, optimizer: Optimizer, group: dict[str, Any], others: bool) -> bool:
        """Whether weight_decay would do exactly what the penalty does, to the same parameters."""
        return (
            type(optimizer) in COUPLED
            and not others
            and not self.penalty.l1
            and not group.get("decoupled_weight_decay")
            and isinstance(group["weight_decay"], (int, float))
            and not torch.compiler.is_compiling()  # which would trace through a double of the optimizer
        )


def check_attachable(penalty: Penalty, optimizer: Optimizer) -> None:
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            "a penalty is added to gradients in place; got an optimizer with differentiable=True, which "
            "differentiates through them: add penalty() to the loss"
        )
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if held.isdisjoint(penalty.parameters):
        raise ValueError(
            f"the optimizer must hold some of the penalized parameters; got {type(optimizer).__name__} over "
            f"{len(held)} others: make both of the same model, after it is wrapped or sharded"
        )
    for other in ATTACHED.get(optimizer, ()):
        if not {*other.penalty.parameters}.isdisjoint(penalty.parameters):
            whose = "this penalty" if other.penalty is penalty else f"{other.penalty!r}"
            raise ValueError(
                f"a parameter takes one penalty in an optimizer; {whose} is attached to this "
                f"{type(optimizer).__name__} already: detach that first, or give one penalty both l2 and l1"
            )


def steppable(optimizer: Any) -> Optimizer:
    """The optimizer, or the one it wraps, whose step() runs hooks; TypeError if there is none."""
    inner, seen = optimizer, set[int]()
    while hasattr(inner, "param_groups") and id(inner) not in seen:
        # PyTorch's constructor gives an optimizer hooks, and its class a step() that runs them.
        hooked = hasattr(type(inner).step, "hooked") and hasattr(inner, "_optimizer_step_pre_hooks")
        if isinstance(inner, Optimizer) and hooked:
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


def is_within_step(optimizer: Optimizer) -> bool:
    """Whether the hooks run for a step() that another step() of the optimizer called, as by super().step().

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
