"""Where a monitor listens in a model: one tap for each activation module, and a row for each tap.

Copies of a model, by copy or pickle, are of the model as it is without a monitor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import warn
from .._names import named_modules
from .._overlay import uncover
from .._sharding import Reduction, is_placed
from ..kernels.device import is_capturing
from ..nn.activation import Activation, check_free
from ._hooks import NamedSketch, counting_class
from ._recorder import Recorder
from ._rows import ACTIVATIONS, Rows

Things = set[nn.Module | nn.Parameter]


class RowSketch(NamedSketch):
    """A sketch whose counts are a row of others; a copy of the module that has it has none."""

    recorder: Recorder
    wants_placed = False

    def is_idle(self) -> bool:
        """As the host knows; graphs, which serve all steps, leave it to the switch."""
        return not torch.compiler.is_compiling() and self.recorder.is_idle()

    def check_source(self, x: Tensor) -> None:
        if self.wants_placed and not is_placed(x) and x.requires_grad:
            raise TypeError(
                f"the input of {self.name!r} is a plain tensor in a tensor-parallel model, which does not "
                "say whether other processes hold the same values: have the layer before give a DTensor, "
                "with use_local_output=False, or leave it out with exclude=..."
            )

    def allocate(self, device: torch.device) -> None:
        """A row has its counts; and torch.compile is free to use one graph for several of them."""

    def counts_on(self, device: torch.device) -> Tensor:
        if is_capturing(device):
            self.recorder.captured = True
        return super().counts_on(device)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()


class Tap:
    """One activation module, whose input's gradient a sketch can count."""

    def __init__(self, module: nn.Module, sketch: RowSketch) -> None:
        self.sketch = sketch
        self.move(module)

    def move(self, module: nn.Module) -> None:
        """Listen there from now on."""
        self.module = module
        kind: Any = type(module)
        if not isinstance(module, Activation):
            module.__class__ = counting_class(kind)
        self.listen()

    def listen(self) -> None:
        if vars(self.module).get("grad_sketch") is None:  # else the user's own
            vars(self.module)["grad_sketch"] = self.sketch

    def close(self) -> None:
        if vars(self.module).get("grad_sketch") is self.sketch:
            del vars(self.module)["grad_sketch"]
        uncover(self.module)


class Taps:
    """The taps of a monitor, in the order of their rows."""

    def __init__(self, recorder: Recorder, rows: Rows, reduction: Reduction) -> None:
        self._recorder, self._rows, self._reduction = recorder, rows, reduction
        self._taps: list[Tap] = []
        self._lost: set[str] = set()  # names of modules that the model has no more

    def __iter__(self) -> Iterator[nn.Module]:
        return (tap.module for tap in self._taps)

    def attach(self, modules: Sequence[tuple[str, nn.Module]]) -> None:
        for name, module in modules:
            sketch = RowSketch(self._recorder.statistics.mantissa_bits)
            sketch.name, sketch.recorder, sketch.switch = name, self._recorder, self._recorder.records.ticket
            sketch.counts_copies = self._reduction.copies
            sketch.wants_placed = self._reduction.inputs_must_be_placed
            self._taps.append(Tap(module, sketch))
        self.point()

    def point(self) -> None:
        """Have each sketch count into its row, wherever that lies now."""
        for row, tap in enumerate(self._taps, self._rows.activations.start):
            tap.sketch._counts = self._recorder.records.counts[row]

    def close(self) -> None:
        for tap in self._taps:
            tap.close()
        self._taps.clear()

    def follow(self, model: nn.Module, taken: Callable[[], Things]) -> None:
        """Go over to modules that have taken the place of others, and warn that this step lacks them."""
        there = {name or type(module).__name__: module for name, module in named_modules(model)}
        for tap in self._taps:
            name, module = tap.sketch.name, there.get(tap.sketch.name)
            if module is tap.module or tap.module in there.values() or name in self._lost:
                tap.listen()
                continue
            if not isinstance(module, ACTIVATIONS):
                self._lost.add(name)
                warn(
                    f"the model has no activation {name!r} any more, and its row stays empty: make a new "
                    "GradientMonitor(model) for the model as it is now"
                )
                continue
            check_trackable([(name, module)], [], taken())
            tap.close()
            tap.move(module)
            warn(
                f"the activation {name!r} is another module than when the last step was measured: its "
                "gradient in this one was not counted, and will be from the next one on"
            )


def check_trackable(
    modules: Sequence[tuple[str, nn.Module]],
    tensors: Sequence[tuple[str, nn.Parameter]],
    taken: set[nn.Module | nn.Parameter],
) -> None:
    """Raise ValueError if there is nothing to measure, or something is measured already or cannot be."""
    if not (modules or tensors):
        raise ValueError(
            "the model must have parameters or elementwise activation modules to measure; got none that are "
            "selected: use modules such as sigscale.nn.Tanh rather than functions, widen include=, narrow "
            "exclude=, or leave activations and parameters True"
        )
    for name, thing in (*modules, *tensors):
        if thing in taken:
            raise ValueError(
                f"a tensor is measured by one monitor at a time; got {name!r}, which an open one measures: "
                "close() that one first, or leave it out with exclude=..."
            )
    for name, module in modules:
        if "forward" in vars(module) and not isinstance(module, Activation):
            raise ValueError(
                f"a monitor counts where the class computes; the forward of the module {name!r} was replaced "
                f"on the object: remove that, or leave it out with exclude={name!r}"
            )
    check_free(modules)
