"""Names of modules and parameters, without wrappers, and patterns that select by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

# Wrappers hold the wrapped model under one of these names, which no other module uses.
WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}
WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)  # hold it under the name "module"


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Like module.named_modules(), without wrappers and their names."""
    seen: set[nn.Module] = set()
    waiting = [("", module)]
    while waiting:
        prefix, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        children = module._modules
        inner = _wrapped(module) if children else None
        if inner is None:
            yield prefix, module
        dotted = f"{prefix}." if prefix else ""
        for name, child in reversed([*children.items()]):
            if child is not None:
                waiting.append((prefix if name == inner else dotted + name, child))


def named_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Like module.named_parameters(), without the names of wrappers; shared parameters appear once."""
    seen: set[nn.Parameter] = set()
    for prefix, owner in named_modules(module):
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter not in seen:
                seen.add(parameter)
                yield f"{prefix}.{name}" if prefix else name, parameter


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The wrappers around the model, outermost first, and then the model itself."""
    yield model
    inner = _wrapped(model)
    if inner is not None:
        yield from wrappers(getattr(model, inner))


def _wrapped(module: nn.Module) -> str | None:
    """The attribute under which a wrapper holds its model; None for other modules."""
    children = module._modules
    for name in WRAPPED:
        if name in children:
            return name
    return "module" if "module" in children and isinstance(module, WRAPPERS) else None


def check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module; got {type(model).__name__}: pass the model itself, "
            "not its parameters or its name"
        )


class Selection:
    """Names that match a pattern of `include`, if there is one, and none of `exclude`."""

    def __init__(self, include: str | Iterable[str], exclude: str | Iterable[str]) -> None:
        self.include, self.exclude = _patterns(include, "include"), _patterns(exclude, "exclude")

    def __contains__(self, name: str) -> bool:
        return self.includes(name) and not self.excludes(name)

    def includes(self, name: str) -> bool:
        return not self.include or any(_matches(name, pattern) for pattern in self.include)

    def excludes(self, name: str) -> bool:
        return any(_matches(name, pattern) for pattern in self.exclude)

    def check(self, names: Iterable[str], things: str) -> None:
        """Raise ValueError if a pattern matches none of the names of `things`."""
        names = list(names)
        for argument, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(_matches(name, pattern) for name in names):
                    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "none"
                    raise ValueError(
                        f"{argument} must match names of {things}; got {pattern!r}, which matches none of "
                        f"{shown}: patterns match whole names, not classes, and * matches any characters: "
                        "'encoder.*' selects all of encoder"
                    )


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern matches a name, or equals it, as 'gate[0]' may."""
    return name == pattern or fnmatchcase(name, pattern)


def _patterns(patterns: str | Iterable[str], argument: str) -> tuple[str, ...]:
    alone = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    found: tuple[Any, ...] = (patterns,) if alone else tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument} must be a pattern or a sequence of patterns; got {pattern!r} of type "
                f'{type(pattern).__name__}: pass names such as "encoder.*"'
            )
    return found
