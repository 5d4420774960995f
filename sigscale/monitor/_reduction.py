"""Which counts are added up over the processes of a training, and what each process counts for that."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._names import wrappers

Group = Literal["auto"] | Any | None  # Any: ProcessGroup, which torch lacks where it is built without


class Reduction:
    """Adds up the rows of activations and, for a group given by name, those of parameters.

    With DistributedDataParallel, parameters have the same gradient in every process already.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        if group is not None and group != "auto" and not _is_group(group):
            raise TypeError(
                'group must be "auto" (that of DistributedDataParallel), None (each process for itself) or a '
                f"torch.distributed.ProcessGroup; got {group!r}: pass torch.distributed.group.WORLD for all"
            )
        self.parameters = group is not None and group != "auto"
        self.group: dist.ProcessGroup | None = None
        if self.parameters:
            self.group = cast("dist.ProcessGroup", group)
        for wrapper in wrappers(model):
            if isinstance(wrapper, nn.DataParallel) and len(wrapper.device_ids) > 1:
                raise TypeError(
                    "the model must keep its modules from step to step; got DataParallel, which makes copies "
                    "in every forward pass: use DistributedDataParallel"
                )
            if group == "auto" and isinstance(wrapper, DistributedDataParallel):
                self.group = wrapper.process_group

    def part(self, gradient: Any) -> Tensor | None:
        """What this process counts of a parameter's gradient: what no other does, where they are added up."""
        if not hasattr(gradient, "to_local"):
            counted_elsewhere = self.parameters and dist.get_rank(self.group) > 0
            return None if counted_elsewhere else cast(Tensor, gradient)
        from torch.distributed.tensor import Replicate

        mesh, placements = gradient.device_mesh, gradient.placements
        if any(placement.is_partial() for placement in placements):
            placements = [Replicate() if placement.is_partial() else placement for placement in placements]
            gradient = gradient.redistribute(placements=placements)
        if self.parameters:
            for place, placement in zip(mesh.get_coordinate(), placements, strict=True):
                if place and placement.is_replicate():
                    return None
        return cast(Tensor, gradient.to_local())

    def add_up(self, activations: Tensor, all_rows: Tensor) -> None:
        """All-reduce the counts, in place."""
        rows = all_rows if self.parameters else activations
        if self.group is not None and len(rows):
            dist.all_reduce(rows, group=self.group)


def _is_group(group: Any) -> bool:
    return dist.is_available() and isinstance(group, dist.ProcessGroup)
