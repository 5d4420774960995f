"""Triton's interpreter without what it repeats in vain, which takes more than half of its time.

At each call of a device function it replaces some hundred functions of Triton's language again, and for each
number it makes it builds a table of dtypes again.
"""

from __future__ import annotations


def quicken() -> None:
    from triton.runtime import interpreter

    _replace_language_once(interpreter)
    _look_up_dtypes(interpreter)


def _replace_language_once(interpreter) -> None:
    """A kernel finds the language replaced already where it calls a device function."""
    original, replaced = interpreter._patch_lang, set()
    languages = interpreter.tl, interpreter.tl.core

    def patch(fn):
        seen = {of for of in languages if any(value is of for value in fn.__globals__.values())}
        if seen <= replaced:
            return None  # only a kernel's, which is the first, is restored
        replaced.update(seen)
        scope = original(fn)
        restore = scope.restore
        scope.restore = lambda: (replaced.clear(), restore())
        return scope

    interpreter._patch_lang = patch


def _look_up_dtypes(interpreter) -> None:
    original, known = interpreter._get_np_dtype, {}

    def np_dtype(dtype):
        scalar = dtype.scalar
        if scalar.name not in known:
            known[scalar.name] = original(scalar)
        return known[scalar.name]

    interpreter._get_np_dtype = np_dtype
