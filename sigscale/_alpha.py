"""The scale of a module: a number, or parameters that learn it."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ._checks import check_alpha, check_num_parameters


class Scaled(nn.Module):
    """Base of all modules that have an alpha.

    A learned alpha is 2 ** log2_alpha, which is positive whatever the parameter's value; log2_alpha = 1 is
    the paper's alpha = 2, and 0 the plain function, where weight decay pulls it.
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
        """Make alpha this number or, if `learnable`, num_parameters parameters that start there."""
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
        """Let a learned alpha start again where it was told to start."""
        if self.log2_alpha is not None:
            self.log2_alpha.fill_(math.log2(self._alpha))

    @property
    def learnable(self) -> bool:
        """Whether alpha is learned."""
        return self.log2_alpha is not None

    @property
    def num_parameters(self) -> int:
        """How many alphas are learned: one, or one for each channel; 0 if alpha is fixed."""
        return 0 if self.log2_alpha is None else self.log2_alpha.numel()

    @property
    def alpha(self) -> float | Tensor:
        """The scale: a number or, if it is learned, a tensor (num_parameters,) that carries its gradient."""
        if self._parameters.get("log2_alpha", self) is None:  # without nn.Module.__getattr__, which is slow
            return self._alpha
        return torch.exp2(cast(Tensor, self.log2_alpha))

    @alpha.setter
    def alpha(self, alpha: Any) -> None:
        self._alpha = check_alpha(alpha)
        self.reset_alpha()

    def alpha_repr(self) -> str:
        """How `extra_repr` shows alpha; reads a learned one, and so waits for its device."""
        if self.log2_alpha is None:
            return f"alpha={self._alpha!r}"
        if self.log2_alpha.is_meta:
            values = "learnable"
        else:
            low, high = (2.0 ** float(bound) for bound in self.log2_alpha.detach().aminmax())
            values = f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
        size = f", num_parameters={self.num_parameters}" if self.num_parameters > 1 else ""
        return f"alpha={values}, learnable=True{size}"
