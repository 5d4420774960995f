"""A command line without what is of one machine only."""

from __future__ import annotations

from collections.abc import Iterable

PLACES = ("--benchmark-json", "--data")


def without_places(arguments: Iterable[str]) -> list[str]:
    """The arguments that say what was measured, not where on this machine something lies."""
    kept, follows = [], False
    for argument in arguments:
        if not follows and not argument.startswith(PLACES):
            kept.append(argument)
        follows = argument in PLACES
    return kept
