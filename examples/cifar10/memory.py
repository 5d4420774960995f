"""What makes small networks slow on a CPU besides arithmetic, and is avoided for the whole process."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30


def flush_subnormal_numbers() -> None:
    """Have numbers below 2^-126 computed as 0, in this thread and those it starts.

    Where gradients vanish they become subnormal, with which the processor is ten times slower: an epoch of
    the sigmoid network, its weights decayed, took 590 s in place of 31.
    """
    torch.set_flush_denormal(True)


def keep() -> bool:
    """Have the C library keep freed memory of up to 1 GiB; whether it does.

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
