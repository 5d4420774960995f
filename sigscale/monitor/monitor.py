"""The distribution of every gradient of a model, step by step: `GradientMonitor`."""

from __future__ import annotations

import io
import itertools
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import IO, Any, NoReturn

import torch
from torch import Tensor, nn

from .._checks import DTYPES, check_integer
from .._names import Selection, check_model, named_parameters
from .._operators import register
from .._sharding import Group, Reduction
from ..kernels.record import Records
from ..sketch import QuantileSketch
from . import _options as options
from ._loss_scale import LossScale, factors_of_rows
from ._options import OnVanishing
from ._reader import Reader, last_step
from ._recorder import Recorder
from ._rows import ParameterGradients, Rows, named_activations, only_device
from ._taps import Taps, Things, check_trackable
from .history import GradientHistory

OPEN: weakref.WeakValueDictionary[int, GradientMonitor] = weakref.WeakValueDictionary()
NUMBERS = itertools.count()


class GradientMonitor:
    """Records the distribution of the gradients of a model's activations and parameters, once a `step()`.

    For an elementwise activation module y = f(x), such as `sigscale.nn.Tanh` or `torch.nn.ReLU`, it measures
    dL/dx: the coordinates of all uses of the module, in all backward passes since the last step. Modules of
    sigscale count in the kernel that computes dL/dx. For a parameter it measures .grad as step() finds it,
    with micro-batches already added up. The rows "all activations" and "all parameters" combine all
    coordinates.

    Call step() once after the last backward pass of a training step, before zero_grad() and the next forward
    pass; otherwise the next step counts both. Nothing waits for the device until history(), summary(),
    vanishing(), sketch() or save() is called. step() can be compiled, and captured in a CUDA graph, whose
    replays measure the steps that `every` says. Counts take 64 KiB of device memory per row
    (mantissa_bits=3), records 8 bytes of host memory per number. While it is open, activation modules of
    PyTorch are of a subclass of their class; copies of them are not.

    A quantile is off by a factor of at most 1 + 2^-mantissa_bits (see `QuantileSketch`), typically by 1 %.
    The mean takes each value at the middle of its bin, and is off by at most 2^-(mantissa_bits + 1) of the
    mean of |g|: 100 gradients of 1.0 have the mean 1.0625. Counts are exact, and so are shares below
    thresholds that are edges of bins, such as powers of two from 2^(-126 - mantissa_bits) to 2^128; others
    are rounded up to an edge, 1e-8 to 1.024e-8, so that no value below one is left out. The same training
    gives the same bits.

    Args:
        model: a module, also wrapped in DistributedDataParallel or by torch.compile, before or after; names
            are those without a wrapper.
        quantiles: the quantiles to record, from 0 to 1.
        activations, parameters: whether to measure them.
        every: measure the steps 0, every, 2 every, ...; the others cost one small kernel.
        include, exclude: shell-style patterns ("encoder.*"), or sequences of them, of the names of modules
            and parameters to measure, and not to.
        magnitude: record the mean and the quantiles of |g| instead of g.
        thresholds: record the share of |g| below each of them, in units of g, rounded up to an edge of bins.
        mantissa_bits: resolution of the sketches, see `QuantileSketch`.
        scaler: the torch.amp.GradScaler that scales the loss, and only then (a scaler that is in use
            and not passed leaves values too large by its scale, 65536 at first, and nobody notices):
            values are divided by its scale, whether step() comes before or after its unscale_(), step()
            and update(); of several optimizers', before those of the first or after those of the last. After
            a step() that it skipped, parameters have counts only.
        group: the processes whose counts are added up, so that each has the same history. "auto": those that
            train the model by DistributedDataParallel, fully_shard (also of a 2-D mesh) or
            parallelize_module, with a copy of a value counted once; in a tensor-parallel model the inputs of
            activations must be DTensors (use_local_output=False), which say what is a copy. Or a
            torch.distributed.ProcessGroup; None adds up nothing. All processes must call step() then. Make
            the monitor after the model is wrapped or sharded.
        ring: how many steps are kept on the device; every half as many they are copied to the host.
        warn_below, warn_fraction: warn when at least this share of a layer's gradient is below
            warn_below in magnitude, once for each layer until it recovers. Looked at when records reach
            the host: every ring / 2 measured steps, and when the history is read.
        on_vanishing: call this with the step and {name: share} of the layers instead of warning; with
            warn_below=None, 1e-8 is used.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, the model has nothing to measure, another
            monitor does already, or FullyShardedDataParallel has flattened parameters; the model is left as
            it was.

    Example:
        >>> import torch, sigscale as ss
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), ss.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with ss.GradientMonitor(model) as monitor:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(2, 4)).sum().backward()
        ...         monitor.step()
        ...         optimizer.step()
        >>> monitor.history().quantile(0.5).shape  # steps, rows
        (3, 7)
        >>> monitor.vanishing(below=1e-8)["1"]
        0.0
    """

    def __init__(
        self,
        model: nn.Module,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        *,
        activations: bool = True,
        parameters: bool = True,
        every: int = 1,
        include: str | Iterable[str] = (),
        exclude: str | Iterable[str] = (),
        magnitude: bool = True,
        thresholds: Sequence[float] = (1e-8,),
        mantissa_bits: int = 3,
        scaler: torch.amp.GradScaler | None = None,
        group: Group = "auto",
        ring: int = 64,
        warn_below: float | None = None,
        warn_fraction: float = 0.9,
        on_vanishing: OnVanishing | None = None,
    ) -> None:
        check_model(model)
        options.check_scaler(scaler)
        alarm = options.check_alarm(warn_below, warn_fraction, on_vanishing)
        statistics = options.check_statistics(quantiles, thresholds, alarm, magnitude, mantissa_bits)
        check_integer(every, "every", "10 measures every tenth step", wrong_type=ValueError)
        slots = check_integer(ring, "ring", "64 keeps 64 steps on the device", wrong_type=ValueError)
        selection = Selection(include, exclude)
        self._reduction = Reduction(model, group)
        modules = [*named_activations(model)] if activations else []
        tensors = [*named_parameters(model)] if parameters else []
        selection.check((name for name, _ in (*modules, *tensors)), "activations or parameters")
        modules = [(name, module) for name, module in modules if name in selection]
        tensors = [(name, tensor) for name, tensor in tensors if name in selection]
        check_trackable(modules, tensors, measured())

        device = only_device((tensor for _, tensor in tensors), model)
        selected = selection if parameters else None
        self._gradients = ParameterGradients(model, selected, self._reduction, device)
        trained = [name for name, _ in self._gradients.tracked()]
        self._rows = Rows([name for name, _ in modules], trained if tensors else None)
        self._recorder = Recorder(device, statistics, self._rows, slots, every)
        self._recorder.load({tensor.dtype for _, tensor in tensors}.intersection(DTYPES))
        self._reader = Reader(self._recorder, self._rows, alarm)
        self._are_parameters = self._rows.are_parameters(device)
        self._loss_scale: LossScale | None = None
        self._is_open, self._number = False, next(NUMBERS)
        self._attach(modules, scaler)

    def step(self) -> None:
        """Measure the gradients of this training step, without waiting for the device.

        Raises:
            RuntimeError: the monitor is closed, the loss scale of the step is not known, or the scaler has
                divided the gradients of some parameters and not those of others.
            TypeError, ValueError: a gradient cannot be counted. Nothing has been measured then, and step()
                may be called again: what the activations have counted stays until it succeeds.
        """
        self._check_open()
        recorder = self._recorder
        if torch.compiler.is_compiling():
            if self._loss_scale is not None:  # which learns of the scaler's calls where a graph ends
                torch._dynamo.graph_break(msg="with a scaler, call monitor.step() outside of the function")
            gradients = self._gradients_by_row()
            torch.ops.sigscale.step_(*recorder.records, [*gradients.values()], [*gradients], self._number)
            return
        with torch.no_grad():
            gradients = {} if recorder.is_idle() else self._gradients_by_row()
            self._end_step(recorder.records, gradients)

    def pause(self) -> None:
        """Measure no step until `resume()`, not even the one in progress; their numbers go on.

        CUDA graphs and compiled code heed it as they are. Call it between steps, on the stream that trains.
        """
        self._check_open()
        self._recorder.pause()

    def resume(self) -> None:
        """Measure again, from the next step that `every` chooses on."""
        self._check_open()
        self._recorder.resume()

    def history(self) -> GradientHistory:
        """All records, as arrays on the host; waits for the device."""
        return self._reader.history()

    def last(self) -> GradientHistory:
        """The newest step of the history alone, for a logger: takes as long whatever the history's length."""
        return self._reader.last()

    def arrived(self, since: int = 0) -> GradientHistory:
        """The records from step `since` on that have reached the host, for a logger; waits for nothing.

        Records arrive every ring / 2 measured steps, and all when history() or last() is called. Those of a
        loaded history are not among them, and none is while a CUDA graph is captured.
        """
        return self._reader.arrived(since)

    def discard(self) -> None:
        """Forget what backward passes have counted since the last step(): that of an aborted training step.

        The next step() counts as if that one had not been.
        """
        self._check_open()
        self._recorder.discard()
        if self._loss_scale is not None:
            self._loss_scale.done()

    def vanishing(self, below: float = 1e-8) -> dict[str, float]:
        """For each layer the share of its gradient's coordinates below a threshold in magnitude.

        Of the last step measured; NaN where a layer had no gradient. Any threshold > 0, in units of the
        gradient, is rounded up to an edge of bins, as those that are recorded. Waits for the device.
        """
        return self._reader.vanishing(below)

    def sketch(self, name: str) -> QuantileSketch:
        """The sketch of a row, such as "all parameters", in the last measured step; waits for the device.

        With a scaler, the values are divided by its scale: without error if that is a power of two, as by
        default; otherwise a value may be one bin off.
        """
        return self._reader.sketch(name)

    def summary(self) -> str:
        """A table of the last measured step, one line per row; waits for the device."""
        return last_step(self.last())

    def save(self, path: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the history, as `GradientHistory.save`, for a training that is to be resumed."""
        self.history().save(path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Continue a saved history: step numbers go on from there; rows are matched by name, NaN elsewhere.

        Raises:
            ValueError: the file is no history, or one of other statistics or of another model.
            RuntimeError: the monitor has made a step already.
        """
        self._resume(path, "load()")

    def state_dict(self) -> dict[str, bytes]:
        """The history so far, as a checkpoint can hold it; waits for the device.

        Of bytes, which torch.load(weights_only=True) and torch.distributed.checkpoint take.
        """
        file = io.BytesIO()
        self.save(file)
        return {"history": file.getvalue()}

    def load_state_dict(self, state_dict: Mapping[str, bytes]) -> None:
        """Continue the history of a `state_dict()`; errors as in `load`."""
        data = state_dict.get("history")
        if not isinstance(data, bytes):
            raise ValueError(
                f"the state must hold bytes under 'history'; got {', '.join(map(repr, state_dict)) or 'none'}"
                ": give the result of GradientMonitor.state_dict()"
            )
        self._resume(io.BytesIO(data), "load_state_dict()")

    def _resume(self, path: str | os.PathLike[str] | IO[bytes], call: str) -> None:
        self._check_open()
        made = self._recorder.calls
        if made:
            raise RuntimeError(
                f"the monitor has made {made} steps, and a loaded history would have to precede them: "
                f"call {call} before the first step()"
            )
        self._reader.resume(GradientHistory.load(path))

    def close(self) -> None:
        """Remove the hooks; the records can still be read."""
        if self._is_open:
            self._is_open = False
            OPEN.pop(self._number, None)
            self._detach()
            del self._gradients, self._loss_scale  # and with them, the model

    def __enter__(self) -> GradientMonitor:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        rows, closed = self._rows, "" if self._is_open else ", closed"
        return (
            f"GradientMonitor({rows.kinds.count('activation')} activations, "
            f"{rows.kinds.count('parameter')} parameters; "
            f"every={self._recorder.every}, {self._recorder.device}{closed})"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            "a GradientMonitor belongs to one model and cannot be copied or pickled: make a new one on the "
            "copy, and carry the history over by state_dict() and load_state_dict()"
        )

    def _check_open(self) -> None:
        if not self._is_open:
            raise RuntimeError(
                "the monitor is closed and no longer measures: make a new GradientMonitor(model), and "
                "leave the with block, or call close(), after the last step"
            )

    def _end_step(self, records: Records, gradients: Mapping[int, Tensor]) -> None:
        recorder = self._recorder
        idle = recorder.is_idle()
        factors = None if idle else self._factors()
        try:
            if not idle:
                recorder.count(records, gradients)
                counts, rows = records.counts, self._rows
                self._reduction.add_up(counts[rows.activations], counts[rows.single])
            recorder.finish(records, factors)
        except BaseException:
            records.counts.zero_()  # half of a step is none
            raise
        if self._loss_scale is not None:
            self._loss_scale.done()
        if not recorder.capturing:
            self._reader.look(wait=False)

    def _gradients_by_row(self) -> dict[int, Tensor]:
        gradients = self._gradients.now()
        self._taps.follow(self._gradients.model, measured)
        self._add_rows([name for name in gradients if name not in self._rows.of])
        return {self._rows.of[name]: part for name, part in gradients.items() if part is not None}

    def _factors(self) -> Tensor | None:
        scale = self._loss_scale
        if scale is None:
            return None
        parameters = scale.parameters(self._gradients.tracked())
        return factors_of_rows(self._rows, self._are_parameters, scale.activations(), parameters)

    def _add_rows(self, names: Sequence[str]) -> None:
        if names:
            if torch.compiler.is_compiling():
                remedy = "call monitor.step() once outside of the function"
                torch._dynamo.graph_break(msg=f"the model has a new parameter {names[0]!r}: {remedy}")
            self._recorder.grow(names)
            self._are_parameters = self._rows.are_parameters(self._recorder.device)
            self._taps.point()

    def _attach(self, modules: Sequence[tuple[str, nn.Module]], scaler: torch.amp.GradScaler | None) -> None:
        self._taps = Taps(self._recorder, self._rows, self._reduction)
        with ExitStack() as stack:
            stack.callback(self._taps.close)
            self._taps.attach(modules)
            if scaler is not None and scaler.is_enabled():
                self._loss_scale = LossScale(scaler, self._recorder.device)
                stack.callback(self._loss_scale.close)
            self._detach = weakref.finalize(self, stack.pop_all().close)
        self._detach.atexit = False
        self._is_open = True
        OPEN[self._number] = self

    def _measured(self) -> Things:
        return {*self._taps} | {tensor for _, tensor in self._gradients.tracked()}


def measured() -> Things:
    """What open monitors measure."""
    return {thing for monitor in OPEN.values() for thing in monitor._measured()}


def step_in_graph(*arguments: Any) -> None:
    """`GradientMonitor.step` of the monitor with that number, each time its graph runs."""
    *records, gradients, rows, number = arguments
    OPEN[number]._end_step(Records(*records), dict(zip(rows, gradients, strict=True)))


register(
    "step_(Tensor(a!) counts, Tensor(b!) last, Tensor(c!) scale, Tensor(d!) ring, Tensor(e!) ticket, "
    "Tensor[] gradients, int[] rows, int number) -> ()",
    step_in_graph,
    lambda *arguments: None,
)
