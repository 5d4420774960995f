"""Checks of arguments: each error names the rule, the value received and the remedy."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Iterable
from numbers import Integral, Real
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _get_tracing_state, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from .kernels import device
from .kernels.device import is_supported
from .kernels.math import ALPHA_RANGE
from .kernels.reference_sketch import MANTISSA_BITS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Quantiles = float | Iterable[float] | Tensor
ALPHA_MIN, ALPHA_MAX = ALPHA_RANGE
INTERNAL = (
    contextlib.__file__,
    *(f"{Path(file).parent}{os.sep}" for file in (__file__, device.__file__, torch.__file__)),
)
TINY = math.ulp(0.0)  # the least float > 0


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside sigscale and PyTorch that led here, even through a hook."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INTERNAL):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def line_of_user(caller: Any) -> str:
    """The innermost line outside sigscale and PyTorch that `caller` has led to; "" if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not caller.__code__:
        if not frame.f_code.co_filename.startswith(INTERNAL):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def check_flag(value: Any, name: str) -> None:
    """Raise TypeError unless the value is a bool: a string such as "no" would count as true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {value!r}: pass {name}=True, or leave it out")


def check_input(x: Any, name: str) -> None:
    """Raise TypeError unless x is a tensor that an activation takes."""
    if not isinstance(x, Tensor):
        got, remedy = type(x).__name__, "use torch.as_tensor(x)"
    elif x.dtype not in DTYPES:
        got, remedy = f"dtype {x.dtype}", "convert it with x.float()"
        if x.is_complex():
            remedy = "apply it to the real and the imaginary part"
        elif x.is_quantized:
            remedy = "convert it with x.dequantize()"
    elif x.is_nested:
        got, remedy = "a nested tensor", "apply it to x.values()"
    elif x.layout is not torch.strided:
        got, remedy = f"layout {x.layout}", "convert it with x.to_dense()"
    else:
        return
    accepted = "a dense tensor of dtype float16, bfloat16, float32 or float64"
    raise TypeError(f"{name}() takes {accepted}, got {got}: {remedy}")


def check_example_inputs(inputs: Any, remedy: str) -> tuple[Any, ...] | None:
    """The arguments of a model as a tuple; TypeError unless they are a tensor, a tuple or None."""
    if isinstance(inputs, Tensor):
        return (inputs,)
    if not (inputs is None or isinstance(inputs, tuple)):
        raise TypeError(
            f"example_inputs must be a tensor or a tuple; got {type(inputs).__name__}: pass what the model "
            f"is called with, as in {remedy}"
        )
    return inputs


def check_real(
    value: Any,
    name: str,
    rule: str,
    remedy: str,
    *,
    low: float = TINY,
    high: float = sys.float_info.max,
    wrong_type: type[Exception] = TypeError,
) -> float:
    """The value as a float; an error unless it is a real number, not a bool, from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        kind = f" of type {type(value).__name__}" if wrong_type is TypeError else ""
        raise wrong_type(f"{name} must be {rule}; got {value!r}{kind}: {remedy}")
    try:
        number = float(value)
    except OverflowError:
        number = -math.inf if value < 0 else math.inf
    if not low <= number <= high:
        raise ValueError(f"{name} must be {rule}; got {value!r}: {remedy}")
    return number


def check_integer(
    value: Any, name: str, remedy: str, *, last: int | None = None, wrong_type: type[Exception] = TypeError
) -> int:
    """The value as an int; an error unless it is an integer, not a bool, from 1 to `last` (if given)."""
    text = f"{name} must be an integer from 1 {'on' if last is None else f'to {last}'}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise wrong_type(f"{text}: {remedy}")
    number = int(value)
    if number < 1 or (last is not None and number > last):
        raise ValueError(f"{text}: {remedy}")
    return number


def check_alpha(alpha: Any) -> float:
    """alpha as a float; TypeError or ValueError unless it is a real number, finite and > 0."""
    rule = "a real number, finite and > 0"
    if isinstance(alpha, Tensor):
        raise TypeError(
            f"alpha must be {rule}; got a tensor of shape {tuple(alpha.shape)}: pass alpha.item(), and "
            "learnable=True to learn it"
        )
    value = check_real(alpha, "alpha", rule, "the paper's choice is 2.0, and 1.0 leaves f as it is")
    if not ALPHA_MIN <= value <= ALPHA_MAX:
        raise ValueError(
            "alpha must lie between 2^-36 and 2^36, so that x / alpha stays in the range of float32; "
            f"got {alpha!r}: rescale the layer's weights instead"
        )
    return value


def check_learned_alpha(alpha: Tensor, x: Tensor) -> None:
    """Raise TypeError or ValueError unless x can be scaled by the tensor alpha."""
    if not alpha.is_floating_point():
        raise TypeError(f"alpha must be of a floating-point dtype; got {alpha.dtype}: use alpha.float()")
    if alpha.device != x.device:
        raise ValueError(
            f"alpha must be on the device of x, {x.device}; got {alpha.device}: move it with "
            "alpha.to(x.device), or pass the number alpha.item()"
        )
    channels = x.shape[1] if x.ndim > 1 else 1
    if alpha.numel() != 1 and (alpha.ndim != 1 or alpha.numel() != channels or not channels):
        raise ValueError(
            "alpha must have one element, or one for each of the channels in dimension 1 of x; got shape "
            f"{tuple(alpha.shape)} for x of shape {tuple(x.shape)}: use num_parameters=1"
            + (f" or {channels}" if channels > 1 else "")
        )
    if alpha.is_cpu and _is_concrete(alpha):  # its values can be read without waiting
        worst = alpha.detach().aminmax()
        if not (worst.min.item() >= ALPHA_MIN and worst.max.item() <= ALPHA_MAX):
            raise ValueError(
                "alpha must lie between 2^-36 and 2^36; got a tensor with values from "
                f"{worst.min.item():g} to {worst.max.item():g}: if it was learned, training diverged; lower "
                "its learning rate, or reset it with layer.reset_alpha()"
            )


def check_num_parameters(num_parameters: Any, learnable: bool) -> int:
    """The number of learned alphas; TypeError or ValueError unless it is one, or one for each channel."""
    check_flag(learnable, "learnable")
    number = check_integer(num_parameters, "num_parameters", "pass 1 or the number of channels")
    if number > 1 and not learnable:
        raise ValueError(f"num_parameters={number} is for an alpha that learns: pass learnable=True as well")
    return number


def check_save(save: Any, *, learnable: bool = False) -> None:
    """Raise ValueError unless `save` names what the backward pass can keep."""
    if save is not None and not (isinstance(save, str) and save in ("input", "output")):
        raise ValueError(f'save must be "input", "output" or None (chosen by dtype); got {save!r}')
    if learnable and save == "output":
        raise ValueError(
            'save="output" is not possible with an alpha that learns, since a saturated output does not hold '
            "its gradient: leave save out"
        )


def check_mantissa_bits(bits: Any) -> int:
    """Raise ValueError unless sketches can have so many mantissa bits."""
    if type(bits) is not int or bits not in MANTISSA_BITS:
        raise ValueError(
            f"mantissa_bits must be one of {', '.join(map(str, MANTISSA_BITS))}; got {bits!r}: 3 bounds a "
            "quantile to 12.5 %, each bit more halves that"
        )
    return bits


def check_sketch(sketch: Any) -> None:
    """Raise the TypeError for something other than a QuantileSketch."""
    raise TypeError(
        f"grad_sketch must be a QuantileSketch; got {type(sketch).__name__}: pass sigscale.QuantileSketch()"
    )


def check_quantiles(q: Quantiles) -> tuple[tuple[float, ...], torch.Size]:
    """q as numbers, and its shape; TypeError unless it holds numbers, ValueError unless from 0 to 1."""
    if type(q) is float and 0 <= q <= 1:
        return (q,), torch.Size([])
    values = q.tolist() if isinstance(q, Tensor) else q
    listed = isinstance(values, Iterable) and not isinstance(values, (str, np.ndarray))
    try:
        array = np.asarray(list(values) if listed else values)  # type: ignore[arg-type]
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"q must be a number or a sequence of numbers; got {q!r}: pass 0.5 or [0.25, 0.75]")
    numbers = tuple(array.flatten().tolist())
    for number in numbers:
        if not 0 <= number <= 1:
            raise ValueError(f"q must be from 0 to 1; got {number!r}: the median is 0.5, 5 % is 0.05")
    return numbers, torch.Size(array.shape)


INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")
NAN_POLICIES = ("propagate", "omit")


def check_one_dimensional(shape: torch.Size) -> None:
    """Raise ValueError unless q, of this shape, is a number or a row of them."""
    if len(shape) > 1:
        raise ValueError(f"q must be a number or one-dimensional; got shape {tuple(shape)}: use q.flatten()")


def check_interpolation(interpolation: Any, nan_policy: Any) -> None:
    """Raise ValueError unless both are names that `quantile` knows."""
    for name, value, known in (
        ("interpolation", interpolation, INTERPOLATIONS),
        ("nan_policy", nan_policy, NAN_POLICIES),
    ):
        if not isinstance(value, str) or value not in known:
            raise ValueError(
                f"{name} must be one of {', '.join(known)}; got {value!r}: the default is {known[0]!r}"
            )


def is_exporting() -> bool:
    """As torch.compiler.is_exporting(), which torch 2.11 takes for True in all that torch.compile traces."""
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else flag


PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def is_plain(x: Tensor) -> bool:
    """Whether kernels or twins can take x: plain memory on a supported device, not traced or transformed."""
    return _is_concrete(x) and is_supported(x) and not x.is_neg() and forward_ad._current_level < 0


def _is_concrete(x: Tensor) -> bool:
    """Whether x is a tensor with values, seen by no compiler, tracer, mode or torch.func transform."""
    return (
        not is_compiling()
        and type(x) in PLAIN_TYPES
        and _get_tracing_state() is None
        and not _are_functorch_transforms_active()
        and not _len_torch_dispatch_stack()
    )
