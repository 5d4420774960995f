"""A monitored training step never waits for the device, and can be captured in a CUDA graph."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sigscale as ss
from sigscale.kernels import device, reference_sketch
from sigscale.kernels._triton import INTERPRETED
from tests.oracles.collected import Twin, assert_step, batch, network

WAITING = {"item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique"}
WAITING |= {"_unique2"}
METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Operations(TorchDispatchMode):
    """Names of all operations, and those that copy to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function.overloadpacket.__name__
        self.names.add(f"{name} to {kwargs['device']}" if name == "_to_copy" and "device" in kwargs else name)
        return function(*args, **kwargs)


@contextlib.contextmanager
def reading_refused(monitor):
    """What reads a tensor from Python is an error, but for the ticket, which kernels read on a GPU.

    Nothing is counted meanwhile: that is a kernel's work, and its twin may read.
    """
    ticket = monitor._recorder.records.ticket

    def refusing(read):
        def refuse(*args, **kwargs):
            if read is None or args[0].untyped_storage().data_ptr() != ticket.untyped_storage().data_ptr():
                raise AssertionError("a tensor was read")
            return read(*args, **kwargs)

        return refuse

    with pytest.MonkeyPatch.context() as patch:
        for method in METHODS:
            patch.setattr(torch.Tensor, method, refusing(getattr(torch.Tensor, method)))
        patch.setattr(torch, "tensor", refusing(None))
        for twin in ("count", "count_many"):
            patch.setattr(reference_sketch, twin, lambda *args: None)
        yield


X = batch(0)


def training(model, device="cpu", scaler=None, unscale=True, **options):
    """A monitor, and a function that makes one step; everything there that is made once."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = X.to(device)
    monitor = ss.GradientMonitor(model, scaler=scaler, **options)

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = model(x).square().mean()
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            if unscale:
                scaler.unscale_(optimizer)
        monitor.step()
        optimizer.step()

    return monitor, step


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter reads tensors")
@pytest.mark.parametrize("with_scaler", [False, True])
def test_no_host_reads(with_scaler):
    scaler = torch.amp.GradScaler("cpu") if with_scaler else None
    # unscale_() copies between devices by itself, without waiting.
    monitor, step = training(network(), scaler=scaler, unscale=False, warn_below=1e-8)
    with monitor:
        step()  # what is made once
        with Operations() as operations, reading_refused(monitor):
            step()
    assert {"searchsorted", "cumsum", "zero_", "threshold_backward", "addmm"} <= operations.names
    assert not operations.names.intersection(WAITING)
    assert not any(name.startswith("_to_copy to") for name in operations.names)
    assert len(monitor.history()) == 2
    with (
        Operations() as operations,
        pytest.raises(AssertionError, match="was read"),
        reading_refused(monitor),
    ):
        monitor.vanishing()
    with Operations() as operations:
        bool(torch.ones(1) > 0)
    assert operations.names.intersection(WAITING)


@pytest.mark.skipif(INTERPRETED, reason="kernels are no operations of PyTorch")
def test_cost_of_unmeasured_steps():
    monitor, step = training(network(), every=3)
    with monitor:
        step()
        with Operations() as plain:
            step()
        step()
        with Operations() as measured:
            step()
    assert not plain.names & {"cumsum", "searchsorted", "view_as", "bincount"}
    assert measured.names >= {"cumsum", "searchsorted"}
    assert monitor.history().steps.tolist() == [0, 3]


def test_stable_addresses():
    """What a CUDA graph would replay writes to the same places, and so does the ring when it goes round."""
    monitor, step = training(network(), ring=4)
    with monitor:
        step()
        recorder = monitor._recorder
        places = [tensor.data_ptr() for tensor in recorder.records]
        sketches = [module.grad_sketch.counts.data_ptr() for module in monitor._taps]
        for _ in range(9):
            step()
        assert [tensor.data_ptr() for tensor in recorder.records] == places
        assert sketches == [recorder.records.counts[row].data_ptr() for row in (2, 3, 4)]


@pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter reads tensors")
def test_replays_decide_by_themselves(monkeypatch):
    """The host sees no step, as in replays of a CUDA graph: cadence and pauses come from the device."""
    monkeypatch.setattr(device, "is_capturing", lambda of: True)
    model = network()
    monitor, step = training(model, every=3)
    twin, truth = Twin(model), []
    with monitor:
        for number in range(20):
            if number in (7, 14):
                (monitor.pause if number == 7 else monitor.resume)()
            twin.model.load_state_dict(model.state_dict())
            twin.model.zero_grad()
            twin.model(X).square().mean().backward()
            truth.append(twin.step())
            step()
    assert monitor._recorder.calls == 0
    history = monitor.history()
    assert history.steps.tolist() == [0, 3, 6, 15, 18]
    assert history.step_count == 20
    for place, number in enumerate(history.steps):
        assert_step(history, place, truth[number])


@pytest.mark.gpu
@pytest.mark.parametrize("with_scaler", [False, True])
def test_no_gpu_sync(with_scaler):
    scaler = torch.amp.GradScaler("cuda", growth_interval=2) if with_scaler else None
    monitor, step = training(network("cuda"), "cuda", scaler=scaler, ring=8, warn_below=1e-8)

    def whole_step():
        step()
        if with_scaler:
            scaler._per_optimizer_states.clear()  # as update(), which waits for found_inf

    with monitor:
        whole_step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(30):
                whole_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert monitor.history().steps.tolist() == list(range(31))


@pytest.mark.gpu
def test_graph_replay():
    model, ring = network("cuda"), 4
    twin, truth = Twin(model), []
    twin_optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.01)
    monitor, step = training(model, "cuda", ring=ring)
    x = X.to("cuda")

    def twin_step():
        twin_optimizer.zero_grad()
        twin.model(x).square().mean().backward()
        truth.append(twin.step())
        twin_optimizer.step()

    with monitor:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
                twin_step()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(5):
            graph.replay()
            twin_step()
            assert len(monitor.history()) == len(truth)
        for _ in range(ring + 2):
            graph.replay()
            twin_step()
        with pytest.warns(RuntimeWarning, match="2 steps were measured, and overwritten"):
            history = monitor.history()
        model.add_module("later", nn.Linear(3, 3).to("cuda"))
        model(x).sum().backward()
        with pytest.raises(RuntimeError, match="added to the model after a CUDA graph was captured"):
            monitor.step()
    kept = [*range(8), *range(10, 14)]
    assert history.steps.tolist() == kept
    for place, number in enumerate(kept):
        for name in history.names:
            np.testing.assert_allclose(
                history.quantile(0.5)[place, history.names.index(name)],
                np.quantile(abs(truth[number][name]), 0.5),
                rtol=0.13,
            )


@pytest.mark.gpu
def test_capture_of_first_step():
    model = network("cuda")
    torch.cuda.synchronize()
    monitor, step = training(model, "cuda")
    twin = Twin(model)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # gradients and libraries' workspaces
        model(torch.ones(20, 6, device="cuda")).sum().backward()
    torch.cuda.synchronize()
    monitor._recorder.discard()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    x = X.to("cuda")
    twin.model.zero_grad()
    twin.model(x).square().mean().backward()
    assert_step(monitor.history(), 0, twin.step())
    monitor.close()


@pytest.mark.gpu
def test_capturing_with_every():
    """One capture for every cadence and for pauses."""
    monitor, step = training(network("cuda"), "cuda", every=3)
    with monitor:
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for number in range(1, 20):
            if number in (7, 14):
                (monitor.pause if number == 7 else monitor.resume)()
            graph.replay()
    history = monitor.history()
    assert history.steps.tolist() == [0, 3, 6, 15, 18]
    assert history.step_count == 20
    assert (history.count == history.count[0]).all()
