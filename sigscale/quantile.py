"""`quantile`, `nanquantile`, `foreach_quantile`: exact, of any number of values, without sorting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ._checks import (
    Quantiles,
    check_input,
    check_interpolation,
    check_one_dimensional,
    check_quantiles,
    is_plain,
)
from .kernels import device as devices
from .kernels import multi_tensor, select
from .kernels.device import made_once, to_device
from .kernels.select import RANKS

Interpolation = Literal["linear", "lower", "higher", "midpoint", "nearest"]
LONG_ROW = 1 << 16  # rows of this many values or more are not sorted
SMALL = 1 << 16  # tensors of up to this many values share a launch
MANY = 6  # selections that take as long as a sort
EXACT_FLOAT32 = 1 << 24  # integers up to here are exact in float32


def quantile(
    x: Tensor,
    q: Quantiles,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: Interpolation = "linear",
    nan_policy: Literal["propagate", "omit"] = "propagate",
) -> Tensor:
    """The q-th quantiles of x, exactly: what `torch.quantile` returns, without its limits.

    Among n values in ascending order, the quantile q has the rank h = q (n - 1), computed as in the installed
    PyTorch; if h is not an integer, `interpolation` chooses between the values of rank floor(h) and ceil(h).
    Takes all float types (16-bit ones as `torch.quantile(x.float(), q)`, rounded) and more than 2^24 values.
    Over all values it does not sort or wait for a GPU, and can be captured in a CUDA graph; along a dimension
    it sorts, unless rows are long. Differentiable, then by sorting. On a GPU, tensors from 32 MiB on need
    temporary memory for a third of their size.

    Args:
        x: real tensor of any shape and strides; float16, bfloat16, float32 or float64.
        q: number from 0 to 1, or a sequence or 1-d tensor of them.
        dim: the dimension to reduce; by default all.
        keepdim: keep reduced dimensions, with size 1.
        interpolation: "linear", "lower", "higher", "midpoint" or "nearest" (ties to the even rank).
        nan_policy: "propagate": NaN wherever there is a NaN; "omit": ignore NaN, as `torch.nanquantile`; NaN
            if there is nothing else.

    Returns:
        Tensor of x's dtype and device; if q has a dimension, it comes first.

    Raises:
        TypeError: x is not a dense real floating-point tensor, or q is not made of numbers.
        ValueError: q is not from 0 to 1, the dimension to reduce is empty, or an option is unknown.
        IndexError: x has no such dim.

    Source: radix selection over the bits of the values; semantics of `torch.quantile` and `numpy.quantile`.

    Example:
        >>> import torch, sigscale as ss
        >>> ss.quantile(torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0]), [0.25, 0.5]).tolist()
        [1.0, 3.0]
    """
    check_input(x, "quantile")
    devices.check_supported(x.device, "quantile()")
    numbers, shape = check_quantiles(q)
    check_interpolation(interpolation, nan_policy)
    check_one_dimensional(shape)
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, Integral)):
        raise TypeError(f"dim must be an int or None (all); got {dim!r}: flatten the dimensions to reduce")
    size = x.numel() if dim is None else (x if x.dim() else x.view(1)).size(dim)
    if size == 0:
        raise ValueError(
            f"quantile() needs values; got shape {tuple(x.shape)} with dim={dim}, which has none: reduce a "
            "dimension that is not empty"
        )
    wanted = Wanted(numbers, interpolation, nan_policy == "omit")
    if dim is None:
        result = _of_all(x, wanted)
        result = result.view(-1, *[1] * x.dim()) if keepdim else result
    else:
        result = _of_rows(x.movedim(dim, -1) if x.dim() else x.view(1), wanted)
        result = result.unsqueeze(1 + dim % x.dim()) if keepdim and x.dim() else result
    return result if shape else result.squeeze(0)


def nanquantile(
    x: Tensor,
    q: Quantiles,
    dim: int | None = None,
    keepdim: bool = False,
    *,
    interpolation: Interpolation = "linear",
) -> Tensor:
    """The q-th quantiles of the values of x other than NaN; see `quantile`.

    Example:
        >>> import torch, sigscale as ss
        >>> ss.nanquantile(torch.tensor([3.0, float("nan"), 1.0]), 0.5).item()
        2.0
    """
    return quantile(x, q, dim, keepdim, interpolation=interpolation, nan_policy="omit")


def foreach_quantile(
    tensors: Iterable[Tensor], q: Quantiles, *, interpolation: Interpolation = "linear"
) -> list[Tensor]:
    """[quantile(x, q, interpolation=interpolation) for x in tensors], on a GPU in one launch for each dtype.

    For the gradients of all parameters of a network: tensors of up to 2^16 values share a launch, larger ones
    follow one by one. Not differentiable.

    Example:
        >>> import torch, sigscale as ss
        >>> [median.item() for median in ss.foreach_quantile([torch.ones(3), torch.arange(5.0)], 0.5)]
        [1.0, 2.0]
    """
    numbers, shape = check_quantiles(q)
    check_interpolation(interpolation, "propagate")
    check_one_dimensional(shape)
    if isinstance(tensors, (Mapping, str)) or not isinstance(tensors, Iterable):
        remedy = "pass its values()" if isinstance(tensors, Mapping) else "pass a list, or use quantile(x, q)"
        raise TypeError(
            f"foreach_quantile() takes a sequence of tensors, got {type(tensors).__name__}: {remedy}"
        )
    tensors = [*tensors]
    for place, x in enumerate(tensors):
        check_input(x, f"tensors[{place}]: foreach_quantile")
        devices.check_supported(x.device, f"tensors[{place}]: foreach_quantile()")
        if x.numel() == 0:
            raise ValueError(
                f"tensors[{place}]: foreach_quantile() needs values, got shape {tuple(x.shape)}: leave it out"
            )
    wanted = Wanted(numbers, interpolation, False)
    small = [place for place, x in enumerate(tensors) if x.numel() <= SMALL and is_plain(x)]
    results = {}
    for group, members in multi_tensor.by_kind([tensors[place] for place in small]):
        of_each = _of_each if devices.takes_kernel(group[0]) else _of_each_on_cpu
        for member, quantiles in zip(members, of_each(group, wanted), strict=True):
            results[small[member]] = quantiles.view(shape)
    for place, x in enumerate(tensors):
        if place not in results:
            results[place] = quantile(x.detach(), numbers, interpolation=interpolation).view(shape)
    return [results[place] for place in range(len(tensors))]


class Wanted(NamedTuple):
    """The quantiles to compute, and by which rules."""

    numbers: tuple[float, ...]
    interpolation: Interpolation
    omit_nan: bool


class Positions(NamedTuple):
    """Where quantiles lie among ascending values: two ranks, and the weight of the second."""

    below: Tensor  # int64 (..., k)
    above: Tensor  # equals `below` without interpolation
    weight: Tensor | None  # of the value above; None without interpolation


def _of_all(x: Tensor, wanted: Wanted) -> Tensor:
    """The quantiles (k,) of all values of x."""
    if not is_plain(x) or (x.requires_grad and torch.is_grad_enabled()):
        return _by_sorting(x.reshape(-1), wanted)
    each = RANKS // 2 if wanted.interpolation in ("linear", "midpoint") else RANKS
    if len(wanted.numbers) > MANY * each:
        return _by_sorting(x.detach().reshape(-1), wanted)
    if not devices.takes_kernel(x):
        each = MANY * each
    parts = [_by_selection(x.detach(), part) for part in _parts(wanted, each)]
    return parts[0] if len(parts) == 1 else torch.cat([x.new_empty(0), *parts])


def _parts(wanted: Wanted, most: int) -> Iterator[Wanted]:
    """The quantiles wanted, at most so many at a time."""
    for first in range(0, len(wanted.numbers), most):
        yield wanted._replace(numbers=wanted.numbers[first : first + most])


def _of_rows(x: Tensor, wanted: Wanted) -> Tensor:
    """The quantiles (k, ...) of each row of x (..., n)."""
    long = x.shape[-1] >= LONG_ROW and is_plain(x) and not (x.requires_grad and torch.is_grad_enabled())
    if not (long or x.numel() == x.shape[-1]):
        return _by_sorting(x, wanted)
    rows = x.reshape(-1, x.shape[-1])
    quantiles = torch.stack([_of_all(row, wanted) for row in rows], 1) if len(rows) else x.new_empty(0)
    return quantiles.view(len(wanted.numbers), *x.shape[:-1])


def _by_selection(x: Tensor, wanted: Wanted) -> Tensor:
    n = x.numel()
    rank_dtype = _rank_dtype(x.dtype, n)
    numbers = _numbers(wanted.numbers, x.dtype, rank_dtype, x.device)
    selection = select.Selection(x, numbers)
    if wanted.omit_nan:
        ranks, weight = _ranks(_positions(numbers, wanted.interpolation, selection.valid, x.dtype))
    else:
        ranks, weight = _constant_ranks(wanted, n, x.dtype, rank_dtype, x.device)
    values = selection.order_statistics(ranks)
    k = len(wanted.numbers)
    result = _between(values[:k], values[-k:], weight)
    return result if wanted.omit_nan else result.masked_fill(selection.nans > 0, torch.nan)


def _of_each(tensors: Sequence[Tensor], wanted: Wanted) -> Tensor:
    """The quantiles (tensors, k) of small tensors of one dtype and alignment, on a device with kernels."""
    dtype, device = tensors[0].dtype, tensors[0].device
    sizes = tuple(x.numel() for x in tensors)
    parts = [
        select.quantiles_of_many(tensors, *_positions_of_each(part, sizes, dtype, device))
        for part in _parts(wanted, select.QUANTILES)
    ]
    return parts[0] if len(parts) == 1 else torch.cat([tensors[0].new_empty(len(tensors), 0), *parts], 1)


def _of_each_on_cpu(tensors: Sequence[Tensor], wanted: Wanted) -> Tensor:
    """The quantiles (tensors, k) of small tensors of one dtype, which NumPy sorts faster than PyTorch."""
    dtype = tensors[0].dtype
    ordered = torch.cat([x.as_strided((x.numel(),), (1,)) for x in tensors]).to(_computed(dtype))
    array, end = ordered.numpy(), 0
    sizes = tuple(x.numel() for x in tensors)
    for size in sizes:
        array[end : end + size].sort()  # NaN last
        end += size
    between, weight = _positions_of_each(wanted, sizes, dtype, ordered.device)
    ends = multi_tensor.sizes(sizes, ordered.device).cumsum(0)
    starts = ends.roll(1)
    starts[0] = 0
    below, above = ordered[starts.view(-1, 1, 1) + between].to(dtype).unbind(-1)
    return _between(below, above, weight).masked_fill(ordered[ends - 1].isnan().unsqueeze(-1), torch.nan)


@made_once(64)
def _positions_of_each(
    wanted: Wanted, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """The ranks (tensors, k, 2) of the values between which quantiles lie, and the weight of the second."""
    numbers = torch.tensor(wanted.numbers, dtype=_computed(dtype)).to(_rank_dtype(dtype, SMALL))
    below, above, weight = _positions(numbers, wanted.interpolation, torch.tensor(sizes).unsqueeze(-1), dtype)
    return to_device(torch.stack([below, above], -1), device), (
        None if weight is None else to_device(weight, device)
    )


def _by_sorting(x: Tensor, wanted: Wanted) -> Tensor:
    ordered = x.sort(dim=-1).values  # NaN last
    nans = x.isnan().sum(-1, keepdim=True)
    n = x.shape[-1]
    valid = n - nans if wanted.omit_nan else n
    rank_dtype = _rank_dtype(x.dtype, n)
    if is_plain(x):
        numbers = _numbers(wanted.numbers, x.dtype, rank_dtype, x.device)
    else:  # as x may be a fake tensor
        numbers = torch.tensor(wanted.numbers, dtype=_computed(x.dtype), device=x.device).to(rank_dtype)
    positions = _positions(numbers, wanted.interpolation, valid, x.dtype)
    shape = (*x.shape[:-1], len(wanted.numbers))
    below = ordered.gather(-1, positions.below.expand(shape))
    result = _between(below, ordered.gather(-1, positions.above.expand(shape)), positions.weight)
    result = result if wanted.omit_nan else result.masked_fill(nans > 0, torch.nan)
    return result.movedim(-1, 0)


def _positions(
    numbers: Tensor, interpolation: Interpolation, n: Tensor | int, dtype: torch.dtype
) -> Positions:
    """Positions among n values, in the arithmetic of torch.quantile; n may have the shape (..., 1)."""
    rank = numbers * (n - 1)
    if isinstance(n, Tensor):
        rank = rank.clamp(min=0)
    rounding = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}
    if interpolation in rounding:
        below = rounding[interpolation](rank).long()
        return Positions(below, below, None)
    below = rank.floor()
    weight = torch.full_like(rank, 0.5) if interpolation == "midpoint" else rank - below
    return Positions(below.long(), rank.ceil().long(), weight.to(_computed(dtype)))


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values are interpolated."""
    return torch.float32 if dtype.itemsize == 2 else dtype


def _ranks(positions: Positions) -> tuple[Tensor, Tensor | None]:
    """The ranks wanted, those below before those above, and the weight of the values above."""
    ranks = positions.below if positions.weight is None else torch.cat([positions.below, positions.above])
    return ranks, positions.weight


@made_once(256)
def _constant_ranks(
    wanted: Wanted, n: int, dtype: torch.dtype, rank_dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    numbers = _numbers(wanted.numbers, dtype, rank_dtype, device)
    return _ranks(_positions(numbers, wanted.interpolation, n, dtype))


@made_once(256)
def _numbers(
    numbers: tuple[float, ...], dtype: torch.dtype, rank_dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The numbers rounded as by torch.quantile; copied to the device only once."""
    return to_device(torch.tensor(numbers, dtype=_computed(dtype)).to(rank_dtype), device)


def _between(below: Tensor, above: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return below
    if below.dtype.itemsize == 2:
        return below.float().lerp(above.float(), weight).to(below.dtype)
    return below.lerp(above, weight)


def _rank_dtype(dtype: torch.dtype, n: int) -> torch.dtype:
    """The dtype in which ranks are computed: float64, unless the installed PyTorch uses float32."""
    if dtype == torch.float64 or n > EXACT_FLOAT32 or _ranks_in_float64():
        return torch.float64
    return torch.float32


@made_once(1)
def _ranks_in_float64() -> bool:
    """Whether torch.quantile computes ranks of float32 tensors in float64, as PyTorch 2.15 does."""
    step = torch.cat([torch.zeros(300, dtype=torch.float32), torch.ones(700, dtype=torch.float32)])
    fraction = torch.tensor(0.3, dtype=torch.float32).double() * 999 - 299  # of the rank 299.7, and the value
    return bool(torch.quantile(step, 0.3) == fraction.float())
