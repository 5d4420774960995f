"""What the lower panel of Figure 3 shows: the distribution of the gradients' coordinates, epoch by epoch.

The paper says only "summary statistics of the coordinate values of the gradients".  Ours are the mean and
five quantiles of the absolute coordinates, over all parameters and all steps of an epoch.  Two gradients are
kept apart: `gradient_*` is that of the objective, penalty included, which the optimizer follows and Theorem 1
speaks about; `loss_gradient_*` is that of the cross-entropy alone.  Without a penalty they are the same.

The numbers are estimates from a `QuantileSketch`, which takes the same memory however long the epoch is.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

import sigscale as ss

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

MANTISSA_BITS = 5
"""A quantile is off by 3.1 % at most; finer than the default, and no slower on so few parameters."""


class EpochGradients:
    """Sketches on the device of every gradient since `reset()`; nothing is read before `summary()`."""

    def __init__(self, parameters: Iterable[nn.Parameter], penalty: float) -> None:
        self.parameters = list(parameters)
        self.penalty = penalty
        device = self.parameters[0].device
        self.loss = ss.QuantileSketch(MANTISSA_BITS, device=device)
        self.objective = ss.QuantileSketch(MANTISSA_BITS, device=device) if penalty else self.loss

    def reset(self) -> None:
        self.loss.reset()
        self.objective.reset()

    @torch.no_grad()
    def record(self) -> None:
        """Count the gradients that `backward()` has just left on the parameters."""
        gradients = [parameter.grad for parameter in self.parameters]
        loss = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
        self.loss.update(loss)
        if self.penalty:
            values = torch.cat([parameter.flatten() for parameter in self.parameters])
            self.objective.update(torch.add(loss, values, alpha=self.penalty))

    def summary(self) -> dict[str, float]:
        return {**summarize("gradient", self.objective), **summarize("loss_gradient", self.loss)}


def summarize(name: str, sketch: ss.QuantileSketch) -> dict[str, float]:
    """Quantiles and mean of the |values|, and how many are not finite.

    Quantiles lie within `sketch.bounds(q, magnitude=True)`; infinities are values there, NaN is left out.
    The mean is that of the finite values, each taken to be at the middle of its bin, or 0 below 2**-126: off
    by 1.6 % at most.  Both are nan where there is no such value.
    """
    keys = [f"{name}_q{round(100 * quantile):02d}" for quantile in QUANTILES]
    numbers = dict(zip(keys, sketch.quantile(QUANTILES, magnitude=True).tolist(), strict=True))
    counts, edges = sketch.to_histogram()
    middles = np.abs(edges[:-1] + edges[1:]) / 2
    middles[middles < 2.0**-126] = 0
    finite = counts.sum()
    numbers[f"{name}_mean"] = float(counts @ middles / finite) if finite else float("nan")
    return {**numbers, f"{name}_nonfinite": float(sketch.infs + sketch.nans)}
