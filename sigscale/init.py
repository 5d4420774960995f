"""The initial parameters of the paper's experiments, in the style of `torch.nn.init`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ._checks import DTYPES, check_real

T = TypeVar("T", nn.Module, Tensor)
LEARNED_ALPHA = "log2_alpha"  # of activation modules; not a weight, so it keeps its value


def large_uniform_(module_or_tensor: T, bound: float = 10.0, generator: torch.Generator | None = None) -> T:
    """Draw parameters uniformly from [-bound, bound): the large-parameters start, where gradients vanish.

    The interval is half-open in every dtype; numbers that rounding moves out of it are moved back.

    Args:
        module_or_tensor: a tensor, or a module whose parameters are drawn in the order of
            `named_parameters()`. Biases become zero (our choice; the paper does not say); a learned alpha
            keeps its value.
        bound: real number > 0; the paper's is 10.
        generator: source of the numbers; by default that of each tensor's device. Numbers are drawn on the
            generator's device and copied, so a CPU generator gives the same start on every device.

    Returns:
        The argument, changed in place, outside of autograd.

    Raises:
        TypeError: not a module or floating-point tensor, or an argument of the wrong type.
        ValueError: the bound is not > 0 or outside the range of the dtype, or a parameter has no shape yet.
            Nothing has changed then.

    Source: Sections 3.1 and 3.3 of arXiv 2106.02260, Figures 1, 3 and 4.

    Example:
        >>> import torch, sigscale as ss
        >>> layer = ss.init.large_uniform_(torch.nn.Linear(100, 100), generator=torch.Generator())
        >>> bool((-10 <= layer.weight).all() and (layer.weight < 10).all()), layer.bias.any().item()
        (True, False)
    """

    def draw(tensor: Tensor, bound: float) -> None:
        tensor.uniform_(-bound, bound, generator=generator).clamp_(*_ends(bound, tensor.dtype))

    _fill(module_or_tensor, "bound", bound, draw, generator)
    return module_or_tensor


def small_normal_(module_or_tensor: T, std: float = 0.05, generator: torch.Generator | None = None) -> T:
    """Draw parameters from a normal distribution with mean 0: the many-layers start, where gradients vanish.

    Args:
        module_or_tensor, generator: as in `large_uniform_`.
        std: standard deviation, a real number > 0; the paper's is 0.05.

    Returns:
        The argument, changed in place.

    Raises:
        TypeError, ValueError: as in `large_uniform_`.

    Source: Section 3.2 of arXiv 2106.02260, Figure 2.

    Example:
        >>> import torch, sigscale as ss
        >>> weight = ss.init.small_normal_(torch.empty(1000, 1000), generator=torch.Generator())
        >>> round(weight.std().item(), 3)
        0.05
    """
    _fill(
        module_or_tensor,
        "std",
        std,
        lambda tensor, std: tensor.normal_(0.0, std, generator=generator),
        generator,
    )
    return module_or_tensor


@torch.no_grad()
def _fill(
    module_or_tensor: Any,
    name: str,
    size: Any,
    draw: Callable[[Tensor, float], object],
    generator: Any,
) -> None:
    """Draw the weights and zero the biases; if that fails for one, an error, with nothing changed."""
    if isinstance(module_or_tensor, Tensor):
        named = {"the tensor": module_or_tensor}
    elif isinstance(module_or_tensor, nn.Module):
        named = dict(module_or_tensor.named_parameters())
    else:
        raise TypeError(
            f"initial values are for a module or a tensor; got {type(module_or_tensor).__name__}: "
            "pass the model, or one of model.parameters()"
        )
    for key, tensor in named.items():
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{key} has no shape yet: run the model once before it is initialized")
        if tensor.dtype not in DTYPES or tensor.layout is not torch.strided:
            raise TypeError(
                f"{key} must be a dense tensor of a real floating-point type; got dtype {tensor.dtype} and "
                f"layout {tensor.layout}: initialize the others one by one"
            )
    leaves = [(key.rpartition(".")[2], tensor) for key, tensor in named.items()]
    drawn = [(leaf, tensor) for leaf, tensor in leaves if leaf != LEARNED_ALPHA]
    dtypes = {tensor.dtype for leaf, tensor in drawn if "bias" not in leaf}
    number = _checked(name, size, dtypes, generator)
    for leaf, tensor in drawn:
        if "bias" in leaf:
            tensor.zero_()
        elif generator is None or generator.device == tensor.device:
            draw(tensor, number)
        else:
            numbers = torch.empty_like(tensor, device=generator.device)
            draw(numbers, number)
            tensor.copy_(numbers)


def _ends(bound: float, dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest number of this dtype in [-bound, bound)."""
    nearest = torch.tensor(bound, dtype=dtype, device="cpu")
    below = torch.nextafter(nearest, torch.zeros_like(nearest)).item()
    last = nearest.item() if nearest.item() <= bound else below
    return -last, last if last < bound else below


def _checked(name: str, value: Any, dtypes: set[torch.dtype], generator: Any) -> float:
    remedy = "the paper's are 10 and 0.05"
    number = check_real(value, name, "a real number > 0", remedy, low=0, high=math.inf)
    for dtype in sorted(dtypes | {torch.float64}, key=str):
        limits = torch.finfo(dtype)
        if not limits.tiny <= number <= limits.max / 2:
            raise ValueError(
                f"{name} must be > 0 and in the range of what is drawn, from {limits.tiny:.3g} to "
                f"{limits.max / 2:.3g} for {dtype}; got {value!r}: {remedy}"
            )
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(
            f"generator must be a torch.Generator or None; got {type(generator).__name__}: "
            "pass torch.Generator().manual_seed(0)"
        )
    return number
