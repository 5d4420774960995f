"""The alpha-scaled activations as functions: `sigscale.tanh`, `sigmoid`, `arctan`, `softsign`.

They are made from the registry in `sigscale.kernels.functions`; a function registered there appears here.
"""

from __future__ import annotations

import math
from functools import cache
from numbers import Real
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .autograd import activate
from .kernels.functions import FUNCTIONS
from .kernels.registry import Function

Save = Literal["input", "output"] | None

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALPHA_MIN, ALPHA_MAX = 2.0**-36, 2.0**36  # what the kernels form from alpha stays in the range of fp32


class ActivationFunction(Protocol):
    """An alpha-scaled activation."""

    __name__: str

    def __call__(self, x: Tensor, alpha: float = 2.0, *, save: Save = None) -> Tensor: ...


@cache
def functional(function: Function) -> ActivationFunction:
    """The public function for an entry of the registry."""

    def activation(x: Tensor, alpha: float = 2.0, *, save: Save = None) -> Tensor:
        if not isinstance(x, Tensor) and has_torch_function((x,)):
            return handle_torch_function(activation, (x,), x, alpha, save=save)
        if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.layout is not torch.strided or x.is_nested:
            check_input(x, function.name)
        if type(alpha) is not float or not ALPHA_MIN <= alpha <= ALPHA_MAX:
            alpha = check_alpha(alpha)
        if save is not None:
            check_save(save)
        return activate(function, x, alpha, save)

    activation.__name__ = activation.__qualname__ = function.name
    activation.__doc__ = DOCSTRING.format(
        f=function,
        lower=_times_alpha(function.lower),
        upper=_times_alpha(function.upper),
        paper=f' The paper calls it "{function.paper_name}".' if function.paper_name else "",
        at_zero=[2.0 * function.value_at_zero] * 2,
    )
    return activation


DOCSTRING = """Alpha-scaled {f.name}, elementwise: alpha * f(x / alpha) with f(u) = {f.formula}.

Values lie between {lower} and {upper}; the derivative with respect to x is f'(x / alpha), whatever alpha, and
{f.slope_at_zero:g} at 0. alpha = 1 is {f.name} itself.{paper}

Args:
    x: real tensor of any shape and strides; float16, bfloat16, float32 (computed in float32) or float64.
    alpha: the scale, dimensionless; finite and > 0 (from 2^-36 to 2^36).
    save: what the backward pass keeps. "input" gives accurate gradients however far x saturates; "output"
        costs no memory where the next layer keeps it anyway. By default "input" for 16-bit types, whose
        rounded output makes gradients vanish from |x / alpha| = 3.5 on, and "output" else. Has no effect
        under torch.compile, torch.func and create_graph=True, where PyTorch's own derivatives take over.

Returns:
    A tensor of x's shape, dtype, device and memory format.

Raises:
    TypeError: x is not a dense real floating-point tensor, or alpha is not a real number.
    ValueError: alpha is not finite and > 0, or `save` is neither "input" nor "output".

Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

Example:
    >>> import torch, sigscale as ss
    >>> ss.{f.name}(torch.zeros(2), alpha=2.0).tolist()
    {at_zero}
"""


def _times_alpha(bound: float) -> str:
    return "0" if bound == 0 else f"{bound:.4g} alpha".replace("1 alpha", "alpha")


def check_input(x: Any, name: str) -> None:
    """Raise TypeError unless x is a tensor that an activation takes."""
    accepted = "a dense tensor of dtype float16, bfloat16, float32 or float64"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}() takes {accepted}, got {type(x).__name__}: use torch.as_tensor(x)")
    if x.dtype not in DTYPES:
        remedy = (
            "apply it to the real and the imaginary part" if x.is_complex() else "convert it with x.float()"
        )
        if x.is_quantized:
            remedy = "convert it with x.dequantize()"
        raise TypeError(f"{name}() takes {accepted}, got dtype {x.dtype}: {remedy}")
    if x.is_nested:
        raise TypeError(f"{name}() takes {accepted}, got a nested tensor: apply it to x.values()")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}() takes {accepted}, got layout {x.layout}: convert it with x.to_dense()")


def check_alpha(alpha: Any) -> float:
    """alpha as a float; TypeError or ValueError unless it is a real number, finite and > 0."""
    rule = "alpha must be a real number, finite and > 0"
    if isinstance(alpha, Tensor):
        raise TypeError(f"{rule}; got a tensor of shape {tuple(alpha.shape)}: pass alpha.item()")
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"{rule}; got {alpha!r} of type {type(alpha).__name__}: pass a float such as 2.0")
    try:
        value = float(alpha)
    except OverflowError:
        value = math.inf
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{rule}; got {alpha!r}: the paper's choice is 2.0, and 1.0 leaves f as it is")
    if not ALPHA_MIN <= value <= ALPHA_MAX:
        raise ValueError(
            "alpha must lie between 2^-36 and 2^36, so that x / alpha stays in the range of float32; "
            f"got {alpha!r}: rescale the layer's weights instead"
        )
    return value


def check_save(save: Any) -> None:
    """Raise ValueError unless `save` is a choice of what the backward pass keeps."""
    if save is not None and not (isinstance(save, str) and save in ("input", "output")):
        raise ValueError(f'save must be "input", "output" or None (chosen by dtype); got {save!r}')


def __getattr__(name: str) -> ActivationFunction:
    if name in FUNCTIONS:
        return functional(FUNCTIONS[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *FUNCTIONS})
