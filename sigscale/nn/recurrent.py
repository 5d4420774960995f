"""Recurrent modules whose tanh is alpha-scaled: `sigscale.nn.RNN`, `LSTM`, `GRU`.

A cell with alpha * tanh(z / alpha) in place of every tanh(z) is the plain cell with other weights, up to a
gain: its states are h = alpha h~ and c = alpha c~, where h~ and c~ are those of the plain cell. A weight is
multiplied by the scale of what it reads and divided by the scale of what it adds to:

    reads     an input of the module, or nothing, as a bias: 1;  states h, also of the layer below: alpha
    adds to   z of a gate, whose logistic function is not scaled: 1;  z of a tanh: alpha

So PyTorch's cells (cuDNN, MIOpen, oneDNN) run on rescaled weights and on h / alpha and c / alpha, and their
results are multiplied by alpha. A projection is linear and stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from .._checks import check_learned_alpha
from ..kernels.device import is_capturing
from .activation import Scaled

IS_TANH = {"RNN_TANH": (1,), "LSTM": (0, 0, 1, 0), "GRU": (0, 0, 1)}
"""By PyTorch's name for the cell: which blocks of a weight's rows belong to a tanh."""

Pieces = tuple[tuple[int | None, int], ...]
"""Indices of weights, or None for a gap between weights, each with its number of factors."""


class Recurrent(Scaled, nn.RNNBase):
    """Base of the recurrent modules; see `sigscale.nn.LSTM`."""

    def __init__(self, *args: Any, alpha: float = 2.0, learnable: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        like = flat_weights(self)[0]
        self.set_alpha(alpha, learnable=learnable, device=like.device, dtype=like.dtype)

    def set_alpha(
        self, alpha: Any, *, learnable: bool = False, num_parameters: int = 1, **options: Any
    ) -> None:
        """Make alpha this number or, if `learnable`, a parameter that starts there."""
        if num_parameters != 1:
            raise ValueError(
                "num_parameters must be 1 for a recurrent module, whose units read each other's states; got "
                f"{num_parameters!r}: leave it out"
            )
        if learnable and self.mode not in IS_TANH:
            raise ValueError(
                "learnable=True needs a tanh; got nonlinearity='relu', which is the same for every alpha: "
                "leave learnable out"
            )
        super().set_alpha(alpha, learnable=learnable, **options)

    def reset_parameters(self) -> None:
        """Draw new weights, as PyTorch does, and reset a learned alpha; a fixed one stays."""
        super().reset_parameters()
        if "log2_alpha" in self._parameters:  # not yet when torch's constructor calls this
            self.reset_alpha()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tracer = tracer_of(*args, *kwargs.values())
        if tracer is not None and (path := tracer.path_of_module(self)):
            return tracer.create_proxy("call_module", path, args, kwargs)  # hooks run with the graph
        return super().__call__(*args, **kwargs)

    def forward(self, input: Any, hx: Any = None) -> Any:
        alpha = self.alpha
        if self.mode not in IS_TANH or (type(alpha) is float and alpha == 1.0):
            return super().forward(input, hx)
        if isinstance(alpha, Tensor):
            check_learned_alpha(alpha, alpha)
            alpha = alpha.squeeze()  # a 0-d tensor does not change the dtype of what it multiplies
        self._update_flat_weights()
        plain = object.__new__(type(self))  # shares everything but the weights; other threads may use self
        vars(plain).update(
            vars(self), _flat_weights=rescaled(self, alpha), _update_flat_weights=keep_flat_weights
        )
        if isinstance(hx, (tuple, list)):
            hx = tuple(state / alpha for state in hx)
        elif hx is not None:
            hx = hx / alpha
        output, states = super(Recurrent, plain).forward(input, hx)
        if isinstance(output, PackedSequence):
            output = output._replace(data=output.data * alpha)
        else:
            output = output * alpha
        if isinstance(states, tuple):
            return output, tuple(state * alpha for state in states)
        return output, states * alpha

    def extra_repr(self) -> str:
        effect = "" if self.mode in IS_TANH else " (no effect on relu)"
        return f"{super().extra_repr()}, {self.alpha_repr()}{effect}"


def tracer_of(*values: Any) -> fx.Tracer | None:
    """The torch.fx tracer that records these values; it treats the modules as leaves, like torch.nn's."""
    for value in values:
        if isinstance(value, fx.Proxy) and isinstance(value.tracer, fx.Tracer):
            return value.tracer
        if isinstance(value, (tuple, list)) and (tracer := tracer_of(*value)) is not None:
            return tracer
    return None


def keep_flat_weights() -> None:
    """Stands in for PyTorch's method, which would replace the rescaled weights with the module's own."""


def rescaled(module: Recurrent, alpha: float | Tensor) -> list[Tensor]:
    """The weights, in PyTorch's order, with which a plain cell computes the scaled one; differentiable.

    Weights that share one buffer, as cuDNN wants them, stay in one of the same layout.
    """
    weights, exponents = flat_weights(module), exponents_of(module)
    pieces = None if torch.compiler.is_compiling() else pieces_of_buffer(weights)
    if pieces is None:
        sizes = [weight.shape[0] for weight in weights]
        rows = factors(module, alpha, tuple(enumerate(sizes))).split(sizes)
        return [
            weight * (row.unsqueeze(1) if weight.dim() == 2 else row) if any(e) else weight
            for weight, row, e in zip(weights, rows, exponents, strict=True)
        ]
    gathered = torch.cat(
        [weights[0].new_zeros(size) if i is None else weights[i].reshape(-1) for i, size in pieces]
    )
    parts = (gathered * factors(module, alpha, pieces)).split([size for _, size in pieces])
    found = {i: part for (i, _), part in zip(pieces, parts, strict=True)}
    return [found[i].view(weight.shape) for i, weight in enumerate(weights)]


def flat_weights(module: Recurrent) -> list[Tensor]:
    return module._flat_weights  # type: ignore[return-value]  # None only during construction


def exponents_of(module: Recurrent) -> list[tuple[int, ...]]:
    """For each weight, the exponents of alpha by which its blocks of rows are multiplied."""
    found: list[tuple[int, ...]] = []
    for name in module._flat_weights_names:
        projects = name.startswith("weight_hr")
        reads_states = int(name.startswith("weight") and not name.startswith("weight_ih_l0"))
        found.append((0,) if projects else tuple(reads_states - tanh for tanh in IS_TANH[module.mode]))
    return found


def pieces_of_buffer(weights: Sequence[Tensor]) -> Pieces | None:
    """The weights and gaps, in order, of the buffer that holds all weights; None if there is none."""
    if not all(weight.is_contiguous() and owns_memory(weight) for weight in weights):
        return None
    if len({weight.untyped_storage().data_ptr() for weight in weights}) > 1:
        return None
    sizes = [weight.nbytes // weight.element_size() for weight in weights]  # numel() would be traced
    end = int(weights[0].untyped_storage().nbytes()) // weights[0].element_size()
    if end > 2 * sum(sizes):  # a buffer of more than this module
        return None
    pieces: list[tuple[int | None, int]] = []
    reached = 0
    for i in sorted(range(len(weights)), key=lambda i: weights[i].storage_offset()):
        gap = int(weights[i].storage_offset()) - reached
        if gap < 0:  # a parameter that is used twice
            return None
        pieces += [(None, gap), (i, sizes[i])]
        reached += gap + sizes[i]
    return tuple((i, size) for i, size in (*pieces, (None, end - reached)) if size)


CACHE: WeakKeyDictionary[Recurrent, tuple[object, Tensor]] = WeakKeyDictionary()
"""The last factors of each module; not in the module, so that they are not copied, moved or saved with it."""


def factors(module: Recurrent, alpha: float | Tensor, pieces: Pieces) -> Tensor:
    """The powers of alpha by which the pieces are multiplied, one after another."""
    like, exponents = flat_weights(module)[0], exponents_of(module)
    number = alpha if isinstance(alpha, float) else None
    key = (number, pieces, like.device, like.dtype)
    caches = may_cache(like)
    held = CACHE.get(module) if caches else None
    if held is not None and held[0] == key:
        constants = held[1]
    else:
        blocks = [(size, (0,) if i is None else exponents[i]) for i, size in pieces]
        with torch.inference_mode(False):
            constants = torch.cat(
                [
                    like.new_full((size // len(powers),), e if number is None else number**e)
                    for size, powers in blocks
                    for e in powers
                ]
            )
        if caches and owns_memory(constants):
            CACHE[module] = key, constants
    return constants if number is not None else alpha**constants


def may_cache(like: Tensor) -> bool:
    """Whether a tensor made now, like this one, can be kept: not in a graph, which owns its memory."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or not owns_memory(like):
        return False
    return not is_capturing(like.device)


def owns_memory(x: Tensor) -> bool:
    """Whether x is a tensor with memory, rather than a stand-in of torch.func or a tracer."""
    try:
        x.untyped_storage()
    except NotImplementedError:
        return False
    return type(x) in (Tensor, nn.Parameter)


class RNN(Recurrent, nn.RNN):
    """Elman network, alpha-scaled: h_t = alpha * tanh((W_ih x_t + b_ih + W_hh h_(t-1) + b_hh) / alpha).

    Takes the arguments of `torch.nn.RNN` and has its parameters, so a state_dict of one loads into the other;
    runs on its cells, with rescaled weights. alpha = 1 is `torch.nn.RNN` itself, to the bit, and so is every
    alpha with nonlinearity="relu", which scaling does not change.

    Args:
        *args, **kwargs: as in `torch.nn.RNN`: input_size, hidden_size, num_layers, nonlinearity, bias,
            batch_first, dropout, bidirectional, device, dtype.
        alpha: the scale, dimensionless; finite and > 0 (from 2^-36 to 2^36); one for the whole module.
        learnable: learn alpha, starting at this value, as the parameter log2_alpha of shape (1,), which the
            state_dict then includes.

    Shape:
        As `torch.nn.RNN`: sequences (L, N, H_in), (N, L, H_in) or (L, H_in), or a PackedSequence; an initial
        state (layers * directions, N, H_out) in the scale of the outputs, |h| < alpha. Returns output and
        h_n. Real dtypes for which PyTorch has cells on the device.

    Raises:
        TypeError, ValueError: alpha is not a real number, finite and > 0; learnable without a tanh; and as
            `torch.nn.RNN`.

    Source: L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1); Sec. 4 hopes for recurrent networks.

    Example:
        >>> import torch, sigscale as ss
        >>> rnn = ss.nn.RNN(8, 16, num_layers=2, alpha=2.0)
        >>> output, h_n = rnn(torch.randn(5, 3, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 16]), torch.Size([2, 3, 16]))
    """


class LSTM(Recurrent, nn.LSTM):
    """Long short-term memory, alpha-scaled: h_t = o * tanh_a(c_t), c_t = f * c_(t-1) + i * tanh_a(z_t).

    Here tanh_a(z) = alpha * tanh(z / alpha) and z_t = W_ig x_t + b_ig + W_hg h_(t-1) + b_hg. The gates i, f,
    o are those of `torch.nn.LSTM`, with the logistic function unscaled: a gate is a share, from 0 to 1.

    To `torch.nn.LSTM`, arguments (also proj_size), parameters, shapes and errors relate as those of
    `sigscale.nn.RNN` do to `torch.nn.RNN`; initial states h_0 and c_0 are in the scale of the outputs.
    Each call rescales the weights, at the cost of a few passes over them: little for a sequence, noticeable
    where a network is called one step at a time. Multiplying by powers of two is exact.

    Source: S. Hochreiter and J. Schmidhuber, Neural Computation 9 (1997), with the forget gate of F. Gers et
    al. (2000); L. Ven and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

    Example:
        >>> import torch, sigscale as ss
        >>> lstm = ss.nn.LSTM(8, 16, batch_first=True, alpha=2.0)
        >>> lstm.load_state_dict(torch.nn.LSTM(8, 16).state_dict())
        <All keys matched successfully>
        >>> output, (h_n, c_n) = lstm(torch.randn(3, 5, 8))
        >>> output.shape, c_n.shape
        (torch.Size([3, 5, 16]), torch.Size([1, 3, 16]))
    """


class GRU(Recurrent, nn.GRU):
    """Gated recurrent unit, alpha-scaled: h_t = (1 - z) * n_t + z * h_(t-1), n_t = alpha * tanh(y_t / alpha).

    Here y_t = W_in x_t + b_in + r * (W_hn h_(t-1) + b_hn). The gates r, z are those of `torch.nn.GRU`, with
    the logistic function unscaled: a gate is a share, from 0 to 1.

    To `torch.nn.GRU`, arguments, parameters, shapes and errors relate as those of `sigscale.nn.RNN` do to
    `torch.nn.RNN`.

    Source: K. Cho et al., arXiv 1406.1078 (2014), in PyTorch's form, where r multiplies after W_hn; L. Ven
    and J. Lederer, arXiv 2106.02260, Sec. 2.3, eq. (1).

    Example:
        >>> import torch, sigscale as ss
        >>> ss.nn.GRU(8, 16, num_layers=2, learnable=True)
        GRU(8, 16, num_layers=2, alpha=2, learnable=True)
    """
