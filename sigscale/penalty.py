"""The paper's first remedy, a penalty on the parameters: `WeightPenalty`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim import Optimizer

from ._attachment import ATTACHED, Attachment, check_attachable, steppable
from ._checks import check_real, warn
from ._counting import is_batched
from ._selection import PenalizedParameters
from .kernels import reference_penalty
from .kernels.reference_penalty import Tensors

MAX_FACTOR = torch.finfo(torch.float32).max


class WeightPenalty:
    """l2 / 2 sum theta^2 + l1 sum |theta| over a model's parameters, with gradient l2 theta + l1 sign(theta).

    Two ways to use it, with the same gradient:

        loss = criterion(model(x), t) + penalty()  # as the paper writes it
        penalty.attach(optimizer)                  # or once: the optimizer adds the gradient as it steps

    l2 is the paper's r. In torch.optim, `weight_decay=r` of Adam and SGD does the same; that of AdamW, which
    shrinks parameters directly, does not. Keras's `l2(r)` has twice the gradient: its r is our l2 / 2.

    Skips frozen parameters (requires_grad=False) and counts shared ones once. A model's parameters named
    log2_alpha, the learned scale of activations, are left out: their decay would pull alpha to 1, the plain
    function, and undo the other remedy. Parameters passed directly are all penalized.

    A model's parameters are looked up at each call, so the penalty follows whatever replaces them: another
    layer, fully_shard(), load_state_dict(assign=True), to_empty() and, in a forward that adds penalty(),
    torch.func.functional_call(), whose tensors count even where they do not require a gradient. Parameters
    passed directly have no model to be looked up in: pass the new ones to a new penalty.

    Args:
        model_or_params: a module (also wrapped in DistributedDataParallel or by torch.compile), or an
            iterable of parameters or of (name, parameter): dense, float16, bfloat16, float32 or float64.
        l2: factor r of the squares, per squared unit of the parameters; from 0 to 3.4e38.
        l1: factor s of the magnitudes, per unit of the parameters; the same. One must be > 0.
        exclude: a shell-style pattern ("*.bias"), or a sequence of them, of names to leave out.

    Attributes:
        parameters: what is penalized, including frozen parameters, as a tuple.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, a pattern matches nothing, no
            parameter is left, or FullyShardedDataParallel has sharded one, which fully_shard() may.

    Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.2; l1 is named in Sec. 4.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Linear(4, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 3.0)
        >>> penalty = ss.WeightPenalty(model, l2=0.5)
        >>> float(penalty.value())  # 0.5 / 2 * 4 * 3^2
        9.0
        >>> penalty().backward()
        >>> model.weight.grad.tolist()
        [[1.5, 1.5, 1.5, 1.5]]
    """

    def __init__(
        self,
        model_or_params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        l2: float = 0.0,
        l1: float = 0.0,
        *,
        exclude: str | Iterable[str] = (),
    ) -> None:
        self._l2, self._l1 = _factor(l2, "l2"), _factor(l1, "l1")
        if not (self._l2 or self._l1):
            raise ValueError(
                f"l2 or l1 must be > 0; got l2={l2!r} and l1={l1!r}: the paper's l2 is 0.01; without a "
                "penalty there is nothing to make"
            )
        self._parameters = PenalizedParameters(model_or_params, exclude)

    @property
    def l2(self) -> float:
        return self._l2

    @property
    def l1(self) -> float:
        return self._l1

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return self._parameters()

    def __call__(self) -> Tensor:
        """The penalty as a term of the loss: 0-d, differentiable, on the parameters' device.

        In fp32 (fp64 if a parameter is); twice differentiable, also by torch.func, in forward mode and with
        batched gradients. For sharded parameters (DTensor) it is the sum over all processes, which must all
        call it, or value(). Warns while the penalty is attached to an optimizer, where it would act twice:
        log `value()` instead.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._is_attached():
            warn(
                "the weight penalty is attached to an optimizer, which adds its gradient; penalty() in the "
                "loss adds it once more: take it out of the loss, and use penalty.value() to log it"
            )
        return self.value_of(self._parameters.trained())

    @torch.no_grad()
    def value(self) -> Tensor:
        """The same number, detached, for logging; it stays on the device, without synchronizing."""
        return self.value_of(self._parameters.trained())

    def value_of(self, parameters: list[Tensor]) -> Tensor:
        """The penalty of these parameters alone."""
        kinds: dict[tuple[torch.device, torch.dtype, type], list[Tensor]] = {}
        for parameter in parameters:
            kinds.setdefault((parameter.device, parameter.dtype, type(parameter)), []).append(parameter)
        first = next(iter(parameters or self.parameters), None)
        total = torch.zeros((), device=None if first is None else first.device)
        for alike in kinds.values():
            if _is_transformed():
                value = reference_penalty.by_sums(alike, self.l2, self.l1)
            else:
                value = _Value.apply(self.l2, self.l1, *alike)
            total = total + value.to(total.device)
        return total

    def attach(self, optimizer: Optimizer) -> Attachment:
        """Have the optimizer add l2 theta + l1 sign(theta) to each gradient whenever it steps.

        No term in the loss and, on a GPU, one kernel launch for each dtype. Where `weight_decay` does exactly
        the same (SGD, Adam, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop and ASGD, not decoupled, with
        l1 = 0 and a group of penalized parameters only), step() sees a larger one, at no cost:
        `attachment.ways` says which. The optimizer's groups and state_dict() stay as without a penalty, so
        attach it again, in any order, when a training is resumed, and to a copy of the optimizer, which has
        no hooks. Groups and parameters that the optimizer gets later are penalized too, if the model holds
        them by then.

        A parameter without a gradient is skipped, as by weight_decay. With `maximize=True` parameters are
        pulled to zero as well, as by weight_decay and by objective - penalty(). The loss that a closure
        returns includes the penalty's value, subtracted from an objective. Everything that looks at gradients
        before step(), such as clip_grad_norm_ or GradientMonitor.step(), sees those of the loss alone; to
        clip with the penalty, add penalty() to the loss. However many backward passes a step has, the
        gradient is added once. It may stay in `.grad` after the step, or after one that raised: call
        zero_grad() before the next backward pass, and before repeating a step that failed.

        Args:
            optimizer: any torch.optim.Optimizer over some of the parameters, also fused or capturable, or a
                wrapper around one, such as Lookahead or Accelerate's.

        Returns:
            The attachment: `remove()` it, or use it in a `with` statement.

        Raises:
            TypeError: not an optimizer, or one whose step() runs no hooks. In step(): a gradient is sparse.
            ValueError: it holds none of the parameters, or is differentiable, or this penalty or another
                one that shares a parameter is attached to it already.

        Example:
            >>> import torch, sigscale as ss
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = torch.optim.Adam(model.parameters())
            >>> ss.WeightPenalty(model, l2=0.01).attach(optimizer).ways
            ('weight_decay',)
        """
        optimizer = steppable(optimizer)
        check_attachable(self, optimizer)
        return Attachment(self, optimizer)

    def detach(self, optimizer: Optimizer) -> None:
        """Undo `attach(optimizer)`; ValueError if the penalty is not attached to this optimizer."""
        optimizer = steppable(optimizer)
        for attachment in ATTACHED.get(optimizer, ()):
            if attachment.penalty is self:
                return attachment.remove()
        raise ValueError(
            f"the penalty is not attached to this {type(optimizer).__name__}: detach() undoes one attach()"
        )

    def __repr__(self) -> str:
        elements = sum(parameter.numel() for parameter in self.parameters)
        size = f"{len(self.parameters)} parameters, {elements:,} elements"
        return f"WeightPenalty(l2={self.l2!r}, l1={self.l1!r}; {size})"

    def _is_attached(self) -> bool:
        return any(a.penalty is self for attachments in ATTACHED.values() for a in attachments)


def _factor(value: Any, name: str) -> float:
    rule, remedy = "a real number from 0 to 3.4e38", "the paper's l2 is 0.01, and 0.0 leaves a term out"
    return check_real(value, name, rule, remedy, low=0.0, high=MAX_FACTOR)


class _Value(torch.autograd.Function):
    """The penalty of parameters of one type and device, with a gradient that is rounded once."""

    @staticmethod
    def forward(ctx: Any, l2: float, l1: float, *parameters: Tensor) -> Tensor:
        ctx.factors = l2, l1
        ctx.save_for_backward(*parameters)
        return reference_penalty.value(parameters, l2, l1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        parameters, (l2, l1) = ctx.saved_tensors, ctx.factors
        if is_batched(g):  # by vmap, which has no rules for the functions that take lists
            found: Tensors = [g * part for part in reference_penalty.gradients(parameters, l2, l1)]
        else:
            found = reference_penalty.gradients(parameters, l2, l1, g)
        return None, None, *(part.to(p.dtype) for part, p in zip(found, parameters, strict=True))


def _is_transformed() -> bool:
    """Whether torch.func, forward AD or a compiler has to see plain arithmetic."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
