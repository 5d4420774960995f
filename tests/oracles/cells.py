"""Recurrent networks with alpha * tanh(z / alpha), cell by cell, from the formulas alone."""

from __future__ import annotations

import torch


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
