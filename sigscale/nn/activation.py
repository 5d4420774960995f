"""The modules of `sigscale.nn` that apply an activation, made from the registry of functions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from .._alpha import Scaled
from .._checks import check_save
from ..functional import ActivationFunction, Save, functional
from ..kernels.functions import Function
from ..sketch import QuantileSketch


class Activation(Scaled):
    """Base of the activation modules; see the module of a function, such as `sigscale.nn.Tanh`."""

    activation: ClassVar[ActivationFunction]
    save: Save
    grad_sketch: QuantileSketch | None = None  # set where the gradient is to be measured

    def __init__(
        self,
        alpha: float = 2.0,
        *,
        learnable: bool = False,
        num_parameters: int = 1,
        save: Save = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_save(save, learnable=learnable)
        self.set_alpha(alpha, learnable=learnable, num_parameters=num_parameters, device=device, dtype=dtype)
        self.save = save

    def reset_parameters(self) -> None:
        """Let a learned alpha start again; an alpha that is fixed stays."""
        self.reset_alpha()

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(input, self.alpha, save=self.save, grad_sketch=self.grad_sketch)

    def extra_repr(self) -> str:
        return self.alpha_repr() + (f", save={self.save!r}" if self.save else "")


if TYPE_CHECKING:  # made from the registry by module()

    class Tanh(Activation): ...

    class Sigmoid(Activation): ...

    class Arctan(Activation): ...

    class Softsign(Activation): ...


DOCSTRING = """Alpha-scaled {f.name} as a module: alpha * f(x / alpha) with f(u) = {f.formula}.

Args:
    alpha: the scale, dimensionless; finite and > 0 (from 2^-36 to 2^36). alpha = 1 is {f.name} itself.
    learnable: whether alpha is learned, from there on. The parameter is `log2_alpha`, of which alpha is the
        power of two, so that it stays positive; at 0 alpha is 1, which is where weight decay pulls it.
    num_parameters: of an alpha that learns: 1, for all of x, or the number of channels, dimension 1 of the
        input, as in `torch.nn.PReLU`.
    save: what the backward pass keeps, "input" or "output"; see `sigscale.{f.name}`.
    device, dtype: of the parameter.

Shape:
    Any, and the same out. Real dtypes, as `sigscale.{f.name}`. With a fixed alpha the module has no
    parameters and no state; with a learned one `alpha` is a tensor (num_parameters,).

Raises:
    TypeError, ValueError: as `sigscale.{f.name}`.

Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

Example:
    >>> import torch, sigscale as ss
    >>> ss.nn.{name}(alpha=1.5)
    {name}(alpha=1.5)
    >>> ss.nn.{name}(learnable=True, num_parameters=64)
    {name}(alpha=2, learnable=True, num_parameters=64)
"""


@cache
def module(function: Function) -> type[Activation]:
    """The module class for an entry of the registry."""
    name = class_name(function.name)
    members = {
        "activation": staticmethod(functional(function)),
        "__doc__": DOCSTRING.format(f=function, name=name),
        "__module__": __name__.rpartition(".")[0],
    }
    return type(name, (Activation,), members)


def class_name(function_name: str) -> str:
    return "".join(part.capitalize() for part in function_name.split("_"))


def check_free(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise ValueError if a sketch that is not a monitor's counts the gradient of a module's input."""
    for name, module in modules:
        if vars(module).get("grad_sketch") is not None:
            raise ValueError(
                f"the module {name!r} has a grad_sketch of its own, and counts into one sketch at a time: "
                f"set its grad_sketch to None, or leave it out with exclude={name!r}"
            )
