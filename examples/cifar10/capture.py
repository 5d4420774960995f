"""Whole steps as CUDA graphs: one launch in place of a hundred, which small networks spend their time on."""

from __future__ import annotations

from collections.abc import Callable

import torch

EAGER = 3
"""Calls made as they are before a capture: they load kernels and allocate what is allocated once."""


class Captured:
    """A function of tensors that stay where they are, without arguments or result.

    On a GPU its calls are captured in a graph after the first few, and replayed from then on; `replay=False`
    makes a call as it is.  Elsewhere it is just called.  Calls are to be made on one and the same stream.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.function, self.graphs = function, device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, *, replay: bool = True) -> None:
        self._calls += 1
        if not (self.graphs and replay and self._calls > EAGER):
            return self.function()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            # Relaxed, since tables of addresses are made in pinned memory while the graph is captured.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="relaxed"):
                self.function()
            self._graph = graph
        return self._graph.replay()
