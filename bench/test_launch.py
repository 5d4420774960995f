"""What a call costs the host at the paper's own shape, where launching is nearly all there is.

On a GPU: real launches of 98,304 elements, in a row with one wait; memory alone takes 0.2 us forward and 0.3
backward in fp32 on an H200. Without a GPU: host side only. Kernels behind the real launch path do nothing;
tensors have 16 elements, so that eager PyTorch's arithmetic costs nothing.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import sigscale
from bench.harness.activations import bind
from bench.harness.internals import launches_without_gpu
from bench.harness.providers import made
from bench.harness.timing import OURS, Bench, Call, host_timer

pytest.importorskip("triton")

SHAPE = {"cuda": (32, 3, 32, 32), "cpu": (16,)}
CALLS = ("no grad", "forward", "forward+backward")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("function", sigscale.FUNCTIONS)
def test_launch(bench: Bench, function: str, call: str) -> None:
    gpu = bench.device.type == "cuda"
    about = {"kind": "launch", "function": function, "call": call + " (host side only, no GPU)" * (not gpu)}
    with nullcontext() if gpu else launches_without_gpu():
        bound = providers(function, call, bench.device)
        bench.compare(about, bound, baseline="plain", timer=host_timer)
        bench.steady(f"launch, {call}", bound[OURS])


def providers(function: str, call: str, device: torch.device) -> dict[str, Call]:
    """sigscale and what a user would write by hand; on a GPU all must agree, the first is compiled too."""
    x = torch.randn(SHAPE[device.type], device=device, requires_grad=call != "no grad")
    g = torch.randn_like(x) if call == "forward+backward" else None
    names = [OURS, *(["sigscale, sketch"] if g is not None else []), "eager", "plain"]
    if device.type == "cuda" and function == next(iter(sigscale.FUNCTIONS)):  # seconds a call
        names.append("compile")
    bound = {name: bind(made(name, function, x), x, g) for name in names}
    if device.type == "cuda":
        for name in {*bound} - {"plain"}:
            torch.testing.assert_close(bound[name](), bound["eager"]())
    return bound
