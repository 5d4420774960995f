"""Memory that a step frees and the next one takes again is kept."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT = 1 << 30


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
