"""Fair timing of alternatives: interleaved rounds, so that a machine's moods hit all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Call = Callable[[], object]

# A sample of the host's clock repeats a call until it lasts so long, on a GPU longer, since the waiting at
# its end takes as long as a launch.
SAMPLE_SECONDS = {"cpu": 2e-4, "cuda": 2e-3}
LONG_SECONDS = 1e-2  # a call that lasts so long is a sample by itself
FLUSH_BYTES = 256 << 20  # more than the second-level cache of any GPU
HEAD_START_CYCLES, WARM_CALLS = 2_000_000, 20
MIN_ROUNDS = 7
TRIAL_SECONDS, TRIAL_ROUNDS = 0.1, 2  # below so many seconds a run is a trial, with fewer rounds


@dataclass(frozen=True)
class Timings:
    """Seconds of each call in each round; round i of every call ran within the same moment."""

    samples: dict[str, list[float]]

    def seconds(self, name: str) -> float:
        return median(self.samples[name])

    def spread(self, name: str) -> list[float]:
        """Seconds: median, lower and upper quartile."""
        return _middle_half(self.samples[name])

    def ratio(self, name: str, to: str) -> list[float]:
        """Times of `name` to those of `to` in the same rounds: median, lower and upper quartile."""
        return _middle_half([a / b for a, b in zip(self.samples[name], self.samples[to], strict=True)])

    def added(self, name: str, to: str) -> list[float]:
        """Seconds that `name` took longer than `to` in the same rounds: median, quartiles."""
        return _middle_half([a - b for a, b in zip(self.samples[name], self.samples[to], strict=True)])

    def divided_by(self, repeats: Mapping[str, int]) -> Timings:
        """Of calls that each did a thing `repeats` times: the seconds of the thing."""
        return Timings({name: [t / repeats[name] for t in times] for name, times in self.samples.items()})


def _middle_half(values: list[float]) -> list[float]:
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def interleaved(calls: Mapping[str, Call], timer: Callable[[Call], float], seconds: float) -> Timings:
    """Time the calls in turn, A B C A B C ..., for about `seconds`; in each round one sample of each.

    Every round starts with another call, so that none always comes first.
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
            samples[name].append(timer(calls[name]))
        rounds += 1
    return Timings(samples)


def host_timer(device: torch.device) -> Callable[[Call], float]:
    """Seconds a call by the host's clock, in a row of calls that is waited for once, at its end.

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


def waited_for(call: Call, device: torch.device) -> Call:
    """The call together with what it has the device do."""

    def waiting() -> None:
        call()
        synchronize(device)

    return waiting


def device_timer(device: torch.device) -> Callable[[Call], float]:
    """Seconds of a single call: on a GPU between two events, after its caches were overwritten.

    That is what `triton.testing.do_bench` measures, but of one call at a time, so that rounds can be
    interleaved. The overwriting also gives the host time to issue the call, so that small sizes show the
    device's time; `test_launch.py` shows the host's. On a CPU this is `host_timer`.
    """
    if device.type != "cuda":
        return host_timer(device)
    scratch = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)

    def timer(call: Call) -> float:
        scratch.zero_()
        return _between_events(call, 1)

    return timer


def warm_timer(device: torch.device) -> Callable[[Call], float]:
    """Seconds of a call on a GPU whose caches hold what the call before left there.

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
