"""What `scale_activations` will do to a model, decided before anything changes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ._calls import (
    CallScaling,
    Known,
    call_scaling,
    class_without_marks,
    keep_calls_plain,
    known_calls,
    regions,
    scale_calls,
    unscale_calls,
)
from ._checks import line_of_user
from ._conversion import (
    NOT_SELECTED,
    Candidate,
    Options,
    become_scaled,
    find_activations,
    not_requested,
    placements,
    recurrent_cells,
    scaled_classes,
)
from ._conversion import ConversionEntry as Entry
from ._names import Selection, named_modules, wrappers
from .nn.activation import Scaled

OUTPUT = "gives the model's output, whose range grows to alpha"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
KEEPING = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout)


class Mark(NamedTuple):
    """A module whose calls become scaled, by an alpha that may learn in `owner`; or without it stay plain."""

    module: nn.Module
    owner: nn.Module | None


@dataclass
class Plan:
    """The modules and marks to act on, and the entries of the report."""

    options: Options
    modules: list[Candidate]
    marks: dict[str, Mark]
    unseen: list[Entry]
    changed: list[Entry] = field(default_factory=list)
    left: list[Entry] = field(default_factory=list)
    overlooked: list[Entry] = field(default_factory=list)  # calls that functional=True would scale

    @classmethod
    def of(cls, model: nn.Module, selection: Selection, options: Options, inputs: Any) -> Plan:
        """Examine a model; ValueError if there is nothing to scale, or something is scaled already."""
        found = [*find_activations(model, options)]
        names = [name or type(module).__name__ for name, module in named_modules(model)]
        selected = {name for name in names if name in selection}
        marks: dict[str, Mark] = {}
        if options.functional:
            selection.check(names, "modules")
            selected, marks = _marks(model, selection, {f.name for f in found})
        elif found:
            selection.check((f.name for f in found), "activations")
        _check_unscaled(model, found, selected)
        cells = recurrent_cells(model)
        unseen = [Entry(name, type(cell).__name__, note="computes it internally") for name, cell in cells]
        plan = cls(options, [f for f in found if f.name in selected and not f.refusal], marks, unseen)
        plan._check_num_parameters()
        observed = None if inputs is None else trial_run(model, inputs, {f.name for f in found}, marks)
        if observed is not None and options.num_parameters > 1:
            _check_channels(options.num_parameters, plan.modules, observed.channels)
        notes = _likely_output(model) if observed is None else dict.fromkeys(observed.outputs, OUTPUT)
        for f in plan.modules:
            assert f.scaled is not None
            after = f"{f.scaled.__name__}{options.suffix}"
            plan.changed.append(Entry(f.name, f.what, after, notes.get(f.name, "")))
        plan.left += [
            Entry(f.name, f.what, note=f.refusal or NOT_SELECTED)
            for f in found
            if f.refusal or f.name not in selected
        ]
        plan._add_calls(model, observed)
        if not plan.changed:
            raise ValueError(plan._nothing(selection))
        return plan

    def _add_calls(self, model: nn.Module, observed: TrialRun | None) -> None:
        """Report the calls that were observed or, if none could be, the modules that may make some."""
        options = self.options
        if observed is None:
            owners = {mark.owner for mark in self.marks.values()}
            after = f"{', '.join(options.functions)} {options.suffix}"
            self.changed += [
                Entry(name or type(module).__name__, "calls in forward", after)
                for name, module in named_modules(model)
                if module in owners
            ]
            return
        for call in observed.calls:
            name, text, function = call.module, call.known.text, call.known.function.name
            if function not in options.functions:
                self.left.append(Entry(name, text, note=f"{call.place}: {not_requested(function)}"))
            elif call.scaled:
                note = f"{call.place}, {OUTPUT}" if call.is_output else call.place
                self.changed.append(Entry(name, text, f"{function}{options.suffix}", note))
            elif options.functional:
                self.left.append(Entry(name, text, note=f"{call.place}: {NOT_SELECTED}"))
            else:
                self.overlooked.append(Entry(name, text, note=call.place))

    def _check_num_parameters(self) -> None:
        number = self.options.num_parameters
        text = f"num_parameters={number} is for activation modules, with an alpha for each channel"
        cells = [f.name for f in self.modules if isinstance(f.module, nn.RNNBase)]
        calls = [name for name, mark in self.marks.items() if mark.owner is not None]
        if number > 1 and cells:
            raise ValueError(f"{text}; got also {first_few(cells)}: scale those separately, with exclude=")
        if number > 1 and calls:
            raise ValueError(
                f"{text}; got also calls in {first_few(calls)}: leave functional=True to another call, with "
                "exclude= for the modules"
            )

    def _nothing(self, selection: Selection) -> str:
        """Why there is nothing to scale."""
        known = first_few(f"nn.{kind.__name__}" for kind in scaled_classes())
        text = f"the model must have activations to scale, modules {known}; got none"
        if self.left:
            text += " but " + first_few(f"{e.name!r} ({e.before}: {e.note})" for e in self.left)
        unseen = [*self.overlooked, *self.unseen]
        if unseen:
            text += "; no module computes " + first_few(f"{entry.before} ({entry.note})" for entry in unseen)
        if selection.include or selection.exclude:
            return f"{text}: widen include=, or narrow exclude="
        only_cells = bool(self.unseen) and not (self.left or self.overlooked)
        helps = not (self.options.functional or only_cells)
        return f"{text}: functional=True scales calls in forward as well" if helps else text

    def carry_out(self, model: nn.Module) -> tuple[nn.Parameter, ...]:
        """Scale; returns the new parameters."""
        options = self.options
        place_of = placements(model) if options.learnable else {}
        parameters: list[nn.Parameter | None] = []
        for owner in dict.fromkeys(mark.owner for mark in self.marks.values()):
            if owner is not None and options.learnable:
                device, dtype = place_of[owner]
                start = torch.full((1,), math.log2(options.alpha), device=device, dtype=dtype)
                owner.register_parameter("log2_alpha", nn.Parameter(start))
                parameters.append(owner._parameters["log2_alpha"])
            settings = CallScaling(options.alpha, options.functions)
            for module in (mark.module for mark in self.marks.values() if mark.owner is owner):
                if owner is None:
                    keep_calls_plain(module)
                else:
                    scale_calls(module, settings, owner if options.learnable else None)
        for f in self.modules:
            assert f.scaled is not None
            unscale_calls(f.module)
            parameters.append(
                become_scaled(f.module, f.scaled, options, place_of.get(f.module, (None, None)))
            )
        return tuple(parameter for parameter in parameters if parameter is not None)


class _State(NamedTuple):
    """The selection at a module: what holds for it or for a module around it."""

    owner: nn.Module | None = None  # the outermost selected module around, unless excluded since
    excluded: bool = False
    scaled: bool = False
    marked: bool = False


def _marks(model: nn.Module, selection: Selection, activations: set[str]) -> tuple[set[str], dict[str, Mark]]:
    """Names of the modules whose calls are selected, and marks for those that may make any.

    A pattern covers everything inside the modules that it matches; an exclusion wins.
    """
    states: dict[str, _State] = {}
    marks: dict[str, Mark] = {}
    selected: set[str] = set()
    for path, module in named_modules(model):
        name = path or type(module).__name__
        around = states.get(path.rpartition(".")[0], _State()) if path else _State()
        excluded, owner = around.excluded or selection.excludes(name), around.owner
        if excluded:
            owner = None
        elif owner is None and selection.includes(name):
            owner = module
        if owner is None:
            mark = excluded and around.scaled and call_scaling(module) is None
        else:
            selected.add(name)
            mark = name not in activations
        mark = mark and _may_call(module)
        why = _unfit(module) if mark else ""
        if why and (owner is None or not around.marked):
            raise ValueError(
                f"functional=True scales calls that a model's own forward makes; got {name!r}, which {why}: "
                "scale the model before that"
            )
        if mark and not why:  # the calls of an unfit module are scaled where a marked one calls it
            marks[name] = Mark(module, owner)
        scaled = around.scaled or owner is not None
        states[path] = _State(owner, excluded, scaled, around.marked or (scaled and name in marks))
    return selected, marks


def _may_call(module: nn.Module) -> bool:
    """Whether a module may call an activation: PyTorch's layers and containers do not."""
    stock = class_without_marks(module).__module__.startswith("torch.nn.")
    contains = bool(module._modules) and type(module) not in CONTAINERS
    calls = not stock or contains or isinstance(module, tuple(scaled_classes()))
    return calls and not isinstance(module, (Scaled, nn.RNNBase))


def _unfit(module: nn.Module) -> str:
    """Why the forward of a module's class does not decide what the module does."""
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return "is a script or a traced graph"
    return "had its forward replaced" if "forward" in vars(module) else ""


def _check_unscaled(model: nn.Module, found: list[Candidate], selected: set[str]) -> None:
    twice = [f"{f.name!r}, {f.what}" for f in found if isinstance(f.module, Scaled) and f.name in selected]
    chosen = {module for name, module in named_modules(model) if (name or type(module).__name__) in selected}
    twice += [f"{r.name!r}, {r.what}" for r in regions(model) if not chosen.isdisjoint(r.modules)]
    if twice:
        raise ValueError(
            f"activations must not be scaled twice; got {first_few(twice)}: undo it with "
            "unscale_activations(model), leave them out with exclude=..., or set their alpha"
        )


def _check_channels(number: int, modules: list[Candidate], channels: Mapping[str, int]) -> None:
    unfit = [f"{f.name!r} has {channels[f.name]}" for f in modules if channels.get(f.name, number) != number]
    if unfit:
        raise ValueError(
            "num_parameters must be 1 or the number of channels, dimension 1 of each module's input; got "
            f"{number}, but {first_few(unfit)}: scale modules of other widths separately, with include="
        )


def first_few(items: Iterable[str]) -> str:
    """The first few items, for an error message."""
    items = [*items]
    return "; ".join(items[:8]) + ("; ..." if len(items) > 8 else "")


def _likely_output(model: nn.Module) -> dict[str, str]:
    """A note on the module that gives the model's output, as far as can be seen without running the model."""
    *_, module = wrappers(model)
    path, certain = "", True
    while module._modules and not isinstance(module, nn.RNNBase):
        name, module, certain = next(
            (name, child, certain and isinstance(module, nn.Sequential))
            for name, child in reversed(module._modules.items())
            if child is not None and not isinstance(child, KEEPING)
        )
        path = f"{path}.{name}" if path else name
    note = OUTPUT if certain else "the last module: if it gives the model's output, that grows to alpha"
    return {path or type(module).__name__: note}


class Call(NamedTuple):
    """A call of an activation function while the model ran on its example inputs."""

    module: str
    known: Known
    place: str
    scaled: bool
    is_output: bool


class TrialRun(NamedTuple):
    """The calls, the activation modules that give the model's output, and the channels of each module."""

    calls: list[Call]
    outputs: set[str]
    channels: dict[str, int]


class _Listing(TorchFunctionMode):
    """Notes calls of activation functions, by the modules around them."""

    def __init__(self, inside: list[str], activations: set[str]) -> None:
        super().__init__()
        self.known, self.inside, self.activations = known_calls(), inside, activations
        self.calls: list[tuple[list[str], Known, str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.known and self.inside and self.inside[-1] not in self.activations:
            place = line_of_user(trial_run) or "inside PyTorch"
            self.calls.append(([*self.inside], self.known[func], place, result))
        return result


def trial_run(model: nn.Module, inputs: Any, activations: set[str], marks: Mapping[str, Mark]) -> TrialRun:
    """Run a copy of the model once, without gradients; note its calls and what gives its output."""
    *_, model = wrappers(model)
    inside: list[str] = []
    results: list[tuple[str, Any]] = []
    listing = _Listing(inside, activations)

    def leave(name: str, result: Any) -> None:
        inside.pop()
        if name in activations:
            results.append((name, result))

    try:
        run = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        for path, module in named_modules(run):
            name = path or type(module).__name__
            module.register_forward_pre_hook(lambda *_, name=name: inside.append(name))
            module.register_forward_hook(lambda *args, name=name: leave(name, args[-1]), always_call=True)
        with torch.no_grad(), torch.random.fork_rng(), listing:
            output = run(*inputs)
    except Exception as error:  # whatever the model's code raises
        raise ValueError(
            f"example_inputs must be what the model is called with; calling a copy of it raised "
            f"{type(error).__name__}: {error}: pass a tensor or a tuple of arguments"
        ) from error
    storages = {*_storages(output)}
    calls: dict[Call, None] = {}
    for names, known, place, result in listing.calls:
        nearest = next((marks[name] for name in reversed(names) if name in marks), None)
        scaled = nearest is not None and nearest.owner is not None
        calls[Call(names[-1], known, place, scaled, not storages.isdisjoint(_storages(result)))] = None
    outputs = {name for name, result in results if not storages.isdisjoint(_storages(result))}
    channels = {name: x.shape[1] if x.ndim > 1 else 1 for name, x in results if isinstance(x, Tensor)}
    return TrialRun([*calls], outputs, channels)


def _storages(result: Any) -> Iterator[int]:
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            yield leaf.untyped_storage()._cdata
