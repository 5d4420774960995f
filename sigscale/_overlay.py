"""A class laid over an object's own while something watches it; copies of the object have the class below.

A hook in the object's dictionary would be copied and pickled with it. And torch.compile, which does not
notice new hooks, guards classes: it recompiles what runs through the object, and nothing else.
"""

from __future__ import annotations

import copy
from typing import Any

from torch.nn.utils import parametrize

BELOW = "_class_below"


def class_over(base: Any, members: dict[str, Any], hidden: tuple[str, ...] = ()) -> type:
    """A subclass with the name of `base` and additional members; its objects copy as those of `base`."""

    def bare(self: Any) -> Any:
        twin: Any = object.__new__(class_below(self))
        vars(twin).update((name, value) for name, value in vars(self).items() if name not in hidden)
        return twin

    def reduce_ex(self: Any, protocol: Any) -> Any:
        if type(self) is not over:
            return base.__reduce_ex__(self, protocol)
        return bare(self).__reduce_ex__(1)  # pickle takes later protocols only from objects of that class

    def deep_copy(self: Any, memo: dict[int, Any]) -> Any:
        twin = bare(self)
        if type(self) is over:
            return copy.deepcopy(twin, memo)
        memo[id(self)] = twin  # a parametrized module, which PyTorch copies in this way
        vars(twin).update(copy.deepcopy(vars(twin), memo))
        return twin

    members = {**members, "__reduce_ex__": reduce_ex, "__deepcopy__": deep_copy, BELOW: base}
    members |= {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    over: type = type(base.__name__, (base,), members)
    return over


def is_overlaid(thing: Any) -> bool:
    return class_below(thing) is not type(thing)


def class_below(thing: Any) -> type:
    """The object's class without the overlay, even if torch.nn.utils.parametrize has derived from that."""
    kind: Any = type(thing)
    below: type = vars(kind).get(BELOW, kind)
    if BELOW in vars(kind.__base__) and parametrize.is_parametrized(thing):
        members = {
            name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")
        }
        below = type(kind)(kind.__name__, (vars(kind.__base__)[BELOW],), members)
    return below


def uncover(thing: Any) -> None:
    """Restore the class below, unless someone else has changed the object's class meanwhile."""
    if is_overlaid(thing):
        thing.__class__ = class_below(thing)
