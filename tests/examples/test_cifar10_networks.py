"""The networks of the paper's tables, number by number, and their initial parameters."""

import pytest
import torch
from torch import nn

from examples.cifar10 import networks
from examples.cifar10.networks import TABLE_1, TABLE_2, TABLE_3, SeparableConv2d
from examples.cifar10.train import Settings, single
from tests.oracles.cifar10 import PIPELINES

SIDES = (32, 16, 8, 4)


def layers(architecture, **options):
    """Output shapes as the paper writes them, and parameters, of all layers but activations."""
    kept, x = [], torch.zeros(1, 3, 32, 32)
    for layer in networks.build(architecture, nn.Tanh, **options):
        x = layer(x)
        if isinstance(layer, (nn.Conv2d, SeparableConv2d, nn.Linear, nn.MaxPool2d)):
            shape = tuple(x.movedim(1, -1).shape[1:])
            kept.append((shape, sum(parameter.numel() for parameter in layer.parameters())))
    return kept


def shapes(convolutions, dense):
    for stage in range(3):
        yield from [(SIDES[stage], SIDES[stage], 3)] * convolutions
        yield (SIDES[stage + 1], SIDES[stage + 1], 3)
    yield from ((width,) for width in dense)


PLAIN = 3 * 3 * 3 * 3  # of 3 filters
TABLES = [
    (TABLE_1, 2, (8, 10), [*(36, 36, 0) * 3, 392, 90]),
    (TABLE_2, 3, (8, 8, 8, 8, 10), [*(PLAIN, PLAIN, PLAIN, 0) * 3, 384, 64, 64, 64, 80]),
    (TABLE_3, 2, (8, 8, 8, 10), [*(PLAIN, PLAIN, 0) * 3, 384, 64, 64, 80]),
]


@pytest.mark.parametrize(
    ("architecture", "convolutions", "dense", "counts"), TABLES, ids=lambda a: str(a)[:30]
)
def test_every_number_of_the_tables(architecture, convolutions, dense, counts):
    assert layers(architecture) == list(zip(shapes(convolutions, dense), counts, strict=True))


def test_other_readings():
    plain = [count for _, count in layers(TABLE_1, conv="plain", bias=False)]
    assert plain == [*(81, 81, 0) * 3, 384, 80]
    biases = [count for _, count in layers(TABLE_3, bias=True)]
    assert biases == [*(84, 84, 0) * 3, 392, 72, 72, 90]
    separable = [count for _, count in layers(TABLE_2, conv="separable", bias=True)]
    assert separable == [*(39, 39, 39, 0) * 3, 392, 72, 72, 72, 90]


def test_unknown_convolution():
    with pytest.raises(ValueError, match="conv='deep': must be one of plain, separable"):
        networks.build(TABLE_3, nn.Tanh, conv="deep")


def test_activation_everywhere_but_after_pooling_and_output():
    names = "".join(type(layer).__name__[0] for layer in networks.build(TABLE_3, nn.Tanh))
    assert names == "CTCTM" * 3 + "F" + "LTLTLT" + "L"


@pytest.mark.parametrize("name", PIPELINES)
def test_initial_parameters(name):
    network = single(PIPELINES[name], Settings(bias=True), 0)
    weights = torch.cat([p.flatten() for n, p in network.named_parameters() if n.endswith("weight")])
    if name.startswith("deep"):
        assert weights.std().item() == pytest.approx(0.05, rel=0.1)
        assert abs(weights.mean().item()) < 0.005
    else:
        assert weights.min() >= -10
        assert weights.max() < 10
        assert weights.var().item() == pytest.approx(100 / 3, rel=0.1)
    assert all((p == 0).all() for n, p in network.named_parameters() if n.endswith("bias"))


def test_pipelines_of_a_network_start_alike():
    for table in ("large", "deep", "combined"):
        alike = [single(p, Settings(), 3) for name, p in PIPELINES.items() if name.startswith(table)]
        first = list(alike[0].parameters())
        assert all(all(map(torch.equal, first, network.parameters())) for network in alike[1:])


def test_seeds_start_differently():
    one, other = (single(PIPELINES["combined-tanh"], Settings(), seed) for seed in (0, 1))
    assert not torch.equal(one.conv1_1.weight, other.conv1_1.weight)
