"""Triton where it is installed; without it a stand-in that lets the package import and says so on use."""

from __future__ import annotations

from typing import Any

__all__ = ["HAS_TRITON", "INTERPRETED", "libdevice", "require_triton", "tl", "triton"]

try:
    import triton
    import triton.language as tl
    from triton.language.extra import libdevice

    HAS_TRITON = True
    INTERPRETED = bool(triton.knobs.runtime.interpret)
except ImportError:
    HAS_TRITON = False
    INTERPRETED = False

    class _Absent:
        """Decorates and evaluates to itself, so that module-level kernel text is legal without Triton."""

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self

        def __getattr__(self, name: str) -> Any:
            return self

    triton = tl = libdevice = _Absent()


def require_triton() -> None:
    """Raise ImportError, with the remedy, where a kernel is asked for and Triton is not installed."""
    if not HAS_TRITON:
        raise ImportError(
            "a GPU tensor needs Triton, which is not installed here: pip install triton "
            "(Linux; on macOS and Windows move the tensor to the CPU, which needs no Triton)"
        )
