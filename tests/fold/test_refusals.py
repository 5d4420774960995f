"""What fold() cannot do it refuses, naming the modules, the reason and a remedy."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from torch.nn.utils import parametrizations, prune

import sigscale as ss
from tests.oracles.folding import check, refuses, two_layers
from tests.oracles.models import Forward

TWO = "'1' (Tanh) has alpha = 2"
WIDER = "sigscale.fold(model.float())"
ONE = "'one' (Tanh) has alpha = 2"


def network(*layers):
    """linear, tanh with alpha = 2, the layers, linear."""
    return nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(2.0), *layers, nn.Linear(4, 4))


def shared():
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, ss.nn.Tanh(2.0), layer, ss.nn.Tanh(2.0), nn.Linear(4, 4))


def tied():
    model = nn.Sequential(nn.Embedding(5, 4), ss.nn.Tanh(2.0), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    return model


def data_dependent():
    model = two_layers(lambda m, x: m.second(ss.tanh(m.first(x), x.mean().exp())))
    del model.one, model.two
    return model


def hidden():
    layer = nn.TransformerEncoderLayer(4, 2, activation=ss.tanh, batch_first=True)
    return nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4))


def normalized():
    norm = nn.LayerNorm(4, elementwise_affine=False)
    return nn.Sequential(nn.Linear(4, 4), norm, ss.nn.Tanh(2.0), nn.Linear(4, 4))


def half(alpha, weight):
    model = nn.Sequential(nn.Linear(4, 4), ss.nn.Tanh(alpha), nn.Linear(4, 4)).half()
    nn.init.constant_(model[2].weight, weight)
    return model


class Own(nn.Linear):
    """A subclass, whatever it computes."""


class OfStates(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = ss.nn.GRU(3, 4, alpha=2.0), nn.Linear(4, 1)

    def forward(self, x, h):
        return self.out(self.cell(x, h)[0])


REFUSED = {
    "last activation": (network()[:2], (TWO, "the model's output has the scale 1", "nothing in between",
        "model.part = sigscale.fold(model.part)")),
    "first activation": (nn.Sequential(nn.Flatten(), ss.nn.Tanh(3.0), nn.Linear(4, 4)),
        ("the model's input 'input' has the scale 1, and '1' (Tanh) has alpha = 3",
        "with only '0' (Flatten) in between")),
    "alpha 1 beside another": (network(ss.nn.Tanh(1.0)), (TWO, "'2' (Tanh) has alpha = 1",
        "nothing in between")),
    "branches": (two_layers(lambda m, x: m.second(m.one(m.first(x)) + F.relu(m.two(m.first(x))))),
        (ONE, "'two' (Sigmoid) has alpha = 3", "add() at test_refusals.py")),
    "shared layer": (shared(), ("the model's input", TWO, "'0' (Linear) (called more than once)")),
    "tied parameters": (tied(), ("'0.weight' and '2.weight' are one tensor", "different factors", "clone")),
    "weight read": (two_layers(lambda m, x: m.second(m.one(m.first(x))) + m.first.weight.sum()),
        ("'first.weight' and 'first.weight, as forward reads it,' are one tensor",)),
    "max_norm": (nn.Sequential(nn.Embedding(5, 4, max_norm=1.0), ss.nn.Tanh(2.0), nn.Linear(4, 4)),
        ("'0' (Embedding) has a max_norm, which does not scale",)),
    "branch": (network(Forward(lambda m, x: x if x.sum() > 0 else -x)),
        ("torch.fx cannot trace", "'2'", "TraceError", "model.features = ")),
    "unused": (two_layers(lambda m, x: m.second(m.one(m.first(x)))),
        ("'two' (Sigmoid)", "forward does not call", "delete it")),
    "hidden": (hidden(), ("'1' (TransformerEncoderLayer)", "where torch.fx does not look")),
    "overflow": (half(1000.0, 100.0), ("'2.weight' overflows torch.float16", WIDER)),
    "underflow": (half(2.0**17, 0.1), ("'0.weight' vanishes in torch.float16", WIDER)),
    "subclass": (network(Own(4, 4)), (TWO, "linear() in '2' (Own)")),
    "states": (OfStates(), ("the model's input 'h'", "'cell' (GRU) has alpha = 2")),
    "alpha": (data_dependent(), ("sigscale.tanh() at 'tanh', whose alpha depends on the model's inputs",)),
    "batch statistics": (network(nn.BatchNorm1d(4)),
        ("'2' (BatchNorm1d) normalizes by the statistics of the batch", "model.eval()")),
    "no running statistics": (network(nn.BatchNorm1d(4, track_running_stats=False)).eval(),
        ("'2' (BatchNorm1d)", "batch")),
    "eps": (network(nn.LayerNorm(4)), ("'2' (LayerNorm) normalizes its input, which its eps",)),
    "no weight": (normalized(), ("'1' (LayerNorm)", "has no weight")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_models(name):
    model, parts = REFUSED[name]
    refuses(model, *parts)


def test_next_to_what_is_refused():
    for model in (
        nn.Sequential(ss.nn.Tanh(1.0), ss.nn.Sigmoid(1.0)),
        network(nn.BatchNorm1d(4)).eval(),
        half(2.0**17, 0.1).float(),
    ):
        ss.fold(model)


def test_wrong_types():
    with pytest.raises(TypeError, match=r"a torch.nn.Module, got builtin_function_or_method: pass the model"):
        ss.fold(torch.tanh)
    with pytest.raises(TypeError, match=r"must be a tensor or a tuple; got list: .*fold\(model, \(x,\)\)"):
        ss.fold(network(), [torch.ones(4)])


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
    model = two_layers(lambda m, x: m.second(together(m.one(m.first(x)), m.two(m.third(x)))))
    model.third = nn.Linear(4, 4)
    refuses(model, ONE, "'two' (Sigmoid) has alpha = 3")


@pytest.mark.parametrize(
    "layer",
    [
        *(nn.Softmax(-1), nn.Tanh(), nn.GELU(), nn.ELU(), nn.Hardtanh(), nn.Threshold(0.1, 0.0)),
        *(nn.LocalResponseNorm(2), nn.ConstantPad1d(1, 0.5)),
        nn.TransformerEncoderLayer(4, 2, batch_first=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_inhomogeneous_layers(layer):
    refuses(network(layer), TWO, f"'2' ({type(layer).__name__})")
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
    refuses(two_layers(lambda m, x: m.second(operation(m, m.one(m.first(x))))), ONE, named)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: nn.utils.weight_norm(m[2]), r"'2' \(Linear\), which has hooks.*remove_weight_norm"),
        (
            lambda m: prune.l1_unstructured(m[2], "weight", 3),
            r"'2' \(Linear\), which has hooks.*prune.remove",
        ),
        (lambda m: m.append(nn.LazyLinear(4)), r"'3' \(LazyLinear\), which is lazy: call the model once"),
        (lambda m: m.to("meta"), "whose weight is on the meta device: load its values"),
        (lambda m: m[1].register_forward_hook(print), r"'1' \(Tanh\), which has hooks.*handle.remove\(\)"),
    ],
)
def test_computed_weights_and_hooks(change, message):
    model = network()
    change(model)
    with pytest.raises(ValueError, match=message):
        ss.fold(model)


def test_after_hooks_and_parametrizations_were_removed():
    model = network()
    parametrizations.weight_norm(model[2])
    refuses(model, "'2' (ParametrizedLinear) is parametrized", "remove_parametrizations")
    nn.utils.parametrize.remove_parametrizations(model[2], "weight")
    model[1].register_forward_hook(lambda *_: None).remove()
    ss.GradientMonitor(model).close()
    ss.fold(model, torch.randn(2, 4))


def test_differing_outputs():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x):
            Counting.calls += 1
            return super().forward(x) * Counting.calls

    model = Counting(nn.Linear(4, 4), ss.nn.Tanh(2.0), nn.Linear(4, 4))
    parts = "the outputs of the folded copy differ by", "rounding explains"
    refuses(model, *parts, inputs=torch.randn(2, 4), error=RuntimeError)


def by_channel(alphas):
    """tanh with an alpha of two to these powers for each channel."""
    act = ss.nn.Tanh(learnable=True, num_parameters=len(alphas))
    act.log2_alpha.data.copy_(alphas)
    return act


FOUR = by_channel(torch.arange(4.0))
SIXTEEN = nn.Unflatten(1, (4, 4)), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(8, 2)


@pytest.mark.parametrize(
    ("model", "shape", "parts"),
    [
        (nn.Sequential(nn.Linear(4, 4), FOUR, nn.Linear(4, 4)), None, ("without shapes", "example_inputs")),
        (nn.Sequential(nn.Linear(4, 4), FOUR, nn.Linear(4, 4)), (2, 4), ()),
        (nn.Sequential(nn.Linear(4, 4), FOUR, nn.Linear(4, 4)), (2, 4, 4),
            ("'1' (Tanh)", "differs from channel to channel", "'0' (Linear)")),
        (nn.Sequential(nn.Conv1d(4, 4, 1), FOUR, nn.ChannelShuffle(2), nn.Conv1d(4, 4, 1)), (2, 4, 4),
            ("'1' (Tanh)", "'2' (ChannelShuffle) needs one for all channels")),
        (nn.Sequential(nn.Conv1d(4, 4, 1), FOUR, nn.Conv1d(4, 4, 1)), (2, 4, 4), ()),
        # Without a batch, dimension 1 of a convolution's output does not hold its channels.
        (nn.Sequential(nn.Conv1d(4, 4, 1), FOUR, nn.Conv1d(4, 4, 1)), (4, 4),
            ("'0' (Conv1d) needs one for all channels",)),
        # A scale for each feature, but a pool in between takes several features together.
        (nn.Sequential(nn.Linear(4, 16), by_channel(torch.arange(16.0) / 4), *SIXTEEN), (3, 4),
            ("16 scales of channels into '2' (Unflatten), which has 4",)),
        (nn.Sequential(nn.Linear(4, 16), by_channel(torch.arange(16) // 4), *SIXTEEN), (3, 4), ()),
        (nn.Sequential(nn.Conv1d(2, 4, 1), nn.Flatten(), by_channel(torch.arange(8.0)), nn.Linear(8, 2)),
            (3, 2, 2), ("cannot fold 8 scales of channels into '0' (Conv1d), which has 4",)),
    ],
)  # fmt: skip
def test_alphas_of_channels(model, shape, parts):
    inputs = torch.randn(shape) if shape else None
    if parts:
        refuses(model, *parts, inputs=inputs)
    else:
        ss.fold(model, inputs)


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda y: y.flip(1), "flip() at"),
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
    model = two_layers(lambda m, x: m.second(operation(m.act(m.first(x)))))
    model.act = by_channel(torch.ones(4))
    del model.one, model.two
    ss.fold(model, torch.randn(4, 4))  # all channels have one scale
    model.act.log2_alpha.data.copy_(torch.arange(4.0))
    refuses(model, "'act' (Tanh), whose scale differs", named, inputs=torch.randn(4, 4))


@pytest.mark.parametrize("operation", [lambda y: y.mean(2), lambda y: y.mean(dim=(-1,))])
def test_kept_channels(operation):
    """Whatever is reduced lies behind the channels."""
    parts = {"conv": nn.Conv1d(2, 4, 1), "act": by_channel(torch.arange(4.0)), "last": nn.Linear(4, 2)}
    model = Forward(lambda m, x: m.last(operation(m.act(m.conv(x)))), **parts)
    check(model.double(), torch.randn(3, 2, 5, dtype=torch.float64), example=True)
