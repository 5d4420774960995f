"""Tensors that several processes hold (DTensor): which of their values each process counts.

A sum over processes must have each value once, so of copies only the first process's is counted, and of
summands their sum.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ._names import wrappers

Group = Literal["auto"] | Any | None  # Any: ProcessGroup, which torch lacks where it is built without


def is_placed(x: Tensor) -> bool:
    """Whether x is a DTensor, which knows what other processes hold."""
    return hasattr(x, "device_mesh")


def is_flattened(parameter: Tensor) -> bool:
    """Whether the first FullyShardedDataParallel has made a parameter part of a flat one."""
    return getattr(parameter, "_fsdp_flattened", False)


def own_part(x: Any, *, copies: bool = False) -> Tensor | None:
    """What this process counts of x: its shard or, of copies, the first one, if not all; None if nothing."""
    if not is_placed(x):
        return cast(Tensor, x)
    if any(placement.is_partial() for placement in x.placements):
        from torch.distributed.tensor import Replicate

        x = x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])
    if not copies:
        for place, placement in zip(x.device_mesh.get_coordinate(), x.placements, strict=True):
            if place and placement.is_replicate():
                return None
    return cast(Tensor, x.to_local())


def beside(alpha: Tensor, x: Any) -> Tensor:
    """alpha, the same in each process, as a tensor that PyTorch takes together with x."""
    if not is_placed(x) or is_placed(alpha):
        return alpha
    from torch.distributed.tensor import DTensor, Replicate

    mesh = x.device_mesh  # its gradient is summed up over the processes
    return DTensor.from_local(alpha, mesh, [Replicate()] * mesh.ndim, run_check=False)


class Reduction:
    """Adds up counts over processes: which groups do, and what each process contributes.

    With DistributedDataParallel alone, parameters have the same gradient in every process already.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        if group is not None and group != "auto" and not _is_group(group):
            raise TypeError(
                'group must be "auto" (the processes that train the model), None (each process for itself) '
                f"or a ProcessGroup; got {group!r}: pass torch.distributed.group.WORLD for all"
            )
        _check_wrappers(model)
        self._is_auto = group == "auto"
        self._groups: list[Any] = []  # over which all counts are added up
        self._replicas: Any = None  # and, over this one, those of activations
        self._first = 0  # of the processes that hold the same
        self.inputs_must_be_placed = False
        if self._is_auto:
            self._find_groups(model)
        elif group is not None:
            self._groups, self._first = [group], dist.get_global_rank(cast(Any, group), 0)

    @property
    def copies(self) -> bool:
        """Whether each process counts all that it holds, since nothing is added up."""
        return not self._groups

    def part(self, gradient: Tensor) -> Tensor | None:
        """What this process counts of a parameter's gradient: what no other does, where they are added up.

        Raises:
            RuntimeError: the model was sharded after this was made.
        """
        if self.copies:
            if self._is_auto and is_placed(gradient):
                raise RuntimeError(
                    "the model was sharded after its monitor was made, which counts this process's shard "
                    "alone: make the GradientMonitor after fully_shard() or parallelize_module()"
                )
            return own_part(gradient, copies=True)
        if is_placed(gradient):
            part = own_part(gradient)
            return part if self._first in gradient.device_mesh.mesh else None  # type: ignore[attr-defined]
        return gradient if dist.get_rank() == self._first else None

    def add_up(self, activations: Tensor, all_rows: Tensor) -> None:
        """All-reduce the counts, in place."""
        for group in self._groups:
            dist.all_reduce(all_rows, group=group)
        if self._replicas is not None and len(activations):
            dist.all_reduce(activations, group=self._replicas)

    def _find_groups(self, model: nn.Module) -> None:
        for wrapper in wrappers(model):
            if isinstance(wrapper, DistributedDataParallel):
                self._replicas = wrapper.process_group
        placed: list[Any] = [parameter for parameter in model.parameters() if is_placed(parameter)]
        if not placed:
            return
        mesh = max((parameter.device_mesh for parameter in placed), key=lambda mesh: mesh.size())
        for parameter in placed:
            if not set(parameter.device_mesh.mesh.flatten().tolist()) <= set(mesh.mesh.flatten().tolist()):
                raise ValueError(
                    f"the parameters lie on meshes of different processes, {mesh} and "
                    f"{parameter.device_mesh}: name the processes, such as "
                    "group=torch.distributed.group.WORLD"
                )
        self._groups = mesh.get_all_groups()
        self._first = int(mesh.mesh.flatten()[0])
        self.inputs_must_be_placed = _is_tensor_parallel(model, placed)


def _check_wrappers(model: nn.Module) -> None:
    for wrapper in wrappers(model):
        if isinstance(wrapper, nn.DataParallel) and len(wrapper.device_ids) > 1:
            raise TypeError(
                "the model must keep its modules from step to step; got DataParallel, which makes copies in "
                "every forward pass: use DistributedDataParallel"
            )
    if any(map(is_flattened, model.parameters())):
        raise TypeError(
            "a monitor counts parameters one by one; got FullyShardedDataParallel, which flattens them: "
            "shard with torch.distributed.fsdp.fully_shard instead"
        )


def _is_tensor_parallel(model: nn.Module, placed: list[Any]) -> bool:
    """Whether more than fully_shard has sharded the parameters: its one dimension, or two with replicas."""
    from torch.distributed.fsdp import FSDPModule

    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return True
    return any(p.device_mesh.ndim > 1 + p.placements[0].is_replicate() for p in placed)


def _is_group(group: Any) -> bool:
    return dist.is_available() and isinstance(group, dist.ProcessGroup)
