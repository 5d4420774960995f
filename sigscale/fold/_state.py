"""What a model's forward changes in its modules: buffers that it writes into and attributes that it sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

MODULE_STATE = frozenset(vars(nn.Module()))
Content = list[tuple[Any, tuple[int, Tensor] | None]]


class Change(NamedTuple):
    """What forward changed, such as an attribute; whether it is a buffer that forward wrote into."""

    name: str
    is_written_buffer: bool


class State:
    """The attributes and buffers of a model, as they are now."""

    def __init__(self, root: nn.Module) -> None:
        self._before = {name: (value, _content(value)) for name, value in attributes(root)}

    def changes(self, root: nn.Module) -> list[Change]:
        """What is different by now."""
        buffers = {name for name, _ in root.named_buffers(remove_duplicate=False)}
        found = []
        for name, value in attributes(root):
            old, content = self._before.get(name, (None, []))
            if value is not old or not _is_same(content, value):
                found.append(Change(name, value is old and name in buffers))
        return found


def attributes(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the modules hold of their own, but for parameters and other modules."""
    for path, module in root.named_modules():
        for name, value in (*vars(module).items(), *module._buffers.items()):
            made_by_fx = path == "" and name.startswith("_tensor_constant")
            if name not in MODULE_STATE and not made_by_fx:
                yield f"{path}.{name}" if path else name, value


def _content(value: Any) -> Content:
    """What a later write into a value would change."""
    leaves = tree_leaves(value)
    return [(x, (_version(x), x.detach().clone()) if _holds_numbers(x) else None) for x in leaves]


def _is_same(content: Content, value: Any) -> bool:
    """Whether nothing was written into a value; a write through x.data shows in the numbers alone."""
    leaves = tree_leaves(value)
    return len(leaves) == len(content) and all(
        x is old and (held is None or (held[0] == _version(x) and torch.equal(_bytes(held[1]), _bytes(x))))
        for x, (old, held) in zip(leaves, content, strict=True)
    )


def _holds_numbers(x: Any) -> bool:
    if not isinstance(x, Tensor) or isinstance(x, nn.Parameter):
        return False
    return x.layout is torch.strided and not (x.is_quantized or x.is_meta or x.is_nested)


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _bytes(x: Tensor) -> Tensor:
    return x.detach().resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)
