"""What the lower panel of Figure 3 shows: the distribution of the gradients' coordinates, epoch by epoch.

The paper says only "summary statistics of the coordinate values of the gradients".  Ours are the mean and
five quantiles of the absolute coordinates, over all parameters and all steps of an epoch.  Two gradients are
kept apart: `gradient_*` is that of the objective, penalty included, which the optimizer follows and Theorem 1
speaks about; `loss_gradient_*` is that of the cross-entropy alone.  Without a penalty they are the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class GradientRecord:
    """Buffers on the device for every gradient of one epoch; nothing is read before `summary()`."""

    def __init__(self, parameters: Iterable[nn.Parameter], steps: int, penalty: float) -> None:
        self.parameters = list(parameters)
        self.penalty = penalty
        size = sum(parameter.numel() for parameter in self.parameters)
        self.loss = torch.empty(steps, size, device=self.parameters[0].device)
        self.objective = torch.empty_like(self.loss) if penalty else self.loss

    @torch.no_grad()
    def record(self, step: int) -> None:
        """Keep the gradients `backward()` has just left on the parameters."""
        gradients = [parameter.grad for parameter in self.parameters]
        torch.cat([gradient.flatten() for gradient in gradients if gradient is not None], out=self.loss[step])
        if self.penalty:
            values = torch.cat([parameter.flatten() for parameter in self.parameters])
            torch.add(self.loss[step], values, alpha=self.penalty, out=self.objective[step])

    def summary(self) -> dict[str, float]:
        return {**summarize("gradient", self.objective), **summarize("loss_gradient", self.loss)}


def summarize(name: str, values: Tensor) -> dict[str, float]:
    """Quantiles (linear interpolation) and mean of the finite |values|, and how many are not finite.

    By sorting, for `torch.quantile` refuses more than 2**24 values; nan where no value is finite.
    """
    magnitudes = values.abs().flatten()
    ordered = magnitudes[magnitudes.isfinite()].sort().values
    statistics = torch.full((len(QUANTILES) + 1,), torch.nan, dtype=torch.float64)
    if len(ordered):
        position = torch.tensor(QUANTILES, dtype=torch.float64) * (len(ordered) - 1)
        below, above = (
            ordered[p.long().to(ordered.device)].cpu() for p in (position.floor(), position.ceil())
        )
        statistics[:-1] = torch.lerp(below.double(), above.double(), position.frac())
        statistics[-1] = ordered.mean(dtype=torch.float64)
    keys = [f"{name}_q{round(100 * quantile):02d}" for quantile in QUANTILES] + [f"{name}_mean"]
    nonfinite = float(magnitudes.numel() - len(ordered))
    return {**dict(zip(keys, statistics.tolist(), strict=True)), f"{name}_nonfinite": nonfinite}
