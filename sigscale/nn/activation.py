"""The activation modules of `sigscale.nn`, made from the registry, and the base of all scaled modules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn

from .._checks import check_alpha, check_num_parameters, check_save
from ..functional import ActivationFunction, Save, functional
from ..kernels.functions import Function
from ..sketch import QuantileSketch


class Scaled(nn.Module):
    """Base of all modules with an alpha, a number or learned.

    A learned alpha is 2 ** log2_alpha, positive for any value of the parameter; log2_alpha = 1 is the paper's
    alpha = 2, and 0, to which weight decay pulls it, the plain function.
    """

    log2_alpha: nn.Parameter | None
    _alpha: float

    def set_alpha(
        self,
        alpha: Any,
        *,
        learnable: bool = False,
        num_parameters: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Set alpha to this number or, if `learnable`, to num_parameters parameters that start there."""
        number, size = check_alpha(alpha), check_num_parameters(num_parameters, learnable)
        self._parameters.pop("log2_alpha", None)
        self._alpha = number
        if learnable:
            self.log2_alpha = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
            self.reset_alpha()
        else:
            self.register_parameter("log2_alpha", None)

    @torch.no_grad()
    def reset_alpha(self) -> None:
        """Reset a learned alpha to its initial value."""
        if self.log2_alpha is not None:
            self.log2_alpha.fill_(math.log2(self._alpha))

    @property
    def learnable(self) -> bool:
        """Whether alpha is learned."""
        return self.log2_alpha is not None

    @property
    def num_parameters(self) -> int:
        """The number of learned alphas: one, or one for each channel; 0 if alpha is fixed."""
        return 0 if self.log2_alpha is None else self.log2_alpha.numel()

    @property
    def alpha(self) -> float | Tensor:
        """The scale: a number or, if learned, a tensor (num_parameters,) with a gradient."""
        if self._parameters.get("log2_alpha", self) is None:  # without nn.Module.__getattr__, which is slow
            return self._alpha
        return 2.0 ** cast(Tensor, self.log2_alpha)

    @alpha.setter
    def alpha(self, alpha: Any) -> None:
        self._alpha = check_alpha(alpha)
        self.reset_alpha()

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script asks every module
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}(alpha=...), whose arguments have types "
            "it lacks: use torch.export.export or torch.jit.trace, or script sigscale.fold(model)"
        )

    def alpha_repr(self) -> str:
        """alpha for `extra_repr`; reading a learned one synchronizes with its device."""
        if self.log2_alpha is None:
            return f"alpha={self._alpha!r}"
        if self.log2_alpha.is_meta:
            values = "learnable"
        else:
            low, high = (2.0 ** float(bound) for bound in self.log2_alpha.detach().aminmax())
            values = f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
        size = f", num_parameters={self.num_parameters}" if self.num_parameters > 1 else ""
        return f"alpha={values}, learnable=True{size}"


class Activation(Scaled):
    """Base of the activation modules, such as `sigscale.nn.Tanh`."""

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
        """Reset a learned alpha; a fixed one stays."""
        self.reset_alpha()

    def forward(self, input: Tensor) -> Tensor:
        return self.activation(input, self.alpha, save=self.save, grad_sketch=self.grad_sketch)

    def extra_repr(self) -> str:
        return self.alpha_repr() + (f", save={self.save!r}" if self.save else "")


DOCSTRING = """Alpha-scaled {f.name} as a module: alpha * f(x / alpha) with f(u) = {f.formula}.

Args:
    alpha: the scale, dimensionless; finite and > 0 (from 2^-36 to 2^36). alpha = 1 is {f.name} itself.
    learnable: learn alpha, starting at this value. The parameter is `log2_alpha`: alpha = 2 ** log2_alpha
        stays positive, and weight decay pulls it to 1.
    num_parameters: number of learned alphas: 1 for all of x, or the number of channels (dimension 1 of the
        input), as in `torch.nn.PReLU`.
    save: what the backward pass keeps, "input" or "output"; see `sigscale.{f.name}`.
    device, dtype: device and dtype of the parameter.

Shape:
    Any; the output has the shape of the input. Real dtypes, as `sigscale.{f.name}`. With a fixed alpha the
    module has no parameters and no state; with a learned one `alpha` is a tensor (num_parameters,).

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
    """Raise ValueError if a monitor's or the user's sketch counts the gradient of a module's input."""
    for name, module in modules:
        if vars(module).get("grad_sketch") is not None:
            raise ValueError(
                f"the module {name!r} has a grad_sketch, and counts into one sketch at a time: close() the "
                "monitor that measures it or, for your own sketch, set the module's grad_sketch to None"
            )
