"""Models in one line, and what could be left behind in a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Forward(nn.Module):
    """A model of these modules and parameters whose forward is a function of it and the input."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def traces(model: nn.Module) -> list[tuple[Any, ...]]:
    """Modules, their classes, attributes, parameters and hooks, in their order."""
    return [(id(module), type(module), [*map(_kept, vars(module).items())]) for module in model.modules()]


def _kept(attribute: tuple[str, Any]) -> tuple[str, Any]:
    """The attribute as it is now; a list, such as that of a recurrent module's weights, by its length."""
    name, value = attribute
    if isinstance(value, list):
        return name, len(value)
    return name, [*value.items()] if isinstance(value, dict) else value
