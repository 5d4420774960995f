"""Calls such as torch.tanh(x) in the forward methods of a model, found in their bytecode.

Nothing is run and nothing traced, so that a look is cheap and without effects. It follows the class's other
methods and plain functions by name; what it finds in branches that are not taken counts as well.
"""

from __future__ import annotations

import dis
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from torch import nn

from ..kernels.functions import Function
from .report import Entry

UNKNOWN, ITSELF = object(), object()


class Calls:
    """Looks for uses of functions, which are PyTorch's or names of methods of a tensor."""

    def __init__(self, functions: dict[Any, Function]) -> None:
        self.functions = functions

    def within(self, modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[Entry, Function]]:
        """What the modules call themselves: an entry for each place in the code, named by its modules."""
        names: dict[type[nn.Module], list[str]] = {}
        for name, module in modules:
            names.setdefault(type(module), []).append(name or type(module).__name__)
            for attribute, value in vars(module).items():
                if callable(value) and (function := self._known(value)):
                    yield Entry(name, called(value), note=f"its attribute {attribute!r}"), function
        for kind, its_names in names.items():
            more = f" and {len(its_names) - 1} more" if len(its_names) > 1 else ""
            for call, place, function in self.of(kind):
                yield Entry(its_names[0] + more, call, note=place), function

    def of(self, kind: type[nn.Module]) -> Iterator[tuple[str, str, Function]]:
        """What the forward method of a class and all that it calls use, and where in the code."""
        waiting: list[Any] = [getattr(kind, "forward", None)]  # none where scripted
        looked_at: set[CodeType] = set()
        while waiting:
            method = waiting.pop()
            if not isinstance(method, FunctionType) or method.__code__ in looked_at or _is_known(method):
                continue
            looked_at.add(method.__code__)
            for code in _nested(method.__code__):
                yield from self._uses(code, method)
                for name in code.co_names:
                    waiting += (getattr(kind, name, None), method.__globals__.get(name))

    def _uses(self, code: CodeType, method: FunctionType) -> Iterator[tuple[str, str, Function]]:
        lines, line = dict(dis.findlinestarts(code)), code.co_firstlineno
        loaded: Any = UNKNOWN  # last, as far as it is known: a module of Python, a function, the nn.Module
        for instruction in dis.get_instructions(code):
            line, name = lines.get(instruction.offset) or line, instruction.argval
            found: Any = None
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                loaded = found = method.__globals__.get(name, UNKNOWN)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                if isinstance(loaded, ModuleType):
                    loaded = found = getattr(loaded, name, UNKNOWN)
                else:
                    found = None if loaded is ITSELF else name
                    loaded = UNKNOWN
            elif instruction.opname != "PUSH_NULL":
                top = name[-1:] if isinstance(name, tuple) else (name,)
                loaded = ITSELF if instruction.opname.startswith("LOAD_") and top == ("self",) else UNKNOWN
            attribute = instruction.opname in ("LOAD_ATTR", "LOAD_METHOD")
            if (callable(found) or attribute) and (function := self._known(found)):
                place = f"{method.__qualname__}, {Path(code.co_filename).name}:{line}"
                yield called(found), place, function

    def _known(self, value: Any) -> Function | None:
        try:
            return self.functions.get(value)
        except TypeError:  # not hashable
            return None


def _is_known(method: FunctionType) -> bool:
    """Whether it belongs to PyTorch or to sigscale, whose modules are known."""
    return method.__module__.partition(".")[0] in ("torch", "sigscale")


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def called(function: Any) -> str:
    """A function of PyTorch, or a tensor's method by its name, as one writes it."""
    if isinstance(function, str):
        return f"Tensor.{function}"
    module = getattr(function, "__module__", None)
    return f"{'F' if module == 'torch.nn.functional' else 'torch'}.{function.__name__}"
