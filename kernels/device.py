"""Tensors that are made once: tables and numbers that kernels and their twins need again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

P = ParamSpec("P")
T = TypeVar("T")


def made_once(maxsize: int) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Cache what a function of hashable arguments makes of tensors, for all who will ever use it.

    It is made outside of whatever the first caller is in: inference mode, a default device, fake tensors.
    What is made while a CUDA graph is captured has no values yet, and is not kept.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def plainly(*args: P.args, **kwargs: P.kwargs) -> T:
            with _disable_current_modes(), torch.inference_mode(False), torch.device("cpu"):
                return function(*args, **kwargs)

        @lru_cache(maxsize)
        def cached(stream: int, *args: P.args, **kwargs: P.kwargs) -> T:
            return plainly(*args, **kwargs)

        @wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            stream = 0  # another one might read before what this one copies has arrived
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, torch.device) and argument.type == "cuda":
                    if torch.cuda.is_current_stream_capturing():
                        return plainly(*args, **kwargs)
                    stream = torch.cuda.current_stream(argument).cuda_stream
            return cached(stream, *args, **kwargs)  # type: ignore[arg-type]

        return made

    return decorate
