"""The networks of the paper's tables, number by number, their start, and many of them as one."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sigscale as ss
from examples.cifar10 import networks
from examples.cifar10.networks import TABLE_1, TABLE_2, TABLE_3, SeparableConv2d
from examples.cifar10.runtime import generator
from examples.cifar10.train import Settings, single
from tests.oracles.cifar10 import BEYOND, PIPELINES

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


SEEDS = 3


def singles(pipeline):
    return [single(pipeline, Settings(), seed).double() for seed in range(SEEDS)]


def batches(steps, size=4):
    numbers = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.rand(SEEDS, size, 3, 32, 32, generator=numbers, dtype=torch.float64)
        yield images, torch.randint(10, (SEEDS, size), generator=numbers)


def logits(joined, images):
    """images (seeds, b, 3, h, h) -> (seeds, b, classes)"""
    return joined(networks.images(images.transpose(0, 1)))


def train(network, pipeline, losses):
    """All parameters, flat, after a step of Adam for each loss."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.001)
    if pipeline.l2:
        ss.WeightPenalty(network, pipeline.l2).attach(optimizer)
    for loss in losses:
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.parametrize("name", ["large-tanh", "deep-tanh-a2", "combined-tanh-a2-r", "combined-relu"])
def test_fifty_steps_are_those_of_single_runs(name):
    """In float64, and no further from them than they are from themselves with other last bits at the start.

    Rounding is all that may differ, but where tanh saturates, a gradient is nothing else, and Adam makes
    steps of it.
    """
    pipeline = PIPELINES[name]
    alone, shaken = singles(pipeline), singles(pipeline)
    joined = networks.join(alone)
    for seed in range(SEEDS):
        with torch.no_grad():
            for parameter in shaken[seed].parameters():
                signs = torch.empty_like(parameter).bernoulli_(generator=generator(seed, 1)).sub_(0.5)
                parameter.mul_(1 + signs * 2.0**-51)
        steps = [(images[seed], labels[seed]) for images, labels in batches(50)]
        losses = [lambda network, x=x, y=y: F.cross_entropy(network(x), y) for x, y in steps]
        train(alone[seed], pipeline, losses)
        train(shaken[seed], pipeline, losses)

    def loss(network, x, y):
        return F.cross_entropy(logits(network, x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]

    train(joined, pipeline, [lambda network, x=x, y=y: loss(network, x, y) for x, y in batches(50)])
    expected = torch.stack([flat(network) for network in alone])
    found = torch.cat([p.detach().reshape(SEEDS, -1) for p in joined.parameters()], 1)
    sensitivity = (torch.stack([flat(network) for network in shaken]) - expected).abs().amax(1)
    apart = (found - expected).abs().amax(1)
    start = torch.stack([flat(network) for network in singles(pipeline)])
    assert (expected - start).abs().amax() > 1e-3  # they have gone somewhere
    tolerance = 100 * sensitivity + 1e-9
    assert (apart <= tolerance).all(), (apart, sensitivity)
    assert (tolerance < 0.1 * (expected - start).abs().amax(1)).any()  # which is not so for all: chaos


@pytest.mark.parametrize("conv", ["separable", "plain"])
@pytest.mark.parametrize("architecture", [networks.TABLE_1, networks.TABLE_2], ids=lambda a: a.name)
def test_other_readings_joined(architecture, conv):
    """One forward and backward pass, with biases that are not zero."""
    alone = []
    for seed in range(SEEDS):
        network = networks.build(architecture, nn.Tanh, conv=conv, bias=True).double()
        ss.init.small_normal_(network, 0.3, generator(seed))
        for parameter in network.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, generator=generator(seed, 1))
        alone.append(network)
    check_gradients(alone)


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_compared_beyond_the_paper(name):
    """One forward and backward pass, and one in evaluation mode."""
    pipeline = BEYOND[name]
    alone = []
    for seed in range(SEEDS):
        network = networks.build(networks.TABLE_3, pipeline.activation, normalize=pipeline.normalize)
        networks.small_normal(network, generator(seed))
        alone.append(network.double())
    joined = check_gradients(alone)
    for network in (joined, *alone):
        network.eval()
    (images, _), *_ = batches(1)
    expected = torch.stack([network(x) for network, x in zip(alone, images, strict=True)])
    torch.testing.assert_close(logits(joined, images), expected)


def check_gradients(alone):
    joined = networks.join(alone)
    (images, labels), *_ = batches(1)
    expected = torch.stack([network(x) for network, x in zip(alone, images, strict=True)])
    found = logits(joined, images)
    torch.testing.assert_close(found, expected)
    for values in (found, expected):
        F.cross_entropy(values.flatten(0, 1), labels.flatten()).backward()
    parts = [p.grad.reshape(SEEDS, -1) for p in joined.parameters()]
    for seed, network in enumerate(alone):
        gradient = torch.cat([p.grad.flatten() for p in network.parameters()])
        torch.testing.assert_close(torch.cat([part[seed] for part in parts]), gradient, rtol=1e-9, atol=1e-12)
    return joined


def test_joining_copies():
    alone = singles(PIPELINES["combined-tanh"])
    before = copy.deepcopy(alone)
    joined = networks.join(alone)
    with torch.no_grad():
        for parameter in joined.parameters():
            parameter.zero_()
    for network, old in zip(alone, before, strict=True):
        assert all(map(torch.equal, network.parameters(), old.parameters()))
    assert [*dict(joined.named_children())] == [*dict(alone[0].named_children())]
