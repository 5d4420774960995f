"""The native step of stacked networks against the same networks in PyTorch."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils import cpp_extension

from examples.cifar10 import native, networks
from examples.cifar10.train import Run, Settings, pixel_transform, single
from tests.oracles.cifar10 import BEYOND, CIFAR, CPU, PIPELINES, RELU, SCALED, SETTINGS, TANH, trained

SEEDS, BATCH = 3, 37
OTHERS = ("combined-arctan-a2-r", "combined-softsign-a2-r", "deep-tanh-naive5")
LABELS = CIFAR.train.labels
to_floats = pixel_transform("standard", CIFAR.train.images)


@pytest.fixture(scope="module")
def order():
    numbers = torch.Generator().manual_seed(0)
    return torch.stack([torch.randperm(70, generator=numbers)[:BATCH] for _ in range(SEEDS)])


def joined(pipeline, dtype, *, start=None, **reading):
    """With biases that are not zero, if there are any."""
    singles = [single(pipeline, Settings(**reading), seed).to(dtype) for seed in range(SEEDS)]
    for seed, network in enumerate(singles):
        numbers = torch.Generator().manual_seed(seed)
        if start:
            start(network, numbers)
        for parameter in network.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter, generator=numbers)
    return networks.join(singles)


def by_pytorch(network, order):
    """Losses, hits and gradients."""
    dtype = next(network.parameters()).dtype
    logits = network(networks.images(to_floats(CIFAR.train.images[order.T]).to(dtype)))
    labels = LABELS[order]
    losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels).mean(1)
    gradients = torch.autograd.grad(losses.sum(), list(network.parameters()))
    return losses.detach(), (logits.argmax(2) == labels).sum(1), gradients


def natively(network, order):
    losses, hits = native.Step(network, to_floats, SEEDS)(CIFAR.train.images, LABELS, order, backward=True)
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad()
    return losses, hits, gradients


# With biases everywhere, and as the tables have them, which is without for one of them.
@pytest.mark.parametrize(
    ("name", "bias"),
    [
        *((name, True) for name in (*PIPELINES, *OTHERS)),
        *((name, None) for name in (TANH.name, "large-tanh", "deep-tanh")),
    ],
)
def test_float64_is_that_of_pytorch(name, bias, order):
    network = joined((PIPELINES | BEYOND)[name], torch.float64, bias=bias)
    losses, hits, gradients = natively(network, order)
    expected = by_pytorch(network, order)
    torch.testing.assert_close(losses, expected[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(hits, expected[1])
    for one, other in zip(gradients, expected[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8 * other.abs().max().item())


@pytest.mark.parametrize("name", ["large-tanh-r", "deep-tanh-a2", SCALED.name, RELU.name, *OTHERS])
def test_float32_is_as_close_as_pytorch(name, order):
    """To the gradients in float64, from small weights: large ones magnify every rounding error."""
    pipeline = (PIPELINES | BEYOND)[name]
    network = joined(pipeline, torch.float32, start=networks.small_normal)
    exact = by_pytorch(joined(pipeline, torch.float64, start=networks.small_normal), order)[2]
    for found, theirs, true in zip(
        natively(network, order)[2], by_pytorch(network, order)[2], exact, strict=True
    ):
        size = true.abs().max()
        assert (found - true).abs().max() <= 4 * (theirs - true).abs().max() + 1e-6 * size


@pytest.mark.parametrize("function", native.FUNCTIONS)
def test_functions_at_every_magnitude(function):
    """Networks whose convolution hands x = +-2^k on to the function, and a dense layer that to the loss."""
    levels = torch.cat([sign * 2.0 ** torch.linspace(-30, 6.5, 128) for sign in (-1, 1)])
    layers = {
        "conv": nn.Conv2d(3, 3, 3, padding=1, bias=False),
        "activation": function(),
        **{f"pool{stage}": nn.MaxPool2d(2) for stage in range(3)},
        "flatten": nn.Flatten(),
        "dense": nn.Linear(48, 10, bias=False),
    }
    network = nn.Sequential(OrderedDict(layers))
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()
        network.conv.weight[0, 0, 1, 1] = network.dense.weight[0, 0] = 1
    images = torch.arange(256, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 32, 32)
    labels, order = torch.zeros(256, dtype=torch.int64), torch.arange(256)[:, None]
    network = networks.join([network] * 256)
    step = native.Step(network, lambda images: levels[images.long()], 256)
    losses, _ = step(images, labels, order, backward=True)
    slopes = network.conv.weight.grad[:, 0, 0, 1, 1]
    network.zero_grad()
    network.double()
    logits = network(levels.double().view(1, -1, 1, 1, 1).expand(-1, -1, 3, 32, 32).flatten(1, 2))
    expected = F.cross_entropy(logits[:, 0], labels, reduction="none")
    expected.sum().backward()
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    true = network.conv.weight.grad[:, 0, 0, 1, 1]
    torch.testing.assert_close(slopes.double(), true, rtol=1e-5, atol=1e-5)


def test_threads_and_neighbors_do_not_matter(order):
    network = joined(SCALED, torch.float32)
    one = natively(network, order)
    torch.set_num_threads(2)
    try:
        two = natively(network, order)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    assert all(map(torch.equal, one[2], two[2]))


@pytest.mark.parametrize("name", BEYOND)
def test_what_is_not_native_is_named(name):
    run = Run(BEYOND[name], (0, 1), SETTINGS, CIFAR, CPU)
    if run.native is None:
        assert "no native code for " in run.not_native


@pytest.mark.parametrize("layers", [[nn.Tanh()], [nn.MaxPool2d(2), nn.Tanh()], [nn.Tanh(), nn.Tanh()]])
def test_a_function_without_a_layer_of_its_own(layers):
    if len(layers) > 1:
        layers = [nn.Conv2d(3, 3, 3, padding=1), *layers]
    with pytest.raises(native.NotNativeError, match=f"^no native code for {len(layers) - 1}, Tanh"):
        native.layers_of(networks.join([nn.Sequential(*layers)]))


def test_an_interrupted_build_leaves_nothing(monkeypatch, tmp_path):
    """No half of a library, and no lock that the next build would wait for."""

    def interrupted(name, *args, build_directory, **kwargs):
        for file in (f"{name}.so", "lock"):
            Path(build_directory, file).touch()
        raise KeyboardInterrupt

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "load", interrupted)
    native.library.cache_clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            native.library()
    finally:
        native.library.cache_clear()
    assert not list(tmp_path.iterdir())


def test_without_a_compiler(monkeypatch, tmp_path):
    """PyTorch makes the steps, to the same result as natively."""
    small = PIPELINES["deep-tanh-a2"]
    fast = trained(small)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    native.library.cache_clear()
    try:
        slow = trained(small)
    finally:
        native.library.cache_clear()
    assert slow.native is None
    assert "no-such-compiler" in slow.not_native or "rror" in slow.not_native
    for one, other in zip(slow.network.parameters(), fast.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
