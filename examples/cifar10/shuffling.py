"""The order of the images, a function of seed and epoch alone: the same on every device, in any group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def generator(seed: int, epoch: int = 0) -> torch.Generator:
    """Of the initial parameters (epoch 0), on the CPU."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1)[0]  # the CPU's generator uses 32 bits
    return torch.Generator().manual_seed(int(mixed))


def orders(seeds: Sequence[int], epoch: int, images: int, device: torch.device) -> Tensor:
    """For each seed a permutation of the images, (seeds, images) int64, made on the device.

    Images are sorted by 64 random bits each, the outputs of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014),
    whose start is drawn from seed and epoch.
    """
    starts = [int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]) for seed in seeds]
    start = torch.tensor([_signed(number) for number in starts], device=device)
    z = start[:, None] + torch.arange(1, images + 1, device=device) * _signed(GOLDEN)
    for shift, factor in MIX:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return (z ^ _shifted(z, 31)).argsort(dim=1, stable=True)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """As unsigned numbers are shifted to the right."""
    return (z >> bits) & ((1 << 64 - bits) - 1)


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
