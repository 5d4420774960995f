"""A model's activations, scaled and plain again: `scale_activations` and `unscale_activations`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ._calls import call_scaling, keep_calls_plain, regions, unscale_calls
from ._checks import check_alpha, check_example_inputs, check_flag, check_num_parameters, warn
from ._conversion import (
    NOT_SELECTED,
    Options,
    become_plain,
    check_parameters_may_change,
    default_functions,
    find_activations,
    plain_class,
)
from ._conversion import ConversionEntry as Entry
from ._conversion import ConversionReport as ConversionReport
from ._names import Selection, check_model, named_modules
from ._plan import Plan, first_few
from .kernels.functions import FUNCTIONS
from .nn.activation import Scaled, check_free

Patterns = str | Iterable[str] | None


def scale_activations(
    model: nn.Module,
    alpha: float = 2.0,
    *,
    functions: str | Iterable[str] | None = None,
    learnable: bool = False,
    num_parameters: int = 1,
    include: Patterns = None,
    exclude: Patterns = None,
    subclasses: bool = False,
    functional: bool = False,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    dry_run: bool = False,
) -> ConversionReport:
    """Replace each activation f of a model by alpha * f(x / alpha), in place.

    torch.nn's Tanh and Softsign become those of `sigscale.nn`, and so do RNN (with tanh), LSTM and GRU, whose
    tanh is scaled but whose gates are not. They stay the same objects: hooks, names, modes, parameters and
    their optimizers, shared modules, wrappers and an open GradientMonitor keep working.

    A sigmoid is often a gate or a probability, which must not exceed 1, so it is scaled only when `functions`
    names it. An activation that gives the model's output is scaled too, and the report says so.

    Args:
        model: any module, also in DataParallel, DistributedDataParallel or torch.compile; names leave out
            the wrapper.
        alpha: the scale, dimensionless; finite and > 0. For several scales, call it with several patterns.
        functions: names of the functions to scale, such as ("tanh", "sigmoid"); by default all but sigmoid.
        learnable: learn the alphas, each starting at alpha; pass `parameters` of the result to an optimizer.
            They get the device and dtype of the parameter before them in the model.
        num_parameters: learned alphas in each module: one, or one for each channel, which example_inputs
            can check.
        include, exclude: shell-style patterns ("encoder.*"), or sequences of them, of the names of modules
            to scale or not. With functional=True, a pattern covers everything inside a module it matches.
        subclasses: also scale subclasses that have the forward of torch.nn's class.
        functional: also scale calls such as torch.tanh(x), F.softsign(x) and x.tanh_() wherever forward makes
            them, even on weights. All calls share one learned alpha, the parameter `log2_alpha` of the model.
            A GradientMonitor measures modules, not calls.
        example_inputs: a tensor, or a tuple of arguments. A copy of the model runs on them once, and the
            report lists the calls with file and line, and what gives the model's output.
        dry_run: change nothing; report what would change.

    Returns:
        A `ConversionReport`: what changed, what was left and why, and what no module computes.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, a pattern matches nothing, there is
            nothing to scale, something selected is scaled already, or alphas are to learn in a model in
            DistributedDataParallel or FSDP. The model does not change then.

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
    for name, flag in (("subclasses", subclasses), ("functional", functional), ("dry_run", dry_run)):
        check_flag(flag, name)
    options = Options(
        check_alpha(alpha),
        _checked_functions(functions),
        learnable,
        check_num_parameters(num_parameters, learnable),
        subclasses,
        functional,
    )
    inputs = check_example_inputs(example_inputs, "(x,)")
    plan = Plan.of(model, Selection(include or (), exclude or ()), options, inputs)
    if learnable:
        check_parameters_may_change(model)
    parameters: tuple[nn.Parameter, ...] = ()
    if not dry_run:
        if plan.overlooked:  # warn before anything changes, since a warning may be an error
            shown = ", ".join(f"{call.before} in {call.name} ({call.note})" for call in plan.overlooked[:8])
            warn(f"not scaled, since no modules compute them: {shown}; functional=True scales calls as well")
        parameters = plan.carry_out(model)
    unseen = (*plan.overlooked, *plan.unseen)
    return ConversionReport(model, tuple(plan.changed), tuple(plan.left), unseen, parameters, dry_run)


def _checked_functions(functions: Any) -> tuple[str, ...]:
    """Names of functions in the order of the registry."""
    if functions is None:
        return default_functions()
    listed = isinstance(functions, Iterable) and not isinstance(functions, str)
    names = [*functions] if listed else [functions]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'functions must be a name or a sequence of names; got {names!r}: pass ("tanh", "sigmoid")'
        )
    if not names:
        raise ValueError('functions must name at least one; got none: pass "tanh", or leave it out')
    wanted = {FUNCTIONS[name].name for name in names}
    return tuple(name for name in FUNCTIONS if name in wanted)


def unscale_activations(
    model: nn.Module, *, include: Patterns = None, exclude: Patterns = None, dry_run: bool = False
) -> ConversionReport:
    """Replace each alpha-scaled activation of a model by the plain f(x) of torch.nn, in place.

    Undoes `scale_activations`: outputs, state_dict and attributes are again as they were before it. Modules
    such as `sigscale.nn.Tanh` that the model was built with become plain as well. The weights stay; for a
    plain model that computes the same, see `sigscale.fold`.

    Args:
        model, include, exclude, dry_run: as in `scale_activations`; scaled calls have the model's name, that
            of its class.

    Returns:
        A `ConversionReport`; its `parameters` are the learned alphas, which the model no longer has.

    Raises:
        TypeError, ValueError: an argument has the wrong type, a pattern matches nothing, there is nothing to
            undo, a module's gradient is being measured, or alphas learn in a model in DistributedDataParallel
            or FSDP. The model does not change then.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), ss.nn.Tanh(), ss.nn.Arctan())
        >>> ss.unscale_activations(model)
        activations: 1 changed, 1 left
          1  Tanh(alpha=2.0) -> Tanh
          2  Arctan(alpha=2.0), left  torch.nn has no Arctan: alpha = 1.0 makes it plain
    """
    check_model(model)
    check_flag(dry_run, "dry_run")
    selection = Selection(include or (), exclude or ())
    found = [f for f in find_activations(model) if isinstance(f.module, Scaled)]
    called = regions(model)
    if not (found or called):
        raise ValueError("the model must have scaled activations to undo; got none: it is plain already")
    selection.check([*(f.name for f in found), *(r.name for r in called)], "scaled activations")
    changed, left, parameters = [], [], []
    plain: dict[nn.Module, type[nn.Module]] = {}
    undone = [region for region in called if region.name in selection]
    for region in called:
        if region in undone:
            changed.append(Entry(region.name, region.what, "plain"))
            parameters.append(None if region.owner is None else region.owner._parameters["log2_alpha"])
        else:
            left.append(Entry(region.name, region.what, note=NOT_SELECTED))
    for f in found:
        scaled = cast(Scaled, f.module)
        to = plain_class(scaled)
        if f.name not in selection:
            left.append(Entry(f.name, f.what, note=NOT_SELECTED))
        elif is_parametrized(scaled):
            left.append(Entry(f.name, f.what, note="parametrized: remove_parametrizations() first"))
        elif to is None:
            kind = type(scaled).__name__
            left.append(Entry(f.name, f.what, note=f"torch.nn has no {kind}: alpha = 1.0 makes it plain"))
        else:
            changed.append(Entry(f.name, f.what, to.__name__))
            plain[scaled] = to
            parameters.append(scaled.log2_alpha)
    if not changed:
        shown = first_few(f"{entry.name!r} is {entry.before}, {entry.note}" for entry in left)
        raise ValueError(f"a module must be selected that can become plain; got {shown}")
    check_free([(f.name, f.module) for f in found if f.module in plain])
    learned = tuple(parameter for parameter in parameters if parameter is not None)
    if learned:
        check_parameters_may_change(model)
    if not dry_run:
        for region in undone:
            if region.owner is not None:
                del region.owner._parameters["log2_alpha"]
            for module in region.modules:
                unscale_calls(module)
        for module, to in plain.items():
            become_plain(cast(Scaled, module), to)
        _keep_plain(model, {*plain, *(module for region in undone for module in region.modules)})
    return ConversionReport(model, tuple(changed), tuple(left), (), learned, dry_run)


def _keep_plain(model: nn.Module, undone: set[nn.Module]) -> None:
    """Keep plain what is undone inside a module whose calls stay scaled; elsewhere drop such exceptions."""
    inside = {"": False}
    for path, module in named_modules(model):
        around = path != "" and inside[path.rpartition(".")[0]]
        settings = call_scaling(module)
        if module in undone and around:
            keep_calls_plain(module)
        elif settings is not None and not settings.functions and not around:
            unscale_calls(module)
        inside[path] = around or (settings is not None and bool(settings.functions))
