"""What a CUDA graph would hold, without a GPU: streams, captures and copies are stood in for and recorded."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch

import sigscale as ss
from sigscale.kernels import device, multi_tensor, summary
from sigscale.monitor import _recorder
from sigscale.monitor._rows import Rows

CUDA = torch.device("cuda", 0)


class Stream:
    def __init__(self, gpu) -> None:
        self.gpu = gpu

    def synchronize(self) -> None:
        self.gpu.waited.append(self)


class Gpu:
    """One device: the current stream, those being captured, and (stream, numbers) of each copy to it."""

    def __init__(self) -> None:
        self.private, self.spare = Stream(self), Stream(self)
        self.current = Stream(self)
        self.capturing: set[Stream] = set()
        self.copies: list[tuple[Stream, tuple[float, ...]]] = []
        self.waited: list[Stream] = []
        self.recorded: list[Stream] = []

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def copy(self, tensor, target):
        assert self.current not in self.capturing, "a node that every replay repeats"
        self.copies.append((self.current, tuple(tensor.flatten().tolist())))
        return tensor.clone()


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: gpu.current)
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.current in gpu.capturing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: gpu.recorded.append(stream))
    monkeypatch.setattr(device, "outside_captures", nullcontext)
    monkeypatch.setattr(device, "_private_streams", lambda target: (gpu.private, gpu.spare))
    monkeypatch.setattr(device, "_captured", {})
    for module in (device, summary):
        monkeypatch.setattr(module, "to_device", gpu.copy)
    return gpu


def tables(gradients, first):
    """What a monitored step needs on the device; `first` sets a test's apart from what is cached already."""
    return [
        *multi_tensor.chunks((first, 70_000), (0, 1), CUDA),
        multi_tensor.sizes((first, 70_000), CUDA),
        multi_tensor.addresses(gradients, CUDA),
        summary.on_device((0.25, first), CUDA),
        *summary.edges_on(CUDA, 3, magnitude=True),
    ]


def test_warm_up_on_another_stream_leaves_a_capture_only_addresses(gpu):
    gradients = [torch.randn(5), torch.randn(3)]
    with gpu.stream(Stream(gpu)):
        warm = tables(gradients, 1001)
        assert gpu.current in gpu.recorded
    before = len(gpu.copies)
    gpu.capturing.add(gpu.current)
    captured = tables(gradients, 1001)
    assert gpu.copies[before:] == [(gpu.private, tuple(gradient.data_ptr() for gradient in gradients))]
    assert all(map(torch.equal, captured, warm))


def test_first_capture_copies_aside_and_waits(gpu):
    gradients = [torch.randn(5), torch.randn(3)]
    gpu.capturing.add(gpu.current)
    captured = tables(gradients, 1002)
    assert {stream for stream, _ in gpu.copies} == {gpu.private} == set(gpu.waited)
    kept = [tensor for result in device._captured.values() for tensor in result]
    assert all(any(tensor is one for one in kept) or tensor.dim() == 1 for tensor in captured)
    assert [*captured[0]] == [1002, 70_000]
    gpu.capturing.clear()
    copied = len(gpu.copies)
    tables(gradients, 1002)
    assert len(gpu.copies) == copied + 1  # addresses, which are queued outside of captures


def test_a_capture_on_a_private_stream(gpu):
    """Which PyTorch may give to anybody, since it has only so many."""
    gpu.current = gpu.private
    gpu.capturing.add(gpu.current)
    tables([torch.randn(5)], 1003)
    assert {stream for stream, _ in gpu.copies} == {gpu.spare} == set(gpu.waited)


def test_addresses_are_queued_and_kept_for_a_stream(gpu):
    gradients = [torch.randn(5)]
    for stream in (gpu.current, Stream(gpu)):
        with gpu.stream(stream):
            first, again = (multi_tensor.addresses(gradients, CUDA) for _ in range(2))
            assert first is again
            assert gpu.copies[-1] == (stream, (gradients[0].data_ptr(),))
    assert len(gpu.copies) == 2
    assert not gpu.waited


def test_sketch_that_a_replay_would_clear(gpu):
    sketch = ss.QuantileSketch()
    gpu.capturing.add(gpu.current)
    with pytest.raises(RuntimeError, match=r"replays would clear .* QuantileSketch\(device='cuda:0'\)$"):
        sketch.counts_on(CUDA)
    assert sketch.device is None


def test_recorder_loads_kernels_for_any_alignment(monkeypatch):
    """A module loaded during a capture fails it; gradients in buckets may lie anywhere."""
    statistics, rows = _recorder.Statistics((0.5,), (), True, 3), Rows([], ["0"])
    recorder = _recorder.Recorder(torch.device("cpu"), statistics, rows, 4)
    loaded = []

    def count_many(counts, rows, tensors, m, on=None):
        loaded.extend(
            (group[0].dtype, multi_tensor.is_aligned(group)) for group, _ in multi_tensor.by_kind(tensors)
        )

    monkeypatch.setattr(_recorder.devices, "is_gpu", lambda device: True)
    monkeypatch.setattr(_recorder, "count_many", count_many)
    dtypes = (torch.bfloat16, torch.float32, torch.float64)
    recorder.load(dtypes)
    assert sorted(loaded, key=str) == sorted(((d, a) for d in dtypes for a in (False, True)), key=str)
