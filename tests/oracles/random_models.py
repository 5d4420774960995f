"""Random small models, as programs that a module and an oracle run alike.

A program is a list of statements about registers, all of shape (3, 4, 6). What computes an activation is
passed to it: the model's modules and calls, or formulas in fp64 with an alpha.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss

SHAPE = BATCH, CHANNELS, LENGTH = 3, 4, 6
FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": lambda u: 1 / (1 + torch.exp(-u)),
    "arctan": torch.atan,
    "softsign": lambda u: u / (1 + u.abs()),
}
MODULES = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softsign": nn.Softsign}
CALLS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "tanh": [torch.tanh, lambda h: h.tanh(), F.tanh],
    "sigmoid": [torch.sigmoid, lambda h: h.sigmoid(), torch.special.expit],
    "arctan": [torch.arctan, torch.atan, lambda h: h.arctan()],
    "softsign": [F.softsign],
}
IN_PLACE = {"tanh": lambda h: h.tanh_(), "sigmoid": lambda h: h.sigmoid_(), "arctan": lambda h: h.atan_()}


def statement(change: Callable[..., Any]) -> Callable[..., Any]:
    """An operation that returns its first operand after a statement in place."""

    def operation(m: Any, a: Any, b: Any) -> Any:
        change(m, a, b)
        return a

    return operation


def increased(m: Any, a: Any, b: Any) -> Any:
    old = a
    a += b
    a -= 0.5 * b
    return old


def swapped(m: Any, a: Any, b: Any) -> Any:
    first, second = a.chunk(2, 1)
    return torch.cat((second, first), 1)


def running(m: Any, a: Any, b: Any) -> Any:
    m.mean.mul_(0.5).add_(b.mean((0, 2)), alpha=0.5)
    return a - m.mean.view(1, -1, 1)


def counted(m: Any, a: Any, b: Any) -> Any:
    m.count.add_(1)
    return a * m.count


def counted_by_data(m: Any, a: Any, b: Any) -> Any:
    m.count.data.add_(1)
    m.count.mul_(3)
    return a * m.count


def unpacked(m: Any, a: Any, b: Any) -> Any:
    first, second = a.chunk(2, 1)
    first.detach().mul_(0.5)
    return torch.cat((first + second, second - first), 1)


def divided_by_sizes(m: Any, a: Any, b: Any) -> Any:
    size = old = a.size(0)
    size += 1
    return a / size + b / old


def row_subtracted(m: Any, a: Any, b: Any) -> Any:
    row = a.view(-1)
    row -= b.reshape(-1)
    return a


def column_set(m: Any, a: Any, b: Any) -> None:
    a.mT[:, 0] = b[..., 0]


PASSING: list[Callable[[Any, Any, Any], Any]] = [
    lambda m, a, b: F.relu(a),
    lambda m, a, b: F.leaky_relu(a, 0.2),
    lambda m, a, b: -a,
    lambda m, a, b: a.abs(),
    lambda m, a, b: a * 0.5,
    lambda m, a, b: a / 1.5,
    lambda m, a, b: a * m.gain,
    lambda m, a, b: m.gain.exp() * a,
    lambda m, a, b: a + b,
    lambda m, a, b: torch.sub(a, b, alpha=2),
    lambda m, a, b: torch.maximum(a, b),
    lambda m, a, b: torch.where(b > 0, a, -a),
    lambda m, a, b: torch.cat(a.chunk(2, 1), 1),
    lambda m, a, b: torch.stack(a.unbind(1), 1),
    lambda m, a, b: torch.cat((a[:, :1], b[:, 1:]), 1),
    lambda m, a, b: torch.cat([a.narrow(2, 0, 2), b.split([2, 4], 2)[1]], dim=-1),
    lambda m, a, b: torch.stack((a, b)).mean(0),
    lambda m, a, b: a.transpose(1, 2).contiguous().view(BATCH, LENGTH, CHANNELS).permute(0, 2, 1),
    lambda m, a, b: a.reshape(BATCH, -1).view(SHAPE),
    lambda m, a, b: a.flatten(1).unflatten(1, (CHANNELS, LENGTH)),
    lambda m, a, b: a.flip(1).roll(1, 2),
    lambda m, a, b: F.max_pool1d(a, 3, 1, 1),
    lambda m, a, b: F.avg_pool1d(a, 3, 1, 1),
    lambda m, a, b: F.pad(a, (1, 0))[:, :, :-1],
    lambda m, a, b: a - a.mean(2, keepdim=True),
    lambda m, a, b: a.amax(1, keepdim=True).expand_as(b).contiguous(),
    lambda m, a, b: a + b.max(2, keepdim=True)[0],
    lambda m, a, b: a.sort(1).values,
    lambda m, a, b: a.topk(LENGTH, 2)[0],
    lambda m, a, b: a.gather(1, a.argsort(1)),
    lambda m, a, b: a.gather(2, a.max(2, keepdim=True).indices.expand(SHAPE)),
    lambda m, a, b: a.cummax(2).values,
    lambda m, a, b: a.cumsum(1) * 0.5,
    lambda m, a, b: torch.diff(a, dim=2, prepend=b[..., :1]),
    lambda m, a, b: a.diff(1, 2, None, b[..., -1:]),
    lambda m, a, b: F.prelu(a, m.gain.flatten()),
    lambda m, a, b: torch.cat(tensors=a.split([1, 3], 1)[::-1], dim=1),
    lambda m, a, b: torch.hstack(a.tensor_split(2, 1)),
    lambda m, a, b: a - a.kthvalue(2, 1, keepdim=True).values,
    lambda m, a, b: a.median(1, keepdim=True).values - a.median() + a,
    lambda m, a, b: a.cummax(1)[0] - a.mode(1, True)[0],
    lambda m, a, b: a.max(dim=1, keepdim=True).values + a,
    lambda m, a, b: a.gather(1, a.sort(1).indices),
    lambda m, a, b: a.index_select(0, b[:, 0, 0].argsort()),
    lambda m, a, b: F.max_pool1d(a, 1, return_indices=True)[0] + F.max_pool1d(a[0], 1)[None],
    lambda m, a, b: a.mean(a.dim() - 1, keepdim=True) + a.mean((a.dim() - 1,), True) + a,
    lambda m, a, b: torch.where(input=a, condition=b > 0, other=torch.mul(input=b, other=0.1)),
    lambda m, a, b: a.where(other=-a, condition=b > 0).to(dtype=a.dtype),
    lambda m, a, b: torch.add(input=a, other=torch.relu(input=b), alpha=3),
    lambda m, a, b: a.unsqueeze_(0).squeeze_(0).add_(b),
    lambda m, a, b: a + 0 * b.clone().mul_(m.gain.view_as(m.gain)),
    lambda m, a, b: torch.zeros_like(a).copy_(a),
    lambda m, a, b: torch.zeros_like(b) + a,
    lambda m, a, b: m.relu(a),
    lambda m, a, b: m.prelu(a),
    lambda m, a, b: m.dropout(a.clone()),
    statement(lambda m, a, b: a.add_(b)),
    statement(lambda m, a, b: a.mul_(0.5)),
    statement(lambda m, a, b: a.mul_(m.gain)),
    statement(lambda m, a, b: F.relu_(a)),
    statement(lambda m, a, b: F.relu(a, inplace=True)),
    statement(lambda m, a, b: m.relu(a)),
    statement(lambda m, a, b: a.data.neg_()),
    statement(lambda m, a, b: a[:, 0].add_(b[:, 1])),
    statement(lambda m, a, b: a.__setitem__((slice(None), 0), 0)),
    statement(lambda m, a, b: a.__setitem__((slice(None), slice(1, 3)), b[:, :2])),
    statement(lambda m, a, b: a.__setitem__(b > 0, 0)),
    statement(lambda m, a, b: a.chunk(2, 1)[0].sub_(b.chunk(2, 1)[1])),
    statement(lambda m, a, b: a.transpose(1, 2).mul_(0.5)),
    statement(lambda m, a, b: a.copy_(b)),
    statement(lambda m, a, b: a.copy_(non_blocking=False, other=b)),
    statement(lambda m, a, b: a.sub_(b, alpha=3)),
    statement(lambda m, a, b: torch.relu_(a)),
    statement(lambda m, a, b: F.leaky_relu(a, 0.1, True)),
    statement(lambda m, a, b: a.__setitem__((slice(None), 0), b[:, 1])),
    statement(lambda m, a, b: a.view(-1).add_(b.reshape(-1))),
    statement(lambda m, a, b: a.detach().select(1, 0).neg_()),
    statement(column_set),
    increased,
    swapped,
    counted,
    counted_by_data,
    unpacked,
    divided_by_sizes,
    row_subtracted,
]
REFUSED: list[Callable[[Any, Any, Any], Any]] = [  # unless all is of scale 1
    lambda m, a, b: a + 1,
    lambda m, a, b: a * b,
    lambda m, a, b: a.softmax(1),
    lambda m, a, b: torch.exp(-a.abs()),
    lambda m, a, b: F.prelu(a, b.mean((0, 2))),
    lambda m, a, b: torch.lerp(a, b, 0.3),
    lambda m, a, b: a.clamp(-1, 1),
    lambda m, a, b: a.masked_fill(b > 0.1, 0.0),
    lambda m, a, b: a + m.gain,
    lambda m, a, b: a + 0 * b.norm(),
    lambda m, a, b: torch.aminmax(a, dim=1, keepdim=True)[1] + a,
    lambda m, a, b: a.max(2, keepdim=True)[1] * a,
    running,
    statement(lambda m, a, b: a.add_(1)),
    statement(lambda m, a, b: a.mul_(b)),
    statement(lambda m, a, b: a.gt_(0)),
    statement(lambda m, a, b: torch._foreach_mul_([a], 0.5)),
    statement(lambda m, a, b: torch.add(a, b, out=a)),
    statement(lambda m, a, b: a.__setitem__((slice(None), 0), 1.0)),
]


class Program(nn.Module):
    """A random model. `style` says how it computes activations: by "modules", "calls" or "sigscale" calls."""

    def __init__(self, seed: int, style: str) -> None:
        super().__init__()
        self.style, rng = style, random.Random(seed)
        torch.manual_seed(seed)
        self.layers = nn.ModuleList()
        self.relu, self.prelu, self.dropout = nn.ReLU(inplace=rng.random() < 0.5), nn.PReLU(), nn.Dropout(0.3)
        self.gain = nn.Parameter(torch.rand(CHANNELS, 1) + 0.5)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.program: list[tuple[Any, ...]] = []
        self._add(rng, "layer")
        self._add(rng, "activation")
        risk = rng.choice([0.0, 0.0, 0.0, 0.1, 0.3])
        for _ in range(rng.randint(3, 14)):
            kind = rng.choices(["layer", "activation", "passing", "refused"], [4, 2, 4, 4 * risk])[0]
            self._add(rng, kind)
        self._add(rng, "layer")
        self.returns = rng.choice([1, 1, 2])
        self.double().train(rng.random() < 0.2)
        self.dropout.eval()

    def _add(self, rng: random.Random, kind: str) -> None:
        registers = len(self.program) + 1
        a = registers - 1 if rng.random() < 0.7 else rng.randrange(registers)
        b = rng.randrange(max(0, registers - 3), registers)
        if kind == "layer":
            choices = [nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1, groups=2), nn.Linear(LENGTH, LENGTH)]
            choices += [nn.BatchNorm1d(4), nn.LayerNorm(LENGTH), nn.GroupNorm(2, 4)]
            layer = rng.choices(choices, [8, 3, 6, 2, 0.3, 0.3])[0]
            old = [i for i, other in enumerate(self.layers) if not isinstance(other, tuple(MODULES.values()))]
            if old and rng.random() < 0.1:
                self.program.append(("layer", rng.choice(old), a, b))
                return
            self.layers.append(layer)
            self.program.append(("layer", len(self.layers) - 1, a, b))
        elif kind == "activation":
            if self.style == "modules":
                name = rng.choice([*MODULES])
                old = [i for i, other in enumerate(self.layers) if isinstance(other, MODULES[name])]
                if not old or rng.random() < 0.7:
                    self.layers.append(MODULES[name]())
                    old = [len(self.layers) - 1]
                self.program.append(("activation", (name, rng.choice(old)), a, b))
            else:
                name = rng.choice([*FORMULAS])
                which = rng.randrange(len(CALLS[name])) if rng.random() < 0.8 or name not in IN_PLACE else -1
                self.program.append(("activation", (name, which), a, b))
        else:
            operations = PASSING if kind == "passing" else REFUSED
            self.program.append((kind, rng.randrange(len(operations)), a, b))

    def activation(self, name: str, which: int, x: Any) -> Any:
        if self.style == "modules":
            return self.layers[which](x)
        if self.style == "sigscale":
            y = getattr(ss, name)(x, 2.5)
            return y if which >= 0 else x.copy_(y)
        return CALLS[name][which](x) if which >= 0 else IN_PLACE[name](x)

    def forward(self, x: Any) -> Any:
        return self.run(x, self.activation)

    def run(self, x: Any, activation: Callable[[str, int, Any], Any]) -> Any:
        """The registers' last values, with activations that are passed."""
        values = [x]
        for kind, what, a, b in self.program:
            if kind == "layer":
                values.append(self.layers[what](values[a]))
            elif kind == "activation":
                values.append(activation(*what, values[a]))
            else:
                operations = PASSING if kind == "passing" else REFUSED
                values.append(operations[what](self, values[a], values[b]))
        return values[-1] if self.returns == 1 else (values[-1], values[-1].abs() + x)


def by_formula(model: Program, x: Tensor, alpha_of: Callable[[str, int], Any]) -> Any:
    """What a plain model computes where each activation is alpha * f(x / alpha), in fp64."""

    def activation(name: str, which: int, h: Tensor) -> Tensor:
        alpha = alpha_of(name, which)
        y = alpha * FORMULAS[name](h / alpha)
        return h.copy_(y) if which < 0 else y

    return model.run(x, activation)
