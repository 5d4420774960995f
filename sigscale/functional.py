"""The alpha-scaled activations as functions: `sigscale.tanh`, `sigmoid`, `arctan`, `softsign`.

Made from the registry in `sigscale.kernels.functions`: a function registered there appears here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ._autograd import activate
from ._checks import (
    ALPHA_MAX,
    ALPHA_MIN,
    DTYPES,
    check_alpha,
    check_input,
    check_learned_alpha,
    check_save,
    check_sketch,
)
from .kernels.functions import FUNCTIONS, Function
from .sketch import QuantileSketch

Save = Literal["input", "output"] | None


class ActivationFunction(Protocol):
    """An alpha-scaled activation."""

    __name__: str

    def __call__(
        self,
        x: Tensor,
        alpha: float | Tensor = 2.0,
        *,
        save: Save = None,
        grad_sketch: QuantileSketch | None = None,
    ) -> Tensor: ...


@cache
def functional(function: Function) -> ActivationFunction:
    """The public function for an entry of the registry."""

    def activation(
        x: Tensor,
        alpha: float | Tensor = 2.0,
        *,  # what torch.jit.script lacks, as its error shows: use torch.compile, torch.export or jit.trace
        save: Save = None,
        grad_sketch: QuantileSketch | None = None,
    ) -> Tensor:
        if torch._C._is_torch_function_mode_enabled() or (
            not isinstance(x, Tensor) and has_torch_function((x,))
        ):
            return handle_torch_function(activation, (x,), x, alpha, save=save, grad_sketch=grad_sketch)
        if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.layout is not torch.strided or x.is_nested:
            if isinstance(x, Tensor) and x.is_nested and x.dtype in DTYPES:
                return nested(activation, function, x, alpha, save, grad_sketch)
            check_input(x, function.name)
        if isinstance(alpha, Tensor):
            check_learned_alpha(alpha, x)
            check_save(save, learnable=True)
        elif type(alpha) is not float or not ALPHA_MIN <= alpha <= ALPHA_MAX:
            alpha = check_alpha(alpha)
        if save is not None:
            check_save(save)
        if grad_sketch is not None:
            if not isinstance(grad_sketch, QuantileSketch):
                check_sketch(grad_sketch)
            grad_sketch.check_source(x)
        return activate(function, x, alpha, save, grad_sketch)

    activation.__name__ = activation.__qualname__ = function.name
    activation.__doc__ = DOCSTRING.format(
        f=function,
        lower=_times_alpha(function.lower),
        upper=_times_alpha(function.upper),
        paper=f' The paper calls it "{function.paper_name}".' if function.paper_name else "",
        at_zero=[2.0 * function.value_at_zero] * 2,
    )
    return activation


def nested(
    activation: ActivationFunction,
    function: Function,
    x: Tensor,
    alpha: float | Tensor,
    save: Save,
    grad_sketch: QuantileSketch | None,
) -> Tensor:
    """Of a jagged tensor by PyTorch's own operations; of the strided kind, which lacks some, part by part."""
    if isinstance(alpha, Tensor) and alpha.numel() != 1:
        raise ValueError(
            "alpha must have one element for a nested tensor, whose dimension 1 varies; got shape "
            f"{tuple(alpha.shape)}: use num_parameters=1"
        )
    if x.layout is torch.strided:
        parts = [activation(part, alpha, save=save, grad_sketch=grad_sketch) for part in x.unbind()]
        return torch.nested.as_nested_tensor(parts)
    if grad_sketch is not None and torch.compiler.is_compiling():
        raise TypeError(
            f"{function.name}() counts no gradient of a nested tensor under torch.compile: leave grad_sketch "
            "out, or apply it to x.values()"
        )
    alpha = alpha if isinstance(alpha, Tensor) else check_alpha(alpha)
    return activate(function, x, alpha, save, grad_sketch)


DOCSTRING = """Alpha-scaled {f.name}, elementwise: alpha * f(x / alpha) with f(u) = {f.formula}.

Values lie between {lower} and {upper}; the derivative with respect to x is f'(x / alpha), whatever alpha, and
{f.slope_at_zero:g} at 0. alpha = 1 is {f.name} itself.{paper}

Args:
    x: real tensor of any shape and strides; float16, bfloat16, float32 (computed in float32) or float64. A
        nested one, jagged or strided, has one alpha.
    alpha: the scale, dimensionless; finite and > 0 (from 2^-36 to 2^36). A tensor may learn: floating point,
        on x's device, with one element, or one for each channel x[:, i], as in `torch.nn.PReLU`. The same
        pass computes its gradient, the sum of g (f(u) - u f'(u)) with u = x / alpha and g the gradient of y.
        Out of range: an error on CPU; NaN on GPU, because checking would synchronize.
    save: what the backward pass keeps. "input" gives accurate gradients however far x saturates; "output"
        costs no memory where the next layer keeps it anyway. By default "input" for 16-bit types, whose
        rounded output makes gradients vanish from |x / alpha| = 3.5 on, and for a tensor alpha; "output"
        otherwise. In float16 the input is kept wherever the output overflows or is subnormal. A kept input
        must not be overwritten before the backward pass: y = f(x); x += y, which torch.tanh allows, needs
        "output", or x = x + y. torch.compile follows the choice too, and differentiates once, whatever its
        backend. Ignored under torch.func, where PyTorch's own derivatives take over.
    grad_sketch: a `QuantileSketch` to which the backward pass adds the distribution of the gradient with
        respect to x, in the same kernel, until its reset().

Returns:
    A tensor of x's shape, dtype, device and memory format.

Raises:
    TypeError: x is not a dense real floating-point tensor, alpha is not a real number, or grad_sketch not a
        QuantileSketch.
    ValueError: alpha is not finite and > 0, or `save` is neither "input" nor "output".

Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

Example:
    >>> import torch, sigscale as ss
    >>> ss.{f.name}(torch.zeros(2), alpha=2.0).tolist()
    {at_zero}
"""


def _times_alpha(bound: float) -> str:
    return "0" if bound == 0 else f"{bound:.4g} alpha".replace("1 alpha", "alpha")


tanh: ActivationFunction
sigmoid: ActivationFunction
arctan: ActivationFunction
softsign: ActivationFunction

if not TYPE_CHECKING:  # a type checker knows the names above; other functions may be registered

    def __getattr__(name: str) -> ActivationFunction:
        if name in FUNCTIONS:
            return functional(FUNCTIONS[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *FUNCTIONS})
