"""What fold() cannot do it refuses, naming the modules, the reason and a remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.nn.utils import prune

import sigscale as ss
from tests.oracles.folding import Forward, refuses


def network(*layers):
    """linear, tanh with alpha = 2, the layers, linear."""
    return nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), *layers, nn.Linear(4, 4))


def test_no_module():
    with pytest.raises(
        TypeError, match=r"takes a torch.nn.Module, got builtin_function_or_method: pass the model itself"
    ):
        ss.fold(torch.tanh)
    with pytest.raises(TypeError, match=r"must be a tensor or a tuple; got list: .*fold\(model, \(x,\)\)"):
        ss.fold(network(), [torch.ones(4)])


def test_last_activation():
    refuses(
        nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0)),
        "'1' (Tanh) has alpha = 2",
        "the model's output has the scale 1",
        "nothing in between",
        "model.part = sigscale.fold(model.part)",
    )


def test_first_activation():
    refuses(
        nn.Sequential(nn.Flatten(), ss.nn.Tanh(3.0), nn.Linear(4, 4)),
        "the model's input 'input' has the scale 1, and '1' (Tanh) has alpha = 3",
        "with only '0' (Flatten) in between",
    )


def test_alpha_1_beside_another():
    refuses(
        network(ss.nn.Tanh(1.0)),
        "'1' (Tanh) has alpha = 2",
        "'2' (Tanh) has alpha = 1",
        "nothing in between",
    )
    ss.fold(nn.Sequential(ss.nn.Tanh(1.0), ss.nn.Sigmoid(1.0)))


@pytest.mark.parametrize(
    "together",
    [
        torch.maximum,
        torch.max,
        torch.sub,
        lambda a, b: torch.cat([a, b], 1)[:, 4:],
        lambda a, b: torch.add(input=a, other=b),
        lambda a, b: torch.maximum(a, other=b),
        lambda a, b: torch.where(condition=b > 0, input=a, other=b),
        lambda a, b: a.where(b > 0, other=b),
    ],
)
def test_operands_with_different_alphas(together):
    model = Forward(lambda m, x: m.second(together(m.one(m.first(x)), m.two(m.third(x)))))
    model.third = nn.Linear(4, 4)
    refuses(model, "'one' (Tanh) has alpha = 2", "'two' (Sigmoid) has alpha = 3")


def test_branches_with_different_alphas():
    model = Forward(lambda m, x: m.second(m.one(m.first(x)) + F.relu(m.two(m.first(x)))))
    refuses(model, "'one' (Tanh) has alpha = 2", "'two' (Sigmoid) has alpha = 3", "add() at test_refusals.py")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Softmax(-1),
        nn.Tanh(),
        nn.GELU(),
        nn.ELU(),
        nn.Hardtanh(),
        nn.Threshold(0.1, 0.0),
        nn.LocalResponseNorm(2),
        nn.ConstantPad1d(1, 0.5),
        nn.TransformerEncoderLayer(4, 2, batch_first=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_inhomogeneous_layers(layer):
    name = f"'2' ({type(layer).__name__})"
    refuses(network(layer), "'1' (Tanh) has alpha = 2", name)
    ss.fold(nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda m, y: y.exp(), "exp() at"),
        (lambda m, y: y + 1, "takes the number 1"),
        (lambda m, y: 3 - y, "takes the number 3"),
        (lambda m, y: y + m.scale, "'scale', which forward reads, has the scale 1"),
        (lambda m, y: y + y.size(0), "does not depend on the model's inputs"),
        (lambda m, y: y * y, "mul() at"),
        (lambda m, y: 1 / y, "truediv() at"),
        (lambda m, y: y // 2, "floordiv() at"),
        (lambda m, y: F.linear(y, m.first.weight), "linear() at"),
        (lambda m, y: F.pad(y, (1, 1), value=1.0)[:, 1:-1], "pads with 1.0"),
        (lambda m, y: y.to(torch.int64).to(torch.float32), "to() at"),
        (lambda m, y: y.to(dtype=torch.int64).to(torch.float32), "to() at"),
        (lambda m, y: y.to(y > 0).to(torch.float32), "to() at"),
        (lambda m, y: y.cumsum(1, dtype=torch.int64).to(torch.float32), "cumsum() at"),
        (lambda m, y: y.view(torch.int32).view(torch.float32), "view() at"),
        (lambda m, y: y.view(dtype=torch.int32).view(torch.float32), "view() at"),
        (lambda m, y: y.clamp(0, 0.5), "clamp() at"),
        (lambda m, y: y.softmax(1), "softmax() at"),
        (lambda m, y: torch.where(y > 0, y, 0.1), "takes the number 0.1"),
        (lambda m, y: torch.where(y > 0.1, y, -y), "gt() at"),
        (lambda m, y: torch.where(y)[0], "where() at"),
        (lambda m, y: torch.cat([y, y.sigmoid()], 0), "sigmoid() at"),
        (lambda m, y: torch.relu(m.first.weight) + y, "relu() at"),
    ],
)
def test_inhomogeneous_operations(operation, named):
    refuses(
        Forward(lambda m, x: m.second(operation(m, m.one(m.first(x))))), "'one' (Tanh) has alpha = 2", named
    )


def test_batch_statistics():
    norm = nn.BatchNorm1d(4)
    refuses(network(norm), "'2' (BatchNorm1d) normalizes by the statistics of the batch", "model.eval()")
    ss.fold(network(norm).eval())
    refuses(network(nn.BatchNorm1d(4, track_running_stats=False)).eval(), "'2' (BatchNorm1d)", "batch")
    refuses(network(nn.LayerNorm(4)).eval(), "'2' (LayerNorm) normalizes its input, which its eps")
    bare = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, elementwise_affine=False), ss.nn.Tanh(2.0))
    refuses(bare.append(nn.Linear(4, 4)), "'1' (LayerNorm)", "has no weight")


def test_shared_layer_with_different_scales():
    shared = nn.Linear(4, 4)
    refuses(
        nn.Sequential(shared, ss.nn.Tanh(2.0), shared, ss.nn.Tanh(2.0), nn.Linear(4, 4)),
        "the model's input",
        "'1' (Tanh) has alpha = 2",
        "'0' (Linear) (called more than once)",
    )


def test_tied_parameters_with_different_factors():
    model = nn.Sequential(nn.Embedding(5, 4), ss.nn.Tanh(2.0), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    refuses(model, "'0.weight' and '2.weight' are one tensor", "different factors", "clone")


def test_weight_read_in_forward():
    model = Forward(lambda m, x: m.second(m.one(m.first(x))) + m.first.weight.sum())
    refuses(model, "'first.weight' and 'first.weight, as forward reads it,' are one tensor")


def test_parametrized_and_computed_weights():
    def model():
        return nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 4))

    parametrized, normed, pruned, lazy = model(), model(), model(), network(nn.LazyLinear(4))
    nn.utils.parametrizations.weight_norm(parametrized[2])
    refuses(parametrized, "'2' (ParametrizedLinear) is parametrized", "remove_parametrizations")
    nn.utils.parametrize.remove_parametrizations(parametrized[2], "weight")
    ss.fold(parametrized, torch.randn(2, 4))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(normed[0])
    with pytest.raises(ValueError, match=r"'0' \(Linear\), which has hooks.*remove_weight_norm"):
        ss.fold(normed)
    prune.l1_unstructured(pruned[2], "weight", 3)
    with pytest.raises(ValueError, match=r"'2' \(Linear\), which has hooks.*prune.remove"):
        ss.fold(pruned)
    with pytest.raises(ValueError, match=r"'2' \(LazyLinear\), which is lazy: call the model once"):
        ss.fold(lazy)
    with pytest.raises(ValueError, match=r"whose weight is on the meta device: load its values"):
        ss.fold(model().to("meta"))


def test_embedding_with_max_norm():
    model = nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), ss.nn.Tanh(2.0), nn.Linear(4, 4))
    refuses(model, "'0' (Embedding) has a max_norm, which does not scale")


def test_hooks():
    model = network()
    handle = model[1].register_forward_hook(lambda *args: None)
    refuses(model, "'1' (Tanh), which has hooks", "handle.remove()")
    handle.remove()
    monitor = ss.GradientMonitor(model)
    monitor.close()
    ss.fold(model)


def test_untraceable_model():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    refuses(network(Branching()), "torch.fx cannot trace", "'2'", "TraceError", "model.features = ")


def test_hidden_activations():
    unused = Forward(lambda m, x: m.second(m.one(m.first(x))))
    refuses(unused, "'two' (Sigmoid)", "forward does not call", "delete it")
    hidden = network(nn.TransformerEncoderLayer(4, 2, activation=ss.tanh, batch_first=True))
    hidden[1] = nn.Identity()
    refuses(hidden, "'2' (TransformerEncoderLayer)", "where torch.fx does not look")


def test_overflowing_weight():
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(1000.0), nn.Linear(4, 4)).half()
    nn.init.constant_(model[2].weight, 100.0)
    refuses(model, "'2.weight' overflows torch.float16", "sigscale.fold(model.float())")


def test_vanishing_weight():
    """Numbers below the smallest normal one have lost digits, 3 % of them here."""
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0**17), nn.Linear(4, 4)).half()
    with torch.no_grad():
        model[2].weight.clamp_(-0.1, 0.1)
    refuses(model, "'0.weight' vanishes in torch.float16", "sigscale.fold(model.float())")
    ss.fold(model.float())


def test_subclassed_layer():
    class Own(nn.Linear):
        pass

    refuses(network(Own(4, 4)), "'1' (Tanh) has alpha = 2", "linear() in '2' (Own)")


def test_initial_states_as_inputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.out = ss.nn.GRU(3, 4, alpha=2.0), nn.Linear(4, 1)

        def forward(self, x, h):
            return self.out(self.cell(x, h)[0])

    refuses(Model(), "the model's input 'h'", "'cell' (GRU) has alpha = 2")


def test_data_dependent_alpha():
    model = Forward(lambda m, x: m.second(ss.tanh(m.first(x), x.mean().exp())))
    del model.one, model.two
    refuses(model, "sigscale.tanh() at 'tanh', whose alpha depends on the model's inputs")


def test_differing_outputs():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    refuses(
        Counting(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 4)),
        "the outputs of the folded copy differ by",
        "rounding explains",
        inputs=torch.randn(2, 4),
        error=RuntimeError,
    )


def test_channel_alphas_without_shapes():
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
def test_mixed_channels(operation, named):
    """Of a tensor of two dimensions, in which the last one holds the channels."""
    model = Forward(lambda m, x: m.second(operation(m.act(m.first(x)))))
    model.act = ss.nn.Tanh(2.0, learnable=True, num_parameters=4)
    del model.one, model.two
    ss.fold(model, torch.randn(4, 4))  # all channels have one scale
    model.act.log2_alpha.data.copy_(torch.arange(4.0))
    refuses(model, "'act' (Tanh), whose scale differs", named, inputs=torch.randn(4, 4))


def test_changing_number_of_channels():
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
