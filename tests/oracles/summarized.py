"""Summaries as the kernel that ends a monitored step makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from sigscale.kernels import record
from sigscale.kernels.record import Layout, Records, Wanted


def summarized(
    counts: Tensor, scale: Tensor, q: Tensor, thresholds: Tensor, m: int, *, magnitude: bool
) -> Tensor:
    """What `summary.summarize` gives, by the first step of a monitor that has these rows and a total."""
    rows, numbers = len(counts) + 1, {"dtype": torch.float64, "device": counts.device}
    ring = torch.full((1, rows, 5 + len(q) + len(thresholds)), torch.nan, **numbers)
    ticket = torch.zeros(record.HEAD + 1, dtype=torch.int64, device=counts.device)
    ticket[record.ON] = 1
    counts, scale = (
        torch.cat([torch.zeros_like(counts[:1]), counts]),
        torch.cat([torch.ones_like(scale[:1]), scale]),
    )
    there = Records(counts, torch.zeros_like(counts), torch.empty_like(scale), ring, ticket)
    record.finish(there, scale, Layout(rows, 1, rows), Wanted(q, thresholds, m, magnitude, 1))
    return ring[0, 1:]
