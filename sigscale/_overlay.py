"""A class laid over an object's own while something watches it; copies of the object have the class below.

A hook in an object's dictionary would be copied and pickled with it. And torch.compile, which does not look
for new hooks, guards classes: it compiles again what runs through the object, and nothing else.
"""

from __future__ import annotations

import copy
from typing import Any

BELOW = "_class_below"


def class_over(base: Any, members: dict[str, Any], hidden: tuple[str, ...] = ()) -> type:
    """A subclass that goes by the name of `base`, with these members more; its objects copy as `base`'s."""

    def bare(self: Any) -> Any:
        twin: Any = object.__new__(base)
        vars(twin).update((name, value) for name, value in vars(self).items() if name not in hidden)
        return twin

    def reduce_ex(self: Any, protocol: Any) -> Any:
        if type(self) is not over:
            return base.__reduce_ex__(self, protocol)
        return bare(self).__reduce_ex__(1)  # pickle takes later protocols for objects of that very class only

    def deep_copy(self: Any, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(bare(self), memo)

    members = {**members, "__reduce_ex__": reduce_ex, BELOW: base}
    if hasattr(base, "__deepcopy__"):
        members["__deepcopy__"] = deep_copy
    members |= {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    over: type = type(base.__name__, (base,), members)
    return over


def is_overlaid(thing: Any) -> bool:
    return BELOW in vars(type(thing))


def class_below(thing: Any) -> type:
    """The object's class without what lies over it."""
    below: type = vars(type(thing)).get(BELOW, type(thing))
    return below


def uncover(thing: Any) -> None:
    """Give the object the class below back, unless somebody else has changed its class meanwhile."""
    if is_overlaid(thing):
        thing.__class__ = class_below(thing)
