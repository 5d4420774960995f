"""A model's activations, scaled and plain again: `scale_activations` and `unscale_activations`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import cast

from torch import nn

from ._alpha import Scaled
from ._checks import check_alpha, check_num_parameters
from ._names import Selection
from .conversion.pairs import become_plain, plain_class
from .conversion.plan import FREE, Plan, listed
from .conversion.report import ConversionReport, Entry
from .conversion.survey import check_parameters_may_change, survey
from .monitor._hooks import check_free
from .monitor._options import check_model

Patterns = str | Iterable[str] | None


def scale_activations(
    model: nn.Module,
    alpha: float = 2.0,
    *,
    learnable: bool = False,
    num_parameters: int = 1,
    include: Patterns = None,
    exclude: Patterns = None,
    subclasses: bool = False,
    functional: bool = False,
    dry_run: bool = False,
) -> ConversionReport:
    """Replace each activation f of a model by alpha * f(x / alpha), in place.

    Modules torch.nn.Tanh, Sigmoid and Softsign become those of `sigscale.nn`, and so do RNN (of tanh),
    LSTM and GRU, of which the tanh is scaled, not the gates. They stay the same objects: hooks, names, modes,
    parameters and their optimizers, shared modules, wrappers and an open GradientMonitor go on as before.

    Sigmoids that are gates or give probabilities must not be scaled, or they exceed 1. What looks like one is
    warned of; let `dry_run=True` list them first and leave them out with `exclude`.

    Args:
        model: any module, also in DataParallel, DistributedDataParallel or torch.compile; names are those
            without a wrapper.
        alpha: the scale, dimensionless; finite and > 0. For several scales, call it with several patterns.
        learnable: let the alphas learn, each starting at alpha; `parameters` of the result are for an
            optimizer. They get device and dtype of the parameter before them in the model.
        num_parameters: alphas that learn in each module: one, or one for each channel.
        include, exclude: patterns as of a shell ("encoder.*"), or sequences of them, of the names of modules
            to scale, and not to.
        subclasses: scale subclasses, too, if they have the forward of torch.nn's class.
        functional: trace the model by torch.fx and scale calls such as torch.tanh(x) as well: they become
            modules, in a traced model that shares parameters and modules with this one: go on with `model`
            of the result.
        dry_run: change nothing; tell what would be.

    Returns:
        A `ConversionReport`: what changed, what was left and why, calls and cells that are no modules.

    Raises:
        TypeError: model is not a Module, alpha not a number or a pattern not a string.
        ValueError: alpha or num_parameters is out of range, a pattern matches nothing, nothing is there to
            scale, something selected is scaled already, torch.fx cannot trace the model, or alphas are to
            learn in a model in DistributedDataParallel or FSDP. The model is left as it was.

    Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.ReLU())
        >>> ss.scale_activations(model, alpha=2.0)
        activations: 1 changed, 0 left
          1  Tanh -> Tanh(alpha=2.0)
        >>> model[1]
        Tanh(alpha=2.0)
    """
    check_model(model)
    alpha = check_alpha(alpha)
    check_num_parameters(num_parameters, learnable)
    plan = Plan.of(model, Selection(include or (), exclude or ()), subclasses, functional)
    recurrent = [f.name for f in plan.modules if isinstance(f.module, nn.RNNBase)]
    if num_parameters > 1 and recurrent:
        raise ValueError(
            f"num_parameters={num_parameters} is for activations, with an alpha for each channel; got the "
            f"recurrent {listed(recurrent)}: scale them in a call of their own, and exclude them in this one"
        )
    learning = {"learnable": learnable, "num_parameters": num_parameters}
    if learnable:
        check_parameters_may_change(model)
    suffix = f"(alpha={alpha!r}{', learnable=True' if learnable else ''})"
    doubtful = plan.doubtful(model)
    report = ConversionReport(model, plan.changes(suffix, doubtful), plan.left, plan.unseen, (), dry_run)
    if dry_run:
        return report
    _warn(doubtful, plan)
    return replace(report, **plan.carry_out(model, alpha, **learning))


def unscale_activations(
    model: nn.Module, *, include: Patterns = None, exclude: Patterns = None, dry_run: bool = False
) -> ConversionReport:
    """Replace each alpha-scaled activation of a model by the plain f(x) of torch.nn, in place.

    Undoes `scale_activations`, after which outputs, state_dict and attributes are as they were before it, and
    does the same to modules such as `sigscale.nn.Tanh` that the model was built with. The weights stay: for
    a model without alpha that computes the same, see `sigscale.fold`.

    Args:
        model, include, exclude, dry_run: as of `scale_activations`.

    Returns:
        A `ConversionReport`; its `parameters` are the learned alphas, which are no longer the model's.

    Raises:
        TypeError: model is not a Module, or a pattern not a string.
        ValueError: a pattern matches nothing, nothing is scaled that torch.nn has, a module's gradient is
            being measured, or alphas learn in a model in DistributedDataParallel or FSDP. The model is left
            as it was.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), ss.nn.Tanh(), ss.nn.Arctan())
        >>> ss.unscale_activations(model)
        activations: 1 changed, 1 left
          1  Tanh(alpha=2.0) -> Tanh
          2  Arctan(alpha=2.0), left  torch.nn has no Arctan: alpha = 1.0 makes it plain
    """
    check_model(model)
    selection = Selection(include or (), exclude or ())
    found = [f for f in survey(model) if isinstance(f.module, Scaled)]
    if not found:
        raise ValueError("the model must have scaled activations to undo; got none: it is plain already")
    selection.check((f.name for f in found), "scaled activations")
    changed, left, parameters, plain = [], [], [], {}
    for f in found:
        module = cast(Scaled, f.module)
        to = plain_class(module)
        if f.name not in selection:
            left.append(Entry(f.name, f.what, note=FREE))
        elif to is None:
            kind = type(module).__name__
            left.append(Entry(f.name, f.what, note=f"torch.nn has no {kind}: alpha = 1.0 makes it plain"))
        else:
            changed.append(Entry(f.name, f.what, to.__name__))
            plain[module] = to
            parameters += [] if module.log2_alpha is None else [module.log2_alpha]
    if not changed:
        shown = "; ".join(f"{entry.name!r} is {entry.before}, {entry.note}" for entry in left)
        raise ValueError(f"nothing selected has a plain module in torch.nn; got {shown}")
    check_free([(f.name, f.module) for f in found if f.module in plain])
    if parameters:
        check_parameters_may_change(model)
    if not dry_run:
        for module, to in plain.items():
            become_plain(module, to)
    return ConversionReport(model, tuple(changed), tuple(left), (), tuple(parameters), dry_run)


def _warn(doubtful: Mapping[str, str], plan: Plan) -> None:
    """Warn before anything changes, since a warning may be an error."""
    named = set(plan.selection.include)
    doubts = {name: why for name, why in doubtful.items() if name not in named}
    if doubts:
        listed = ", ".join(f"{name!r} ({why})" for name, why in doubts.items())
        warnings.warn(
            "sigmoids are scaled that look like gates or probabilities, which then exceed 1: "
            f"{listed}. If they are, call unscale_activations(model) and leave them out with "
            f"exclude={[*doubts]!r}; if not, name them in include",
            UserWarning,
            stacklevel=3,
        )
    if plan.overlooked:
        listed = ", ".join(f"{entry.before} in {entry.name} ({entry.note})" for entry in plan.overlooked[:8])
        remedy = "functional=True scales calls as well"
        if plan.trace is not None:
            remedy = "modules of PyTorch call them inside, where a trace does not look"
        warnings.warn(
            f"not scaled, since no modules compute them: {listed}; {remedy}",
            UserWarning,
            stacklevel=3,
        )
