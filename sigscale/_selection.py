"""The arguments of a weight penalty: its factors, and the selection of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ._checks import DTYPES, check_real
from ._names import Selection, named_parameters, wrappers
from ._sharding import is_flattened

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


class PenalizedParameters:
    """The parameters to penalize; a model's are looked up at each call, since it may have replaced them."""

    def __init__(self, given: Any, exclude: str | Iterable[str]) -> None:
        selection, named = Selection((), exclude), list(_named(given))
        if not named:
            raise ValueError(
                f"model_or_params must have parameters; got none in {type(given).__name__}: a generator such "
                "as model.parameters() is empty once it was used"
            )
        names = [name for name, _ in named if name is not None]
        if selection.exclude and not names:
            raise ValueError(
                f"exclude is of names, and the parameters have none; got {selection.exclude!r}: pass the "
                "model, or model.named_parameters()"
            )
        selection.check(names, "parameters")
        self._selection = selection
        self._defaults = {LEARNED_SCALE} if isinstance(given, nn.Module) else set[str]()
        chosen = [(name, parameter) for name, parameter in named if self._is_chosen(name)]
        if not chosen:
            raise ValueError(
                f"a parameter must be left to penalize; of {len(named)}, exclude={selection.exclude!r} and "
                f"the rule for {LEARNED_SCALE} leave none: exclude less, or pass the parameters themselves"
            )
        for name, parameter in chosen:
            _check_parameter(name, parameter)
        self._model = [*wrappers(given)][-1] if isinstance(given, nn.Module) else None
        self._fixed = tuple(dict.fromkeys(p for _, p in chosen)) if self._model is None else ()

    def __call__(self) -> tuple[Tensor, ...]:
        """All of them, frozen ones too, each once."""
        if self._model is None:
            return self._fixed
        chosen = [(name, p) for name, p in named_parameters(self._model) if self._is_chosen(name)]
        for name, parameter in chosen:
            _check_parameter(name, parameter)
        return tuple(parameter for _, parameter in chosen)

    def trained(self) -> list[Tensor]:
        """Those that are not frozen; a tensor that functional_call() puts in a parameter's place is not."""
        found = self()
        if self._model is None:
            return [p for p in found if p.requires_grad]
        return [p for p in found if p.requires_grad or not isinstance(p, nn.Parameter)]

    def _is_chosen(self, name: str | None) -> bool:
        return name is None or (name in self._selection and name.rpartition(".")[2] not in self._defaults)


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
    fault = _fault(parameter)
    if fault is None:
        return
    error, got, remedy = fault
    called = f" for {name}" if name else ""
    raise error(
        "a penalized parameter must be a dense tensor of dtype float16, bfloat16, float32 or float64; "
        f"got {got}{called}: {remedy}"
    )


def _fault(parameter: Any) -> tuple[type[Exception], str, str] | None:
    """Why a parameter cannot be penalized: the error, what it is, and the remedy."""
    if not isinstance(parameter, Tensor):
        return TypeError, type(parameter).__name__, "pass the parameters themselves"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return ValueError, "an uninitialized one", "call the model once before"
    if is_flattened(parameter):
        remedy = "no process sees the whole of it; shard with torch.distributed.fsdp.fully_shard instead"
        return TypeError, "a shard of FullyShardedDataParallel", remedy
    if parameter.dtype not in DTYPES or parameter.layout is not torch.strided:
        remedy = "leave it out, with exclude=... where a model is given"
        return TypeError, f"dtype {parameter.dtype} and layout {parameter.layout}", remedy
    return None
