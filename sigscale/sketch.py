"""`QuantileSketch`: the distribution of a tensor's values, small, mergeable and with a guarantee."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ._checks import Quantiles, check_input, check_integer, check_mantissa_bits, check_quantiles, check_real
from ._sharding import own_part
from .kernels import summary
from .kernels.device import check_supported, device_of_backend, is_capturing
from .kernels.reference_sketch import bin_count, zero_bin
from .kernels.sketch import count

FIRST_COUNT = threading.Lock()  # backward passes of several threads may share a sketch


class Histogram(NamedTuple):
    """Counts between ascending edges, as from `numpy.histogram`; edges has one entry more."""

    counts: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]


class QuantileSketch:
    """A histogram over the bit patterns of all values seen: guaranteed quantiles, merges without error.

    A bin holds the values that share sign, exponent and the top `mantissa_bits` of the mantissa, and its
    count is exact. So the bin of an order statistic is known for certain: `bounds(q)` returns its edges, at
    most a factor of 1 + 2^-mantissa_bits apart (below 2^-126, at most 2^(-126-mantissa_bits)). Merging adds
    integers: any order and split of the data, over programs, micro-batches and machines, gives the same bits.

    Nothing waits for the device: counts and results are tensors on it until you read them, as `str()`,
    `to_histogram()` and `int(sketch.count)` do.

    Args:
        mantissa_bits: 2, 3, 4 or 5: 4, 8, 16 or 32 bins an octave; the counts take 16, 32, 64 or 128 KiB.
        device: the device of the counts; by default that of the first tensor counted.

    Raises:
        ValueError: mantissa_bits is none of these.

    Source: bins as in DDSketch (C. Masson, J. Rim, H. Lee, arXiv 1908.10693), with linear subdivision.

    Example:
        >>> import torch, sigscale as ss
        >>> sketch = ss.QuantileSketch().update(torch.tensor([-4.0, -1.0, 0.0, 2.0, 8.0]))
        >>> int(sketch.count), int(sketch.zeros)
        (5, 1)
        >>> [bound.item() for bound in sketch.bounds(0.5, magnitude=True)]  # holds the median, 2
        [2.0, 2.25]
        >>> sketch.below(1.5).item()  # the share of the values with a magnitude below 1.5
        0.4
    """

    counts_copies = False  # of a DTensor's copies, whether each process counts its own
    switch: Tensor | None = None  # of a monitor's: while switch[0] is 0, nothing is counted

    def __init__(self, mantissa_bits: int = 3, *, device: torch.device | str | int | None = None) -> None:
        self.mantissa_bits = check_mantissa_bits(mantissa_bits)
        self._counts = None if device is None else self._zeros(torch.device(device))

    @property
    def counts(self) -> Tensor:
        """The counts, int64 (bins,), in ascending order of the bins' values; the last one counts NaN."""
        if self._counts is None:
            return self._zeros(torch.device("cpu"))
        return self._counts

    @property
    def device(self) -> torch.device | None:
        """The device of the counts; None until something is counted."""
        return None if self._counts is None else self._counts.device

    def update(self, x: Tensor) -> QuantileSketch:
        """Count all values of x: float16, bfloat16, float32 or float64, any shape and strides.

        Of a DTensor each process counts its shard, or what the first of those counts that hold the same, so
        that all_reduce() has each value once.

        Raises:
            TypeError: x is not a dense real floating-point tensor.
            ValueError: x is on another device than earlier tensors, or on one without kernels.
        """
        check_input(x, "update")
        if x.is_meta or torch._C._are_functorch_transforms_active():
            what = "a tensor on the meta device" if x.is_meta else "a tensor under a torch.func transform"
            raise TypeError(
                f"update() takes a tensor with values, got {what}: call it outside, on its values"
            )
        check_supported(x.device, "update()")
        part = own_part(x.detach(), copies=self.counts_copies)
        if part is not None:
            counts = self.counts_on(part.device)
            if part.numel():
                count(counts, part.resolve_neg(), self.mantissa_bits, self.switch)
        return self

    def check_source(self, x: Tensor) -> None:
        """Raise an error if the gradient of x is not to be counted here."""

    def counts_on(self, device: torch.device) -> Tensor:
        """The counts, for a kernel on `device` to add to."""
        if self._counts is None:
            if is_capturing(device):
                raise RuntimeError(
                    "a QuantileSketch without a device was first used while capturing a CUDA graph, whose "
                    f"replays would clear its counts: make it with QuantileSketch(device={str(device)!r})"
                )
            with FIRST_COUNT:
                self._counts = self._zeros(device) if self._counts is None else self._counts
        if self._counts.device != device:
            raise ValueError(
                f"the sketch counts on {self._counts.device}, the tensor is on {device}: "
                "take one sketch a device and merge them with sketch += other.to(device)"
            )
        return self._counts

    def counted_on(self, device: torch.device) -> dict[str, Any]:
        """What a kernel on `device` needs to know, to count."""
        return {"counts": self.counts_on(device), "m": self.mantissa_bits, "on": self.switch}

    def is_idle(self) -> bool:
        """Whether the host knows that nothing is counted now."""
        return False

    def allocate(self, device: torch.device) -> None:
        """Allocate counts on `device` if there are none yet, also while torch.compile traces the call."""
        with _disable_current_modes():
            self.counts_on(device)

    # What torch.compiler.assume_constant_result sets, which takes seconds to import torch._dynamo:
    # torch.compile calls this while it traces.
    allocate._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def count(self) -> Tensor:
        """The number of values counted, including NaN and infinities; 0-d int64, like the next three."""
        return self.counts.sum()

    @property
    def zeros(self) -> Tensor:
        """The number of exact zeros (0 or -0)."""
        return self.counts[zero_bin(self.mantissa_bits)].clone()

    @property
    def infs(self) -> Tensor:
        """The number of infinities of either sign."""
        return self.counts[0] + self.counts[-2]

    @property
    def nans(self) -> Tensor:
        """The number of NaN."""
        return self.counts[-1].clone()

    def quantile(self, q: Quantiles, *, magnitude: bool = False, midpoint: bool = False) -> Tensor:
        """Estimate the quantiles q of the values x, or (`magnitude`) of |x|.

        Defined as in `torch.quantile` and `numpy.quantile` (linear interpolation between order statistics),
        without NaN. The estimate lies within `bounds(q)` and is typically good to 1 %.

        Args:
            q: number, sequence or tensor of numbers from 0 to 1.
            midpoint: return harmonic midpoints of bins, off by at most 1 / (2^(mantissa_bits + 1) + 1):
                11.1, 5.9, 3.0 or 1.5 % for 2, 3, 4 or 5 bits.

        Returns:
            float64 tensor of q's shape, on the sketch's device; NaN if only NaN was counted.

        Raises:
            ValueError: a q is not from 0 to 1.
        """
        flat, shape, values = self._prepared(q, magnitude)
        return summary.quantiles(values, flat, midpoint=midpoint).view(shape)

    def bounds(self, q: Quantiles, *, magnitude: bool = False) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds of the quantiles q, certain whatever the interpolation.

        The order statistics have the ranks floor(h) and ceil(h) with h = q (n - 1) in float64, as in
        `numpy.quantile` and, from PyTorch 2.15 on, `torch.quantile`. Arguments and results as in `quantile`.
        """
        flat, shape, values = self._prepared(q, magnitude)
        lower, upper = summary.bounds(values, flat)
        return lower.view(shape), upper.view(shape)

    def below(self, threshold: float, *, magnitude: bool = True) -> Tensor:
        """The share of the values, without NaN, whose magnitude (or value) is below the threshold.

        0-d float64, NaN if there are none. Exact for thresholds that are edges of bins, such as powers of two
        from 2^(-126 - mantissa_bits) to 2^128 (a negative one counts as below itself); otherwise the bin that
        holds the threshold is divided in proportion.
        """
        rule, remedy, limits = "a number", "pass a float such as 1e-8", {"low": -math.inf, "high": math.inf}
        number = check_real(threshold, "threshold", rule, remedy, **limits, wrong_type=ValueError)
        thresholds = summary.on_device((number,), self.counts.device)
        return summary.fraction_below(self._distribution(magnitude), thresholds)[0]

    def to_histogram(self, bins: int | None = None) -> Histogram:
        """The finite values as counts between edges, from the lowest to the highest non-empty bin.

        The counts are those of `numpy.histogram(x, edges)`: an edge belongs to the bin above it, so an edge
        below zero is the number just above a multiple of a power of two. Zeros count in the bin that begins
        at 0. For plots, and for functions such as TensorBoard's `add_histogram_raw`.

        Args:
            bins: the most bins to return, each merged from the same number of neighbors, aligned at 0 if
                there are two or more; by default all. TensorBoard takes any number, Weights & Biases 512. A
                few dozen suit values of one sign only: between both signs lie all exponents down to 0.

        Raises:
            TypeError, ValueError: bins is not an integer from 1 on.
        """
        limit = None if bins is None else check_integer(bins, "bins", "512 is the most that W&B takes")
        counts, edges = summary.histogram(self.counts.cpu(), self.mantissa_bits)
        filled, zero = counts.nonzero().flatten(), len(counts) // 2  # the bin that begins at 0
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (zero, zero)
        starts = np.arange(first, last + 1)
        if limit is not None and len(starts) > limit:
            starts = _merged(first - zero, last - zero, limit) + zero
        ends = np.append(starts, last + 1)
        return Histogram(np.add.reduceat(counts.numpy(), starts), edges.numpy()[ends])

    def __iadd__(self, other: QuantileSketch) -> QuantileSketch:
        if not isinstance(other, QuantileSketch):
            raise TypeError(f"only a QuantileSketch can be merged, got {type(other).__name__}: use update(x)")
        if other.mantissa_bits != self.mantissa_bits:
            raise ValueError(
                f"sketches with mantissa_bits={self.mantissa_bits} and {other.mantissa_bits} have different "
                "bins: merge sketches of the same mantissa_bits"
            )
        if other._counts is not None:
            self.counts_on(other._counts.device).add_(other._counts)
        return self

    def __add__(self, other: QuantileSketch) -> QuantileSketch:
        if not isinstance(other, QuantileSketch):
            return NotImplemented
        merged = self.clone()
        merged += other
        return merged

    def __radd__(self, other: Any) -> QuantileSketch:
        """0 + sketch, as sum() begins."""
        return self.clone() if other == 0 else NotImplemented

    def clone(self) -> QuantileSketch:
        return QuantileSketch(self.mantissa_bits) if self._counts is None else self._copy(self._counts.device)

    def to(self, device: torch.device | str | int) -> QuantileSketch:
        """This sketch if it is on the device, else a copy there."""
        device = torch.empty(0, device=device).device  # with its index
        return self if self.device == device else self._copy(device)

    def _copy(self, device: torch.device) -> QuantileSketch:
        copy = QuantileSketch(self.mantissa_bits)
        with torch.inference_mode(False):
            copy._counts = self.counts.to(device, copy=True)
        return copy

    def reset(self) -> QuantileSketch:
        """Forget all values."""
        if self._counts is not None:
            self._counts.zero_()
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> QuantileSketch:
        """Merge the sketches of all processes in the group; afterwards each has counted all values.

        Every process must call this, with sketches of the same mantissa_bits on a device that the backend
        handles (NCCL: the GPU). RuntimeError if torch.distributed is not initialized.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "all_reduce() merges over processes, and torch.distributed is not initialized: "
                "call torch.distributed.init_process_group() first"
            )
        if self._counts is None:
            self._counts = self._zeros(device_of_backend(dist.get_backend(group)))
        dist.all_reduce(self._counts, group=group)
        return self

    def state_dict(self) -> dict[str, Any]:
        return {"mantissa_bits": self.mantissa_bits, "counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the counts of a `state_dict()`, onto the device of this sketch."""
        bits, counts = state.get("mantissa_bits"), state.get("counts")
        if not isinstance(counts, Tensor) or counts.dtype != torch.int64:
            kind = f"dtype {counts.dtype}" if isinstance(counts, Tensor) else f"type {type(counts).__name__}"
            raise ValueError(
                f"the state has counts of {kind}, not an int64 tensor: save a state_dict() and load that"
            )
        if bits != self.mantissa_bits or counts.shape != (bin_count(self.mantissa_bits),):
            raise ValueError(
                f"the state is of a sketch with mantissa_bits={bits} and {tuple(counts.shape)} counts; "
                f"this one has mantissa_bits={self.mantissa_bits}: load it into QuantileSketch({bits})"
            )
        with torch.inference_mode(False):
            self._counts = counts.to(device=self.device or counts.device, copy=True)

    def __repr__(self) -> str:
        values = summary.distribution(self.counts.cpu(), self.mantissa_bits, magnitude=True)
        q = summary.on_device((0.0, 0.5, 1.0), torch.device("cpu"))
        least, median, greatest = summary.quantiles(values, q).tolist()
        parts = [f"count={int(self.count)}"]
        parts += [f"{name}={n}" for name in ("zeros", "infs", "nans") if (n := int(getattr(self, name)))]
        parts.append(f"|x|: min {least:.3g}, median {median:.3g}, max {greatest:.3g}")
        return f"QuantileSketch({', '.join(parts)}; mantissa_bits={self.mantissa_bits}, {self.counts.device})"

    def _zeros(self, device: torch.device) -> Tensor:
        with torch.inference_mode(False):
            return torch.zeros(bin_count(self.mantissa_bits), dtype=torch.int64, device=device)

    def _distribution(self, magnitude: bool) -> summary.Distribution:
        return summary.distribution(self.counts, self.mantissa_bits, magnitude=magnitude)

    def _prepared(self, q: Quantiles, magnitude: bool) -> tuple[Tensor, torch.Size, summary.Distribution]:
        numbers, shape = check_quantiles(q)
        return summary.on_device(numbers, self.counts.device), shape, self._distribution(magnitude)


def _merged(first: int, last: int, limit: int) -> npt.NDArray[np.int64]:
    """The first bin of each of at most `limit` groups of neighbors; if limit > 1, one starts at 0."""
    if limit == 1:
        return np.array([first])
    width = next(n for n in itertools.count(1) if last // n - first // n < limit)
    return np.maximum(np.arange(first // width, last // width + 1) * width, first)


torch.serialization.add_safe_globals([QuantileSketch])
