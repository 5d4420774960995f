"""What an entry of the registry of functions holds, and the registry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Function:
    """A sigmoid-type function f: its device math, its plain-PyTorch math and facts about it.

    `value`, `slope` and `slope_from_output` are device functions of (x or y, alpha, 1 / alpha, DTYPE) that
    give alpha f(x / alpha), f'(x / alpha) from x, and f'(x / alpha) from y = alpha f(x / alpha).
    `alpha_slope` is the derivative with respect to alpha, f(u) - u f'(u) at u = x / alpha, in fp32, for
    functions where that difference of value and slope cancels.

    In PyTorch, `torch_value(u)` is f(u) and `torch_gradient_of_value(g, t)` is g f'(u) from t = f(u), both
    differentiable and out of place. `torch_slope(u)` is f'(u); it owns u and may overwrite it, and so may
    `torch_value_`, which is torch_value where that is faster in place.
    `value_reach` (of -u) and `slope_reach` (of abs(u)) say how far their fp32 results are as accurate as the
    package promises; beyond, they are corrected or evaluated in fp64, f(u) by `torch_tail(u)` if torch_value
    underflows too early. Where alpha f(u) suffers too much from the rounding of u,
    `torch_scaled_value(x, alpha)` gives alpha f(x / alpha), of 16-bit x in fp32; where f(u) - u f'(u) cancels
    or is slow, `torch_alpha_slope(u, f'(u))` gives that in fp32. `torch_by_table` says that looking up the
    result of a 16-bit value is faster than computing it.

    `torch_aliases` are names that PyTorch has for f besides `name`.
    """

    name: str
    formula: str
    value: Any
    slope: Any
    slope_from_output: Any
    torch_value: Callable[[Tensor], Tensor]
    torch_slope: Callable[[Tensor], Tensor]
    torch_gradient_of_value: Callable[[Tensor, Tensor], Tensor]
    lower: float
    upper: float
    value_at_zero: float
    slope_at_zero: float
    symmetry: str
    alpha_slope: Any = None
    torch_value_: Callable[[Tensor], Tensor] | None = None
    torch_alpha_slope: Callable[[Tensor, Tensor], Tensor] | None = None
    torch_scaled_value: Callable[[Tensor, float | Tensor], Tensor] | None = None
    torch_tail: Callable[[Tensor], Tensor] | None = None
    torch_by_table: bool = False
    value_reach: float = math.inf
    slope_reach: float = math.inf
    paper_name: str = ""
    torch_aliases: tuple[str, ...] = ()


class Registry(Mapping[str, Function]):
    """The functions by name, in the order in which they were registered."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def register(self, function: Function) -> Function:
        """Add a function under its name, which must be a new Python identifier."""
        name = function.name
        if not name.isidentifier() or name in self._functions:
            raise ValueError(
                f"cannot register {name!r}: the name must be an identifier that is not yet taken"
            )
        self._functions[name] = function
        return function

    def unregister(self, name: str) -> None:
        del self._functions[name]

    def __getitem__(self, name: str) -> Function:
        try:
            return self._functions[name]
        except (KeyError, TypeError):
            known = ", ".join(self._functions)
            raise ValueError(f"unknown function {name!r}: choose one of {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)
