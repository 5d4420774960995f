"""The paper's first remedy, a penalty on the parameters: `WeightPenalty`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim import Optimizer

from ._attachment import ATTACHED, Attachment, check_attachable
from ._checks import warn
from ._counting import is_batched
from ._selection import PenalizedParameters, check_factors
from ._step import steppable
from .kernels import reference_penalty
from .kernels.reference_penalty import Tensors


class WeightPenalty:
    """l2 / 2 sum theta^2 + l1 sum |theta| over a model's parameters, of gradient l2 theta + l1 sign(theta).

    Two ways to use it, with the same gradient:

        loss = criterion(model(x), t) + penalty()  # as the paper writes it
        penalty.attach(optimizer)                  # or once: the optimizer adds the gradient as it steps

    l2 is the paper's r. Of torch.optim, `weight_decay=r` of Adam and SGD does the same; that of AdamW,
    which shrinks parameters past the gradient, does not. Keras's `l2(r)` is r * sum theta^2, of twice
    the gradient: its r is our l2 / 2.

    A parameter is left out while it is frozen (requires_grad=False); a shared one counts once. A model's
    parameters named log2_alpha, the learned scale of activations, are left out: their decay would pull
    alpha to 1, the plain function, and undo the other remedy. Parameters passed directly are all penalized.

    A model's parameters are looked up at each call, so the penalty follows whatever replaces them: another
    layer, fully_shard(), load_state_dict(assign=True), to_empty(), and, in a forward that adds penalty(),
    torch.func.functional_call(), whose tensors count even where they do not require a gradient. Parameters
    passed directly have no model to be looked up in: pass the new ones to a new penalty.

    Args:
        model_or_params: a module (also wrapped in DistributedDataParallel or by torch.compile), or an
            iterable of parameters or of (name, parameter), dense and of dtype float16, bfloat16, float32
            or float64, on any device.
        l2: factor r of the squares, per squared unit of the parameters; finite and >= 0.
        l1: factor s of the magnitudes, per unit of the parameters; finite and >= 0. One must be > 0.
        exclude: a shell-style pattern ("*.bias"), or a sequence of them, of names to leave out.

    Attributes:
        l2, l1: the factors.
        parameters: what is penalized, frozen ones too, as a tuple.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, a pattern matches nothing, no
            parameter is left, or FullyShardedDataParallel has sharded one, which fully_shard() may.

    Source: L. Ven and J. Lederer, "Regularization and Reparameterization Avoid Vanishing Gradients in
    Sigmoid-Type Networks", arXiv 2106.02260, Sec. 2.2; l1 is named in Sec. 4.

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
        self._l2, self._l1 = check_factors(l2, l1)
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
        """The penalty as a term of a loss: 0-d, differentiable, on the parameters' device.

        In fp32, also for 16-bit parameters (fp64 if one is fp64); twice differentiable, also by torch.func,
        in forward mode and with batched gradients. For sharded parameters (DTensor) it is the sum over all
        processes, which must all call it, or value(). While the penalty is attached to an optimizer it
        would act twice, so it warns: log `value()` instead.
        """
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and self._is_attached():
            warn(
                "the weight penalty is attached to an optimizer, which adds its gradient; penalty() in the "
                "loss adds it once more: take it out of the loss, and use penalty.value() to log it"
            )
        return self.value_of(self._parameters.trained())

    @torch.no_grad()
    def value(self) -> Tensor:
        """The same number, detached, for logging; it stays on the device without synchronizing."""
        return self.value_of(self._parameters.trained())

    def value_of(self, parameters: Sequence[Tensor]) -> Tensor:
        """The penalty of these parameters alone, none of them frozen."""
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

        Without a term in the loss and, on a GPU, in one kernel launch for each dtype; where
        `weight_decay` does exactly the same (SGD, Adam, NAdam, RAdam, Adamax, Adagrad, Adadelta, RMSprop
        and ASGD, not decoupled, with l1 = 0 and groups of penalized parameters only) step() sees a larger
        one, at no cost. `attachment.ways` tells which. The optimizer's groups and its state_dict() are as
        without a penalty, so attach it again, in any order, when a training is resumed, and to a copy of
        the optimizer, which has no hooks. Groups and parameters that the optimizer is given later are
        penalized too, if the model holds them by then.

        A parameter without a gradient is skipped, as by weight_decay. With `maximize=True` parameters
        are pulled to zero as well, as by weight_decay and by objective - penalty(). The loss that a
        closure returns has the penalty's value added, an objective has it taken away. Everything that
        looks at gradients before step(), such as clip_grad_norm_ or GradientMonitor.step(), sees those of
        the loss alone; to clip with the penalty, add penalty() to the loss. However many backward passes a
        step has, the gradient is added once; it may be in `.grad` after the step, where zero_grad() finds it.

        Args:
            optimizer: any torch.optim.Optimizer over some of the parameters, also fused or capturable, or
                a wrapper that holds one, such as Lookahead or Accelerate's: the penalty goes to that one.

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
        """Undo `attach(optimizer)`.

        Raises:
            ValueError: it is not attached to this optimizer.
        """
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
    """Whether the value is to be plain arithmetic, which torch.func, forward AD and compilers take apart."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
