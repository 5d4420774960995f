"""What `scale_activations` is about to do to a model, checked before anything is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import nn as scaled_nn
from .._alpha import Scaled
from .._names import Selection, named_modules, wrappers
from .calls import Calls
from .gates import suspicions
from .pairs import become_scaled, is_gate, pairs, torch_functions
from .report import Entry
from .survey import Found, cells, places, survey
from .tracing import Call, Trace, calls_in, traced, with_modules

FREE = "not selected"


@dataclass(frozen=True)
class Plan:
    """The modules and, with functional=True, the calls in `trace` that are to be scaled; what is not.

    `overlooked` are those calls no module computes that scaling is meant for: not sigmoids, often gates.
    """

    selection: Selection
    modules: list[Found]
    calls: dict[str, Call]
    trace: Trace | None
    left: tuple[Entry, ...]
    unseen: tuple[Entry, ...]
    overlooked: tuple[Entry, ...]

    @classmethod
    def of(cls, model: nn.Module, selection: Selection, subclasses: bool, functional: bool) -> Plan:
        """Look at a model; ValueError if there is nothing to scale, or something is scaled already."""
        found = [*survey(model, subclasses=subclasses)]
        trace, calls, modules_found = None, {}, {f.module for f in found}
        others = [(name, m) for name, m in named_modules(model) if m not in modules_found]
        if functional:
            trace = traced(_without_wrapper(model))
            calls = dict(calls_in(model, trace.graph, torch_functions()))
            others = trace.whole(others)
        uses = [*Calls(torch_functions()).within(others)]
        refused = {name: call for name, call in calls.items() if call.refusal}
        unseen = [entry for entry, _ in uses]
        unseen += [Entry(name, call.called, note=call.refusal) for name, call in refused.items()]
        unseen += [Entry(name, type(cell).__name__, note="computes it inside") for name, cell in cells(model)]
        names = [*(f.name for f in found), *(name for name in calls if name not in refused)]
        if names:
            selection.check(names, "activations")
        modules = [f for f in found if f.name in selection and not f.refusal]
        chosen = {name: call for name, call in calls.items() if name in selection and name not in refused}
        left = [
            Entry(f.name, f.what, note=f.refusal or FREE)
            for f in found
            if f.refusal or f.name not in selection
        ]
        left += [Entry(n, c.called, note=FREE) for n, c in calls.items() if n not in {**refused, **chosen}]
        _check_unscaled([f for f in found if f.name in selection and isinstance(f.module, Scaled)])
        if not (modules or chosen):
            raise ValueError(_nothing(left, unseen, functional))
        overlooked = tuple(entry for entry, function in uses if function.lower < 0)
        return cls(selection, modules, chosen, trace, tuple(left), tuple(unseen), overlooked)

    def doubtful(self, model: nn.Module) -> dict[str, str]:
        """Why a sigmoid that is to be scaled looks like one that should not be."""
        sigmoids = [f.name for f in self.modules if f.scaled and is_gate(f.scaled)]
        sigmoids += [name for name, call in self.calls.items() if call.function.lower == 0]
        nodes = {call.node: name for name, call in self.calls.items()}
        return suspicions([*wrappers(model)][-1], sigmoids, self.trace and self.trace.graph, nodes)

    def changes(self, suffix: str, doubtful: Mapping[str, str]) -> tuple[Entry, ...]:
        """What is to be, with the suffix that tells a module's alpha."""
        changed = [
            Entry(f.name, f.what, f"{f.scaled.__name__}{suffix}", doubtful.get(f.name, ""))
            for f in self.modules
            if f.scaled
        ]
        for name, call in self.calls.items():
            note = "; ".join(part for part in (call.place, doubtful.get(name)) if part)
            kind = scaled_nn.class_name(call.function.name)
            changed.append(Entry(name, call.called, f"{kind}{suffix}", note))
        return tuple(changed)

    def carry_out(self, model: nn.Module, alpha: float, **learning: Any) -> dict[str, Any]:
        """Scale; the model to use and its new parameters."""
        place_of = places(model) if learning["learnable"] else {}
        added: dict[str, Scaled] = {}
        result = model
        if self.calls and self.trace is not None:
            device, dtype = place_of.get(model, (None, None))
            for name, call in self.calls.items():
                layer = scaled_nn.module(call.function)
                added[name] = layer(alpha, **learning, device=device, dtype=dtype)
            result = with_modules(model, self.trace, self.calls, added)
        scaled = [*added.values()]
        for f in self.modules:
            assert f.scaled is not None
            device, dtype = place_of.get(f.module, (None, None))
            scaled.append(become_scaled(f.module, f.scaled, alpha, **learning, device=device, dtype=dtype))
        parameters = tuple(module.log2_alpha for module in scaled if module.log2_alpha is not None)
        return {"model": result, "parameters": parameters}


def _without_wrapper(model: nn.Module) -> nn.Module:
    if len([*wrappers(model)]) > 1:
        raise ValueError(
            f"functional=True gives a traced model, which no wrapper has; got a {type(model).__name__}: pass "
            "the model inside, and wrap the result"
        )
    return model


def _check_unscaled(found: list[Found]) -> None:
    if found:
        raise ValueError(
            "activations must not be scaled twice; got "
            f"{listed(f'{f.name!r}, {f.what}' for f in found)}: undo it with "
            "unscale_activations(model), leave them out with exclude=..., or set their alpha"
        )


def _nothing(left: list[Entry], unseen: list[Entry], functional: bool) -> str:
    """Why there is nothing to scale."""
    known = listed(f"nn.{kind.__name__}" for kind in pairs())
    text = f"the model must have activations to scale, modules {known}; got none"
    if left:
        text += " but " + listed(f"{entry.name!r} ({entry.before}: {entry.note})" for entry in left)
    if unseen:
        text += "; no module computes " + listed(f"{entry.before} ({entry.note})" for entry in unseen)
    return text + ("" if functional else ": functional=True scales calls in forward as well")


def listed(items: Iterable[str]) -> str:
    """The first of some items, for an error."""
    items = [*items]
    return "; ".join(items[:8]) + ("; ..." if len(items) > 8 else "")
