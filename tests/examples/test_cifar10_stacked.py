"""Many networks as one: against the same networks one after the other, in the modules of PyTorch."""

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sigscale as ss
from examples.cifar10 import networks, stacked
from examples.cifar10.runtime import generator
from examples.cifar10.train import Settings, single
from tests.oracles.cifar10 import BEYOND, PIPELINES

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = 3


def singles(pipeline, settings=None, dtype=torch.float64):
    return [single(pipeline, settings or Settings(), seed).to(dtype) for seed in range(SEEDS)]


def batches(steps, size=4):
    numbers = torch.Generator().manual_seed(1)
    for _ in range(steps):
        images = torch.rand(SEEDS, size, 3, 32, 32, generator=numbers, dtype=torch.float64)
        yield images, torch.randint(10, (SEEDS, size), generator=numbers)


def logits(joined, images):
    """images (seeds, b, 3, h, h) -> (seeds, b, classes)"""
    return joined(stacked.images(images.transpose(0, 1)))


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


@pytest.mark.parametrize("name", PIPELINES)
def test_fifty_steps_are_those_of_single_runs(name):
    """In float64, and no further from them than they are from themselves with other last bits at the start.

    Rounding is all that may differ, but where tanh saturates, a gradient is nothing else, and Adam makes
    steps of it.
    """
    pipeline = PIPELINES[name]
    alone, shaken = singles(pipeline), singles(pipeline)
    joined = stacked.join(alone)
    for seed in range(SEEDS):
        with torch.no_grad():
            for parameter in shaken[seed].parameters():
                signs = torch.empty_like(parameter).bernoulli_(generator=generator(seed, 1)).sub_(0.5)
                parameter.mul_(1 + signs * 2.0**-51)
        steps = [(images[seed], labels[seed]) for images, labels in batches(50)]
        losses = [lambda network, x=x, y=y: F.cross_entropy(network(x), y) for x, y in steps]
        train(alone[seed], pipeline, losses)
        train(shaken[seed], pipeline, losses)
    train(
        joined,
        pipeline,
        [
            lambda network, x=x, y=y: (
                F.cross_entropy(logits(network, x).flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
            )
            for x, y in batches(50)
        ],
    )
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
def test_other_readings(architecture, conv):
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
    joined = stacked.join(alone)
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
    joined = stacked.join(alone)
    with torch.no_grad():
        for parameter in joined.parameters():
            parameter.zero_()
    for network, old in zip(alone, before, strict=True):
        assert all(map(torch.equal, network.parameters(), old.parameters()))
    assert [*dict(joined.named_children())] == [*dict(alone[0].named_children())]
