"""Fair timing of alternatives: interleaved rounds, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median, quantiles
from types import MappingProxyType
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

Call = Callable[[], Any]
Timer = Callable[[Call], float]

OURS = "sigscale"
# A sample of the host's clock repeats a call for at least this long; longer on a GPU, where waiting at its
# end takes as long as a launch.
SAMPLE_SECONDS = {"cpu": 2e-4, "cuda": 2e-3}
LONG_SECONDS = 1e-2  # a call this long is a sample of its own
FLUSH_BYTES = 256 << 20  # more than the second-level cache of any GPU
HEAD_START_CYCLES, WARM_CALLS = 2_000_000, 20
CAPTURE_AFTER = 3  # calls
MIN_ROUNDS = 7
TRIAL_SECONDS, TRIAL_ROUNDS = 0.1, 2  # a shorter run is a trial, with fewer rounds


@dataclass(frozen=True)
class Timings:
    """Seconds of each call in each round; round i of every call ran within the same moment."""

    samples: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        return median(self.samples[name])

    def ratio(self, name: str, to: str) -> list[float]:
        """Times of `name` to those of `to` in the same rounds: median, lower and upper quartile."""
        ratios = [a / b for a, b in zip(self.samples[name], self.samples[to], strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return [middle, low, high]

    def results(self, baseline: str | None = None) -> Iterator[dict[str, Any]]:
        """A record per provider: sigscale over all others, these over the baseline, by default sigscale."""
        for name in self.samples:
            others = [*self.samples] if name == OURS else [baseline or OURS]
            over = {other: self.ratio(name, other) for other in others if other != name}
            yield {"provider": name, "seconds": self.seconds(name), "over": over}


def interleaved(
    calls: Mapping[str, Call], timer: Timer, seconds: float, repeats: Mapping[str, int] = MappingProxyType({})
) -> Timings:
    """Time the calls in turn, A B C A B C ..., for about `seconds`; in each round one sample of each.

    Every round starts with another call, so that none always comes first. A call that makes several steps
    names their number in `repeats`, and its samples are seconds of one step.
    """
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        timer(calls[name])
    least = TRIAL_ROUNDS if seconds < TRIAL_SECONDS else MIN_ROUNDS
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        first = rounds % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(timer(calls[name]) / repeats.get(name, 1))
        rounds += 1
    return Timings(samples)


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given: the device, the time it has, and where its results go."""

    fixture: BenchmarkFixture
    device: torch.device
    seconds: float
    record: Callable[..., None]

    @property
    def trial(self) -> bool:
        return self.seconds < TRIAL_SECONDS

    def longer(self, times: int) -> Bench:
        """For steps, which are long and unsteady; not in a trial."""
        return self if self.trial else replace(self, seconds=times * self.seconds)

    def compare(
        self,
        about: Mapping[str, Any],
        calls: Mapping[str, Call],
        refused: Mapping[str, str] = MappingProxyType({}),
        *,
        baseline: str | None = None,
        timer: Callable[[torch.device], Timer] | None = None,
        repeats: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Time checked calls in interleaved rounds, and record the comparison."""
        timings = interleaved(calls, (timer or device_timer)(self.device), self.seconds, repeats)
        for result in timings.results(baseline):
            self.record(**about, **result)
        for name, words in refused.items():
            self.record(**about, provider=name, seconds=None, over={}, refused=words)

    def steady(self, group: str, call: Call) -> None:
        """Fill pytest-benchmark's own columns, for `--benchmark-compare`: calls that are waited for."""

        def waiting() -> None:
            call()
            synchronize(self.device)

        self.fixture.group = group
        self.fixture(waiting)


def host_timer(device: torch.device) -> Timer:
    """Seconds per call by the host's clock, over a row of calls with one wait at its end.

    On a GPU that is the cost of issuing the work or of doing it, whichever is larger.
    """

    def timer(call: Call) -> float:
        once = _elapsed(call, 1, device)
        if once >= LONG_SECONDS:
            return once
        return _elapsed(call, 1 + int(SAMPLE_SECONDS[device.type] / once), device)

    return timer


def _elapsed(call: Call, repeats: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_timer(device: torch.device) -> Timer:
    """Seconds of a single call: on a GPU between two events, with cold caches; on a CPU `host_timer`.

    The caches are overwritten, then read through, so that no written line is left to be evicted within the
    sample. Both take the device about 150 us, in which the host issues the call; calls that take the host
    longer are timed as graphs (`replayed`), and `test_launch.py` shows the host's time.
    """
    if device.type != "cuda":
        return host_timer(device)
    scratch = torch.empty(FLUSH_BYTES // 4, dtype=torch.float32, device=device)

    def timer(call: Call) -> float:
        scratch.zero_()
        scratch.sum()
        return _between_events(call, 1)

    return timer


def warm_timer(device: torch.device) -> Timer:
    """Seconds of a call on a GPU whose caches hold what the previous call left there.

    The device first waits for about a millisecond, in which the host issues the calls.
    """

    def timer(call: Call) -> float:
        torch.cuda._sleep(HEAD_START_CYCLES)
        call()
        return _between_events(call, WARM_CALLS)

    return timer


def _between_events(call: Call, repeats: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / repeats


def replayed(calls: Mapping[str, Call], device: torch.device, waiting: Container[str]) -> dict[str, Call]:
    """On a GPU, calls as CUDA graphs, which hide the host's time; those in `waiting` cannot be captured."""
    if device.type != "cuda":
        return dict(calls)
    return {name: call if name in waiting else _captured(call, device) for name, call in calls.items()}


def _replay(graph: torch.cuda.CUDAGraph, call: Call) -> None:
    """Replay a graph; its call keeps the tensors that it reads alive."""
    graph.replay()


def _captured(call: Call, device: torch.device) -> Call:
    stream, outer = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        for _ in range(CAPTURE_AFTER):
            call()
    outer.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        call()
    return partial(_replay, graph, call)
