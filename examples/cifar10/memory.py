"""What makes small networks slow on a CPU besides arithmetic, and is avoided."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30
SUBNORMAL = 2.0**-140


@contextmanager
def subnormal_numbers_flushed() -> Iterator[None]:
    """Numbers below 2^-126 are computed as 0, in this thread and those it starts.

    Where gradients vanish they become subnormal, with which the processor is ten times slower: an epoch of
    the sigmoid network, its weights decayed, took 590 s in place of 31.
    """
    before = bool(torch.full((), SUBNORMAL).mul(1.0) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def keep() -> bool:
    """For the whole process, have the C library keep freed memory of up to 1 GiB; whether it does.

    As it comes, glibc gives tensors of more than 32 MiB, and what is free at the end of its heap, back to the
    system, which fills them with zeros, page by page, when they are taken again: on a CPU that took longer
    than the convolutions themselves.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))
