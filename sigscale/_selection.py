"""The arguments of a weight penalty: its factors, and the selection of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import DTYPES, check_real
from ._names import Selection, named_parameters

LEARNED_SCALE = "log2_alpha"  # the name of the parameter in modules whose alpha learns
MAX_FACTOR = torch.finfo(torch.float32).max


def check_factors(l2: Any, l1: Any) -> tuple[float, float]:
    """Both as floats; TypeError unless real numbers, ValueError unless finite, >= 0 and one > 0."""
    rule, remedy = "a real number, finite and >= 0", "the paper's l2 is 0.01, and 0.0 leaves a term out"
    found = tuple(
        check_real(value, name, rule, remedy, low=0.0, high=MAX_FACTOR)
        for name, value in (("l2", l2), ("l1", l1))
    )
    if not any(found):
        raise ValueError(
            f"l2 or l1 must be > 0; got l2={l2!r} and l1={l1!r}: the paper's l2 is 0.01; without a penalty "
            "there is nothing to make"
        )
    return found[0], found[1]


def selected(given: Any, exclude: str | Iterable[str]) -> tuple[Tensor, ...]:
    """The parameters to penalize, each once; TypeError or ValueError if none or unfit ones are left."""
    selection, named = Selection((), exclude), list(_named(given))
    if not named:
        raise ValueError(
            f"model_or_params must have parameters; got none in {type(given).__name__}: a generator such as "
            "model.parameters() is empty once it was used"
        )
    names = [name for name, _ in named if name is not None]
    if selection.exclude and not names:
        raise ValueError(
            f"exclude is of names, and the parameters have none; got {selection.exclude!r}: pass the model, "
            "or model.named_parameters()"
        )
    selection.check(names, "parameters")
    default = {LEARNED_SCALE} if isinstance(given, nn.Module) else set()
    chosen = [
        (name, parameter)
        for name, parameter in named
        if name is None or (name in selection and name.rpartition(".")[2] not in default)
    ]
    if not chosen:
        raise ValueError(
            f"a parameter must be left to penalize; of {len(named)}, exclude={selection.exclude!r} and the "
            f"rule for {LEARNED_SCALE} leave none: exclude less, or pass the parameters themselves"
        )
    for name, parameter in chosen:
        _check_parameter(name, parameter)
    return tuple(dict.fromkeys(parameter for _, parameter in chosen))


def _named(given: Any) -> Iterator[tuple[str | None, Any]]:
    if isinstance(given, nn.Module):
        yield from named_parameters(given)
    elif isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise TypeError(
            "model_or_params must be a torch.nn.Module or an iterable of parameters or of (name, parameter); "
            f"got {type(given).__name__}: pass the model, or a list such as [layer.weight]"
        )
    else:
        for item in given:
            pair = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)
            yield item if pair else (None, item)


def _check_parameter(name: str | None, parameter: Any) -> None:
    rule = "a penalized parameter must be a dense tensor of dtype float16, bfloat16, float32 or float64"
    called = f" for {name}" if name else ""
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{rule}; got {type(parameter).__name__}{called}: pass the parameters themselves")
    if nn.parameter.is_lazy(parameter):
        raise ValueError(f"{rule}; got an uninitialized one{called}: call the model once before")
    if parameter.dtype not in DTYPES or parameter.layout is not torch.strided:
        raise TypeError(
            f"{rule}; got dtype {parameter.dtype} and layout {parameter.layout}{called}: leave it out, "
            "with exclude=... where a model is given"
        )
