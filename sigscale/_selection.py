"""Which parameters a weight penalty takes: those that are selected, and among them those with a gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter, is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._checks import DTYPES
from ._names import Selection, named_parameters, wrappers
from ._sharding import is_flattened
from .kernels.penalty import all_dense_on_cpu
from .kernels.reference_penalty import PLAIN

LEARNED_SCALE = "log2_alpha"  # the name of the parameter in modules whose alpha learns
GRADIENT, TRAINED = attrgetter("grad"), attrgetter("requires_grad")


class PenalizedParameters:
    """The parameters to penalize; a model's are looked up at each call, since it may have replaced them."""

    def __init__(self, given: Any, exclude: str | Iterable[str]) -> None:
        self._selection = selection = Selection((), exclude)
        self._model = [*wrappers(given)][-1] if isinstance(given, nn.Module) else None
        named = list(_named(given))
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
        chosen = self._chosen(named)
        if not chosen:
            raise ValueError(
                f"a parameter must be left to penalize; of {len(named)}, exclude={selection.exclude!r} and "
                f"the rule for {LEARNED_SCALE} leave none: exclude less, or pass the parameters themselves"
            )
        self._fixed = chosen if self._model is None else ()

    def __call__(self) -> tuple[Tensor, ...]:
        """All of them, frozen ones too, each once."""
        return self._fixed if self._model is None else self._chosen(named_parameters(self._model))

    def trained(self) -> list[Tensor]:
        """Those that are not frozen; a tensor that functional_call() puts in a parameter's place is not."""
        replaces = self._model is not None
        return [p for p in self() if p.requires_grad or (replaces and not isinstance(p, nn.Parameter))]

    def _chosen(self, named: Iterable[tuple[str | None, Any]]) -> tuple[Tensor, ...]:
        chosen = [(name, parameter) for name, parameter in named if self._is_chosen(name)]
        for name, parameter in chosen:
            _check_parameter(name, parameter)
        return tuple(dict.fromkeys(parameter for _, parameter in chosen))

    def _is_chosen(self, name: str | None) -> bool:
        if name is None:
            return True
        is_alpha = self._model is not None and name.rpartition(".")[2] == LEARNED_SCALE
        return name in self._selection and not is_alpha


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
    """Raise TypeError or ValueError unless the parameter can be penalized."""
    error: type[Exception] = TypeError
    if not isinstance(parameter, Tensor):
        got, remedy = type(parameter).__name__, "pass the parameters themselves"
    elif isinstance(parameter, nn.parameter.UninitializedParameter):
        error, got, remedy = ValueError, "an uninitialized one", "call the model once before"
    elif is_flattened(parameter):
        got = "a shard of FullyShardedDataParallel"
        remedy = "no process sees the whole of it; shard with torch.distributed.fsdp.fully_shard instead"
    elif parameter.dtype not in DTYPES or parameter.layout is not torch.strided:
        got = f"dtype {parameter.dtype} and layout {parameter.layout}"
        remedy = "leave it out, with exclude=... where a model is given"
    else:
        return
    called = f" for {name}" if name else ""
    raise error(
        "a penalized parameter must be a dense tensor of dtype float16, bfloat16, float32 or float64; "
        f"got {got}{called}: {remedy}"
    )


class GroupParameters(NamedTuple):
    """What a parameter group of an optimizer holds: all parameters, the penalized ones, and the others."""

    parameters: list[Tensor]
    penalized: list[Tensor]
    others: list[Tensor]

    @classmethod
    def of(cls, parameters: Iterable[Tensor], members: frozenset[int]) -> GroupParameters:
        parameters = [*parameters]
        mine = [p for p in parameters if id(p) in members]
        return cls(parameters, mine, [p for p in parameters if id(p) not in members])

    def still(self, parameters: list[Tensor]) -> bool:
        return len(parameters) == len(self.parameters) and all(map(is_, parameters, self.parameters))

    def with_gradients(self) -> tuple[list[Tensor], list[Tensor], bool, bool]:
        """The penalized parameters with a gradient and their gradients.

        And whether other parameters have a gradient, and whether all are plain tensors on a CPU.
        """
        others = any(p.grad is not None for p in self.others)
        mine, gradients = self.penalized, [*map(GRADIENT, self.penalized)]
        if (
            mine
            and PLAIN.issuperset(map(type, mine))
            and all_dense_on_cpu(gradients)
            and all(map(TRAINED, mine))
        ):
            return mine, gradients, others, True
        pairs = [(p, g) for p, g in zip(mine, gradients, strict=True) if g is not None]
        trained = [(p, g) for p, g in pairs if p.requires_grad]
        for parameter, gradient in trained:
            if gradient.layout is not torch.strided:
                raise TypeError(
                    f"a weight penalty takes dense gradients; got layout {gradient.layout} for a parameter "
                    f"of shape {tuple(parameter.shape)}: make it with sparse=False, or exclude it"
                )
        others = others or len(trained) < len(pairs)
        return [p for p, _ in trained], [g for _, g in trained], others, False
