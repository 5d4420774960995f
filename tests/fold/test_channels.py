"""Where alphas of channels meet what needs one scale, fold() refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss
from tests.oracles.folding import Forward, refuses


def test_alphas_of_channels_need_shapes():
    act = ss.nn.Tanh(2.0, learnable=True, num_parameters=4)
    act.log2_alpha.data.copy_(torch.arange(4.0))
    model = nn.Sequential(nn.Linear(4, 4), act, nn.Linear(4, 4))
    refuses(model, "without shapes", "pass example_inputs")
    ss.fold(model, torch.randn(2, 4))
    refuses(
        model, "'1' (Tanh)", "differs from channel to channel", "'0' (Linear)", inputs=torch.randn(2, 4, 4)
    )
    mixed = nn.Sequential(nn.Conv1d(4, 4, 1), act, nn.ChannelShuffle(2), nn.Conv1d(4, 4, 1))
    refuses(
        mixed, "'1' (Tanh)", "'2' (ChannelShuffle) needs one for all channels", inputs=torch.randn(2, 4, 4)
    )
    shuffled = Forward(lambda m, x: m.second(m.act(m.first(x)).flip(1)))
    shuffled.act = act
    refuses(shuffled, "'act' (Tanh)", "flip()", inputs=torch.randn(2, 4))


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda y: y - y.mean(1, keepdim=True), "mean() at"),
        (lambda y: y - y.mean(dim=(-1, 0), keepdim=True), "mean() at"),
        (lambda y: F.max_pool1d(y, 3, 1, 1), "max_pool1d() at"),
        (lambda y: F.pad(y, (1, 1))[:, 1:-1], "pad() at"),
        (lambda y: y.view(2, 2, 4).flip(2).view(4, 4), "view() at"),
        (lambda y: y.T, "getattr() at"),
        (lambda y: torch.stack([y, y]).sum(0), "stack() at"),
        (lambda y: (y * torch.ones(2, 1, 1))[0], "mul() at"),
    ],
)
def test_operations_that_mix_channels(operation, named):
    """Of a tensor of two dimensions, in which the last one holds the channels."""
    model = Forward(lambda m, x: m.second(operation(m.act(m.first(x)))))
    model.act = ss.nn.Tanh(2.0, learnable=True, num_parameters=4)
    del model.one, model.two
    ss.fold(model, torch.randn(4, 4))  # all channels have one scale
    model.act.log2_alpha.data.copy_(torch.arange(4.0))
    refuses(model, "'act' (Tanh), whose scale differs", named, inputs=torch.randn(4, 4))


def test_channels_that_become_fewer_and_more():
    """A scale for each feature, but a pool in between takes several features together."""
    act = ss.nn.Tanh(2.0, learnable=True, num_parameters=16)
    act.log2_alpha.data.copy_(torch.arange(16.0) / 4)
    model = nn.Sequential(nn.Linear(4, 16), act, nn.Unflatten(1, (4, 4)), nn.MaxPool1d(2), nn.Flatten())
    model.append(nn.Linear(8, 2))
    refuses(model, "16 scales of channels into '2' (Unflatten), which has 4", inputs=torch.randn(3, 4))
    act.log2_alpha.data.copy_(torch.arange(4.0).repeat_interleave(4))
    ss.fold(model, torch.randn(3, 4))


def test_flattened_channels_of_the_wrong_size():
    act = ss.nn.Tanh(2.0, learnable=True, num_parameters=8)
    act.log2_alpha.data.copy_(torch.arange(8.0))
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), act, nn.Linear(8, 2))
    refuses(
        model, "cannot fold 8 scales of channels into '0' (Conv1d), which has 4", inputs=torch.randn(3, 2, 2)
    )


def test_unbatched_channels():
    """Without a batch, dimension 1 of a convolution's output does not hold its channels."""
    act = ss.nn.Tanh(2.0, learnable=True, num_parameters=4)
    act.log2_alpha.data.copy_(torch.arange(4.0))
    model = nn.Sequential(nn.Conv1d(4, 4, 1), act, nn.Conv1d(4, 4, 1))
    ss.fold(model, torch.randn(2, 4, 4))
    refuses(model, "'0' (Conv1d) needs one for all channels", inputs=torch.randn(4, 4))
