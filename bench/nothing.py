"""An optimizer that does nothing, to time what is attached to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Nothing(torch.optim.Optimizer):
    """A step costs nothing but its hooks."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> Any:
        return None
