"""A weight penalty attached to an optimizer: hooks around step() that add the penalty's gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from ._groups import Group, Held, Pulls
from ._step import is_within_step, raised_double
from .kernels.penalty import add_penalty, all_dense_on_cpu
from .kernels.reference_penalty import PLAIN

# Whose weight_decay=r adds r theta to the gradient, after `maximize` has turned its sign and a gradient
# scaler's factor is taken out; exactly these classes, since a subclass may do otherwise (AdamW does).
COUPLED = {
    optim.SGD, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.ASGD,
}  # fmt: skip

ATTACHED: weakref.WeakKeyDictionary[Optimizer, list[Attachment]] = weakref.WeakKeyDictionary()

GRADIENT, TRAINED = attrgetter("grad"), attrgetter("requires_grad")


class Penalty(Protocol):
    """What an attachment needs to know of a `WeightPenalty`."""

    @property
    def parameters(self) -> tuple[Tensor, ...]: ...

    @property
    def l2(self) -> float: ...

    @property
    def l1(self) -> float: ...

    def value_of(self, parameters: Sequence[Tensor]) -> Tensor: ...


class Attachment:
    """A penalty attached to an optimizer, until `remove()` or the end of a `with` block.

    `ways` says how the penalty reaches each of the optimizer's parameter groups: by "weight_decay", raised
    during a step at no cost, or by "gradient".
    """

    def __init__(self, penalty: Penalty, optimizer: Optimizer) -> None:
        self.penalty = penalty
        self._held: list[Held] = []
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
        return tuple(self._way(type(optimizer), group, members) for group in optimizer.param_groups)

    def _way(self, kind: type, group: Group, members: frozenset[int]) -> str:
        trained = [p for p in group["params"] if p.requires_grad or p.grad is not None]
        mine = [p for p in trained if p.requires_grad and id(p) in members]
        if not mine:
            return "none"
        others = len(mine) < len(trained)
        return "weight_decay" if self._by_weight_decay(kind, group, others) else "gradient"

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
        """Add the gradient now, or after each call of a closure."""
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
        """The closure of the loss with the penalty: its gradients and its value."""

        def penalized() -> Any:
            loss = closure()
            pulls, now = self._add(optimizer)
            raised.clear()
            raised.update(now)
            if loss is None:
                return None
            for sign, (parameters, _) in pulls.items():
                loss = loss + sign * self.penalty.value_of(parameters)
            return loss

        return penalized

    def _add(self, optimizer: Optimizer) -> tuple[Pulls, dict[int, float]]:
        """Add the penalty's gradient to those of the parameters that step() is going to change.

        Returned is what is penalized, and by how much to raise the weight_decay of groups instead.
        """
        self._look_up(optimizer.param_groups)
        scale = getattr(optimizer, "grad_scale", None)  # while GradScaler leaves unscaling to the step itself
        with torch.no_grad():
            quick = self._quick_pulls(optimizer)
            if quick is not None:
                self._pull(quick, scale, known_plain=True)
                return quick, {}
        pulls, slow, raised, kind = Pulls(), Pulls(), dict[int, float](), type(optimizer)
        for index, (held, group) in enumerate(zip(self._held, optimizer.param_groups, strict=True)):
            mine, gradients, others = held.penalized()
            if not mine:
                continue
            pulls.add(group, mine, gradients)
            if self._by_weight_decay(kind, group, others):
                raised[index] = self.penalty.l2
            else:
                slow.add(group, mine, gradients)
        with torch.no_grad():
            self._pull(slow, scale)
        return pulls, raised

    def _look_up(self, groups: Sequence[Group]) -> None:
        """Find the penalized parameters of groups, unless these hold what they held before."""
        if len(groups) == len(self._held) and all(
            held.still(group["params"]) for held, group in zip(self._held, groups, strict=True)
        ):
            return
        members = self._members()
        self._held = [Held.of(group["params"], members) for group in groups]

    def _pull(self, pulls: Pulls, scale: Tensor | None, *, known_plain: bool = False) -> None:
        l2, l1 = self.penalty.l2, self.penalty.l1
        for sign, (parameters, gradients) in pulls.items():
            add_penalty(gradients, parameters, sign * l2, sign * l1, scale, known_plain=known_plain)

    def _quick_pulls(self, optimizer: Optimizer) -> Pulls | None:
        """Everything to add, found in a few passes; None if each parameter must be examined."""
        pulls, kind = Pulls(), type(optimizer)
        for held, group in zip(self._held, optimizer.param_groups, strict=True):
            if not held.mine:
                continue
            others = any(p.grad is not None for p in held.others)
            if not PLAIN.issuperset(map(type, held.mine)) or self._by_weight_decay(kind, group, others):
                return None
            gradients = [*map(GRADIENT, held.mine)]
            if not (all_dense_on_cpu(gradients) and all(map(TRAINED, held.mine))):
                return None
            pulls.add(group, held.mine, gradients)
        return pulls

    def _by_weight_decay(self, kind: type, group: Mapping[str, Any], others: bool) -> bool:
        """Whether weight_decay would do exactly what the penalty does, to the same parameters."""
        return (
            kind in COUPLED
            and not others
            and not self.penalty.l1
            and not group.get("decoupled_weight_decay")
            and isinstance(group["weight_decay"], (int, float))
            and not torch.compiler.is_compiling()  # which would trace through a double of the optimizer
        )


def check_attachable(penalty: Penalty, optimizer: Any) -> None:
    """Raise TypeError or ValueError unless the penalty can be attached to the optimizer."""
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
