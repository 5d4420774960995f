"""The alarm of a monitor: which layers' gradients have vanished."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

OnVanishing = Callable[[int, Mapping[str, float]], object]


class Alarm:
    """Tells once of a layer of whose gradient at least `fraction` is below a threshold, until it recovers."""

    def __init__(self, below: float, fraction: float, on_vanishing: OnVanishing | None) -> None:
        self.below, self.fraction = below, fraction
        self.on_vanishing = on_vanishing or self._warn
        self._told: set[str] = set()

    def look(self, step: int, names: Sequence[str], shares: npt.NDArray[np.float64]) -> None:
        """Look at the share of each layer's gradient below the threshold, NaN where it had none."""
        vanished = {}
        for name, share in zip(names, shares.tolist(), strict=True):
            if share >= self.fraction and name not in self._told:
                vanished[name] = share
            elif share < self.fraction:
                self._told.discard(name)
        if vanished:
            self._told.update(vanished)
            self.on_vanishing(step, vanished)

    def _warn(self, step: int, vanished: Mapping[str, float]) -> None:
        layers = ", ".join(f"{share:.0%} of {name!r}" for name, share in vanished.items())
        warnings.warn(
            f"vanishing gradients: below {self.below:g} in magnitude are, at step {step}, {layers}. Where "
            "activations saturate, scaled ones such as sigscale.nn.Tanh(alpha=2.0) and L2 regularization "
            "help; where weights are too small, larger initial values do",
            UserWarning,
            stacklevel=5,
        )
