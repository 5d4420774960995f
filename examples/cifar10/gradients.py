"""What the lower panels of the figures show: the distribution of the gradients' coordinates, epoch by epoch.

The paper says only "summary statistics of the coordinate values of the gradients".  Ours are the mean and
five quantiles of the absolute coordinates, over all parameters of a network and all steps of an epoch.  Two
gradients are kept apart: `gradient_*` is that of the objective, penalty included, which the optimizer follows
and Theorem 1 speaks about; `loss_gradient_*` is that of the cross-entropy alone.  Without a penalty they are
the same.

The numbers are estimates from the counts of sketches, one for each network and epoch: see
`sigscale.QuantileSketch`, of which `MANTISSA_BITS` is the resolution.  Its kernels are used directly, since a
GPU then counts for all networks in one launch of the captured step, instead of one for each.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sigscale.kernels import summary
from sigscale.kernels.reference_sketch import bin_count
from sigscale.kernels.sketch import count_many

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
VANISHED = 1e-8
"""The share of gradients that are smaller is recorded."""
MANTISSA_BITS = 5
"""A quantile is off by 3.1 % at most; finer than the default, and no slower on so few parameters."""

STATISTICS = ("mean", *(f"q{round(100 * q):02d}" for q in QUANTILES), "vanished", "nonfinite")
COLUMNS = tuple(f"{name}_{statistic}" for name in ("gradient", "loss_gradient") for statistic in STATISTICS)

KEPT = 32
"""Steps whose gradients a CPU counts together, which takes a tenth of the time; a GPU counts each step's."""
ALIGNED = 4
"""Numbers in 16 bytes."""


class EpochGradients:
    """Counts on the device of every gradient since `reset()`, for each of the networks by itself.

    The parameters are those of `seeds` networks, stacked: (seeds, ...) or (seeds n,).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], seeds: int, l2: float = 0.0, l1: float = 0.0
    ) -> None:
        self.parameters, self.seeds, self.l2, self.l1 = list(parameters), seeds, l2, l1
        self.kinds = 2 if l2 or l1 else 1
        device = self.parameters[0].device
        self.counts = torch.zeros(
            self.kinds * seeds, bin_count(MANTISSA_BITS), dtype=torch.int64, device=device
        )
        size = width = sum(p.numel() for p in self.parameters) // seeds
        steps = KEPT
        if device.type != "cpu":  # rows aligned to 16 bytes take one launch, others a second one
            steps, width = 1, -(-size // ALIGNED) * ALIGNED
        self._kept = torch.empty(len(self.counts), steps, width, device=device)[..., :size]
        self._steps = 0  # that are kept, and not counted yet
        self._scale = torch.ones(len(self.counts), dtype=torch.float64, device=device)
        self._q = summary.on_device(QUANTILES, device)
        self._thresholds = summary.on_device((VANISHED,), device)

    def reset(self) -> None:
        self.counts.zero_()
        self._steps = 0

    @torch.no_grad()
    def record(self) -> None:
        """Record the gradients that `backward()` has just left on the parameters."""
        now = self._kept[:, self._steps].unflatten(0, (self.kinds, self.seeds))
        loss = self._side_by_side([p.grad for p in self.parameters if p.grad is not None], now[0])
        if self.kinds == 2:
            values = self._side_by_side(self.parameters, now[1])
            objective = torch.add(loss, values, alpha=self.l2)
            if self.l1:
                objective.add_(values.sign_(), alpha=self.l1)
            values.copy_(objective)
        self._steps += 1
        if self._steps == self._kept.shape[1]:
            self._count()

    def _count(self) -> None:
        rows = [row[: self._steps] for row in self._kept]
        count_many(self.counts, range(len(rows)), rows, MANTISSA_BITS)
        self._steps = 0

    def summary(self) -> Tensor:
        """(seeds, COLUMNS) in float64, on the device.

        The mean takes each value to be at the middle of its bin.  Infinities are values; NaN is left out.
        """
        if self._steps:
            self._count()
        found = summary.summarize(
            self.counts, self._scale, self._q, self._thresholds, MANTISSA_BITS, magnitude=True
        )
        leading = len(summary.STATISTICS)
        column = dict(zip(summary.STATISTICS, found.unbind(1), strict=False))
        numbers = [column["mean"], *found[:, leading:].unbind(1), column["infs"] + column["nans"]]
        table = torch.stack(numbers, 1).view(self.kinds, self.seeds, len(STATISTICS))
        return torch.cat([table[-1], table[0]], 1)  # the objective's first

    def _side_by_side(self, tensors: Iterable[Tensor], out: Tensor) -> Tensor:
        """All coordinates of each network: (seeds, coordinates)."""
        return torch.cat([tensor.reshape(self.seeds, -1) for tensor in tensors], 1, out=out)
