"""A weight penalty attached to an optimizer: hooks around step() that add the penalty's gradient."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter, is_
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from .kernels.penalty import add_penalty, all_dense_on_cpu
from .kernels.reference_penalty import PLAIN

# Whose weight_decay=r adds r theta to the gradient, after `maximize` has turned its sign and a gradient
# scaler's factor is taken out; exactly these classes, since a subclass may do otherwise (AdamW does).
COUPLED = {
    optim.SGD, optim.Adam, optim.NAdam, optim.RAdam, optim.Adamax, optim.Adagrad, optim.Adadelta,
    optim.RMSprop, optim.ASGD,
}  # fmt: skip

ATTACHED: weakref.WeakKeyDictionary[Optimizer, list[Attachment]] = weakref.WeakKeyDictionary()

Group = dict[str, Any]
Gradients = tuple[list[Tensor], list[Tensor], bool]
GRADIENT, TRAINED = attrgetter("grad"), attrgetter("requires_grad")


class Penalty(Protocol):
    """What an attachment needs to know of a `WeightPenalty`."""

    parameters: tuple[Tensor, ...]

    @property
    def l2(self) -> float: ...

    @property
    def l1(self) -> float: ...

    def value_of(self, parameters: Sequence[Tensor]) -> Tensor: ...


class Held(NamedTuple):
    """The parameters of a group, penalized and others; looked up again only when the group changes."""

    parameters: list[Tensor]
    mine: list[Tensor]
    others: list[Tensor]
    plain: bool

    @classmethod
    def of(cls, parameters: Iterable[Tensor], members: frozenset[int]) -> Held:
        parameters = [*parameters]
        mine = [p for p in parameters if id(p) in members]
        plain = bool(mine) and PLAIN.issuperset(map(type, mine))
        return cls(parameters, mine, [p for p in parameters if id(p) not in members], plain)

    def still(self, parameters: list[Tensor]) -> bool:
        return len(parameters) == len(self.parameters) and all(map(is_, parameters, self.parameters))


class Pulls(dict[float, tuple[list[Tensor], list[Tensor]]]):
    """Parameters and their gradients, by the sign with which the penalty enters the gradient."""

    def add(self, group: Group, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        sign = -1.0 if group.get("maximize") else 1.0
        mine, theirs = self.get(sign, ([], []))
        self[sign] = (mine + parameters, theirs + gradients) if mine else (parameters, gradients)


class Attachment:
    """A penalty attached to an optimizer, until `remove()` or the end of a `with` block.

    `ways` says how the penalty reaches each of the optimizer's parameter groups: by "weight_decay", raised
    during a step at no cost, or by "gradient".
    """

    def __init__(self, penalty: Penalty, optimizer: Optimizer) -> None:
        self.penalty = penalty
        self._members = frozenset(map(id, penalty.parameters))
        self._raised: list[tuple[int, float, float]] = []  # groups by number, their own weight_decay, ours
        self._held: dict[int, Held] = {}
        self._optimizer = weakref.ref(optimizer)
        self._handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._lower),
            optimizer.register_state_dict_pre_hook(self._lower),  # after a step that was interrupted
        )
        ATTACHED.setdefault(optimizer, []).append(self)

    def remove(self) -> None:
        """Restore the optimizer; calling it again does nothing."""
        self._lower()
        self._held.clear()
        for handle in self._handles:
            handle.remove()
        optimizer = self._optimizer()
        if optimizer is not None and self in ATTACHED.get(optimizer, ()):
            ATTACHED[optimizer].remove(self)

    @property
    def ways(self) -> tuple[str, ...]:
        """For each parameter group "weight_decay", "gradient" or, if nothing in it is penalized, "none"."""
        optimizer = self._optimizer()
        if optimizer is None:
            return ()
        return tuple(self._way(type(optimizer), group) for group in optimizer.param_groups)

    def _way(self, kind: type, group: Group) -> str:
        trained = [p for p in group["params"] if p.requires_grad or p.grad is not None]
        mine = [p for p in trained if p.requires_grad and id(p) in self._members]
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

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add the gradient now, or after each call of a closure."""
        if kwargs.get("grad_scaler") is not None:
            raise RuntimeError(
                f"{type(optimizer).__name__}.step() takes the GradScaler itself, so that the penalty cannot "
                "know whether gradients are scaled: detach it and add penalty() to the loss"
            )
        positional = len(args) > 1
        closure = args[1] if positional else kwargs.get("closure")
        if closure is None:
            self._add(optimizer)
            return None
        penalized = self._after(closure, optimizer)
        if positional:
            return (args[0], penalized, *args[2:]), kwargs
        return args, {**kwargs, "closure": penalized}

    def _after(self, closure: Callable[[], Any], optimizer: Optimizer) -> Callable[[], Any]:
        """The closure of the loss with the penalty: its gradients and its value."""

        def penalized() -> Any:
            loss = closure()
            pulls = self._add(optimizer)
            if loss is None:
                return None
            for sign, (parameters, _) in pulls.items():
                loss = loss + sign * self.penalty.value_of(parameters)
            return loss

        return penalized

    def _add(self, optimizer: Optimizer) -> Pulls:
        """Add the penalty's gradient to those of the parameters that step() is going to change."""
        self._lower()
        scale = getattr(optimizer, "grad_scale", None)  # while GradScaler leaves unscaling to the step itself
        with torch.no_grad():
            quick = self._quick_pulls(optimizer)
            if quick is not None:
                self._pull(quick, scale, known_plain=True)
                return quick
        pulls, slow, raised, kind = Pulls(), Pulls(), [], type(optimizer)
        for index, group in enumerate(optimizer.param_groups):
            mine, gradients, others = self._penalized(group["params"])
            if not mine:
                continue
            pulls.add(group, mine, gradients)
            if self._by_weight_decay(kind, group, others):
                raised.append(index)
            else:
                slow.add(group, mine, gradients)
        with torch.no_grad():
            self._pull(slow, scale)
        for index in raised:
            group = optimizer.param_groups[index]
            own = group["weight_decay"]
            group["weight_decay"] = own + self.penalty.l2
            self._raised.append((index, own, group["weight_decay"]))
        return pulls

    def _pull(self, pulls: Pulls, scale: Tensor | None, *, known_plain: bool = False) -> None:
        l2, l1 = self.penalty.l2, self.penalty.l1
        for sign, (parameters, gradients) in pulls.items():
            add_penalty(gradients, parameters, sign * l2, sign * l1, scale, known_plain=known_plain)

    def _quick_pulls(self, optimizer: Optimizer) -> Pulls | None:
        """Everything to add, found in a few passes; None if each parameter must be examined."""
        pulls, kind = Pulls(), type(optimizer)
        for index, group in enumerate(optimizer.param_groups):
            held = self._held.get(index)
            if held is None or not held.still(group["params"]):
                held = self._held[index] = Held.of(group["params"], self._members)
            if not held.mine:
                continue
            others = any(p.grad is not None for p in held.others)
            if not held.plain or self._by_weight_decay(kind, group, others):
                return None
            gradients = [*map(GRADIENT, held.mine)]
            if not (all_dense_on_cpu(gradients) and all(map(TRAINED, held.mine))):
                return None
            pulls.add(group, held.mine, gradients)
        return pulls

    def _penalized(self, parameters: Iterable[Tensor]) -> Gradients:
        """Penalized parameters with a gradient, their gradients, and whether others have one."""
        members, mine, gradients, others = self._members, [], [], False
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if id(parameter) not in members or not parameter.requires_grad:
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

    def _by_weight_decay(self, kind: type, group: Mapping[str, Any], others: bool) -> bool:
        """Whether weight_decay would do exactly what the penalty does, to the same parameters."""
        return (
            kind in COUPLED
            and not others
            and not self.penalty.l1
            and not group.get("decoupled_weight_decay")
            and isinstance(group["weight_decay"], (int, float))
        )

    def _lower(self, *_: object) -> None:
        """Restore the groups' own weight_decay, so that users see only theirs between steps."""
        optimizer = self._optimizer()
        while self._raised and optimizer is not None:
            index, own, raised = self._raised.pop()
            if optimizer.param_groups[index]["weight_decay"] == raised:  # else another was loaded since
                optimizer.param_groups[index]["weight_decay"] = own


def check_attachable(penalty: Penalty, optimizer: Any) -> None:
    """Raise TypeError or ValueError unless the penalty can be attached to the optimizer."""
    check_optimizer(optimizer)
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


def check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}: pass the optimizer "
            "itself, not a scheduler or a scaler"
        )
