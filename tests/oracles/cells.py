"""Recurrent networks with alpha * tanh(z / alpha), cell by cell, and ways to replace a module's weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

NAMES = ("RNN", "LSTM", "GRU")
LENGTH, BATCH, INPUT, HIDDEN = 5, 3, 2, 4


def tanh(z, alpha):
    return alpha * torch.tanh(z / alpha)


def rnn_cell(x, states, w, alpha):
    (h,) = states
    return (tanh(x @ w["ih"].T + w["b_ih"] + h @ w["hh"].T + w["b_hh"], alpha),)


def lstm_cell(x, states, w, alpha):
    h, c = states
    i, f, g, o = (x @ w["ih"].T + w["b_ih"] + h @ w["hh"].T + w["b_hh"]).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * tanh(g, alpha)
    h = torch.sigmoid(o) * tanh(c, alpha)
    return (h if w["hr"] is None else h @ w["hr"].T), c


def gru_cell(x, states, w, alpha):
    (h,) = states
    r_x, z_x, n_x = (x @ w["ih"].T + w["b_ih"]).chunk(3, -1)
    r_h, z_h, n_h = (h @ w["hh"].T + w["b_hh"]).chunk(3, -1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    n = tanh(n_x + r * n_h, alpha)
    return ((1 - z) * n + z * h,)


CELLS = {"RNN_TANH": rnn_cell, "LSTM": lstm_cell, "GRU": gru_cell}


def weights_of(module, layer, suffix):
    def get(name):
        return getattr(module, f"{name}_l{layer}{suffix}", None)

    zero = module.weight_ih_l0.new_zeros(())
    w = {"ih": get("weight_ih"), "hh": get("weight_hh"), "hr": get("weight_hr")}
    for bias in ("ih", "hh"):
        w[f"b_{bias}"] = get(f"bias_{bias}") if module.bias else zero
    return w


def run(module, x, states, alpha, lengths=None, dropout=lambda x: x):
    """Output and final states of x (length, batch, features); states are (layers * directions, ...) each."""
    cell = CELLS[module.mode]
    suffixes = ("", "_reverse") if module.bidirectional else ("",)
    final = []
    for layer in range(module.num_layers):
        outputs = []
        for suffix in suffixes:
            start = [state[len(final)] for state in states]
            w = weights_of(module, layer, suffix)
            if lengths is None:
                output, last = sequence(cell, x, start, w, alpha, suffix)
            else:
                columns = [
                    sequence(cell, x[:length, n], [state[n] for state in start], w, alpha, suffix)
                    for n, length in enumerate(lengths)
                ]
                output = torch.nn.utils.rnn.pad_sequence([output for output, _ in columns])
                last = [torch.stack(state) for state in zip(*(last for _, last in columns), strict=True)]
            outputs.append(output)
            final.append(last)
        x = torch.cat(outputs, -1)
        if layer < module.num_layers - 1:
            x = dropout(x)
    return x, tuple(torch.stack(state) for state in zip(*final, strict=True))


def sequence(cell, x, states, w, alpha, suffix):
    """Sequences (length, ..., features) through one direction of one layer."""
    output = []
    for x_t in x.flip(0) if suffix else x:
        states = cell(x_t, states, w, alpha)
        output.append(states[0])
    return torch.stack(output[::-1] if suffix else output), states


def inputs(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape or (LENGTH, BATCH, INPUT), generator=generator, dtype=dtype)


def put_into_one_buffer(module, gap=3):
    """Lay out the weights as flatten_parameters() does on a GPU: matrices first, zeros in the gaps."""
    weights = module._flat_weights
    order = sorted(range(len(weights)), key=lambda i: -weights[i].dim())
    buffer = weights[0].new_zeros(sum(w.numel() for w in weights) + 2 * gap)
    start = gap
    for i in order:
        view = buffer[start : start + weights[i].numel()].view(weights[i].shape)
        weights[i].data = view.copy_(weights[i].data)
        start += weights[i].numel()
    return buffer


def in_one_buffer(module):
    put_into_one_buffer(module)
    return module


class Affine(nn.Module):
    def forward(self, weight):
        return 1.5 * weight + 0.1


class Dropped(nn.Module):
    """Other values at each access."""

    def forward(self, weight):
        return nn.functional.dropout(weight, 0.5)


class WeightDropping(nn.Module):
    """Sets a weight to another tensor before each call, as fastai's AWD-LSTM does."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.raw = nn.Parameter(module.weight_hh_l0.detach().clone())
        del module.weight_hh_l0
        self.set_weight()

    def set_weight(self):
        self.module.weight_hh_l0 = nn.functional.dropout(self.raw, 0.5)

    def forward(self, *args):
        self.set_weight()
        return self.module(*args)


def parametrized(parametrization, *names):
    def change(module):
        for name in names or [*module._flat_weights_names]:
            parametrize.register_parametrization(module, name, parametrization())
        return module

    return change


def stacked(module):
    return parametrized(Affine, "weight_hh_l0")(parametrizations.weight_norm(module, "weight_hh_l0"))


def old_spectral_norm(module):
    return nn.utils.spectral_norm(module, "weight_hh_l0").eval()


def new_spectral_norm(module):
    return parametrizations.spectral_norm(module, "weight_hh_l0").eval()


def pruned(module):
    return prune.random_unstructured(module, "weight_hh_l0", 0.5)


def dropped(module):
    return WeightDropping(module).module


def assigned(module):
    state = {key: 1.5 * value for key, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


def emptied(module):
    state = module.state_dict()
    module = module.to("meta").to_empty(device="cpu")
    module.load_state_dict(state)
    return module


def swapped(module):
    """As `Module.to` does where it is told to keep the parameters."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return module.float().double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def replaced(module):
    module.weight_hh_l0 = nn.Parameter(2 * module.weight_hh_l0.detach())
    module._parameters["weight_ih_l0"] = nn.Parameter(2 * module.weight_ih_l0.detach())
    module.bias_ih_l0.data = torch.ones_like(module.bias_ih_l0)
    return module


def replica(module):
    """As nn.DataParallel makes one for each GPU."""
    made = module._replicate_for_data_parallel()
    for key, parameter in module._parameters.items():
        if parameter is None:
            made._parameters[key] = None
        else:
            setattr(made, key, parameter * 1.0)
    return made


REPLACEMENTS = {
    "weight norm": lambda module: parametrizations.weight_norm(module, "weight_hh_l0"),
    "weight norm of the first": lambda module: parametrizations.weight_norm(module, "weight_ih_l0"),
    "orthogonal": lambda module: parametrizations.orthogonal(module, "weight_hh_l0"),
    "spectral norm": new_spectral_norm,
    "all parametrized": parametrized(Affine),
    "a bias parametrized": parametrized(Affine, "bias_hh_l0"),
    "stacked parametrizations": stacked,
    "old spectral norm": old_spectral_norm,
    "old weight norm": pytest.param(
        lambda module: nn.utils.weight_norm(module, "weight_hh_l0"),
        marks=pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),
    ),
    "pruned": pruned,
    "dropped": dropped,
    "assigned": assigned,
    "emptied": emptied,
    "swapped": swapped,
    "replaced": replaced,
    "replica": replica,
    "deepcopy": copy.deepcopy,
    "deepcopy of parametrized": lambda module: copy.deepcopy(parametrized(Affine)(module)),
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "converted": lambda module: module.half().to(torch.float64),
    "shared memory": lambda module: module.share_memory(),
}
