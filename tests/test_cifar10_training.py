"""The network of Table 3, the pipelines of Figure 3, and one epoch after another, bit for bit."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from examples.cifar10 import gradients, networks, train
from examples.cifar10.data import Cifar10, Split
from examples.cifar10.errors import FolderError
from examples.cifar10.folder import Folder
from examples.cifar10.train import FIGURE_3, Run, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SETTINGS = Settings(epochs=3, batch=8)
TANH, SCALED, RELU, RELU_PENALTY = FIGURE_3


def split(images, seed):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (images,), generator=generator)
    return Split(pixels.contiguous(memory_format=torch.channels_last), labels)


CIFAR = Cifar10(split(70, 0), split(30, 1), "a test", "0")


def trained(pipeline=SCALED, seed=0, epochs=3, settings=SETTINGS):
    run = Run(pipeline, seed, settings, CIFAR, CPU)
    for _ in range(epochs):
        run.train_epoch()
    return run


def numbers(run):
    """All of the history but the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.history]


def same(one, other):
    return (
        numbers(one) == numbers(other)
        and all(map(torch.equal, one.network.parameters(), other.network.parameters()))
        and same_history(one.monitor.history(), other.monitor.history())
    )


def same_history(one, other):
    return all(
        np.array_equal(getattr(one, field), getattr(other, field), equal_nan=field == "values")
        for field in ("steps", "names", "kinds", "quantiles", "thresholds", "values", "step_count")
    )


class TestNetwork:
    SHAPES = (
        (32, 32, 3),
        (32, 32, 3),
        (16, 16, 3),
        (16, 16, 3),
        (16, 16, 3),
        (8, 8, 3),
        (8, 8, 3),
        (8, 8, 3),
    )
    SHAPES = (*SHAPES, (4, 4, 3), (8,), (8,), (8,), (10,))

    def layers(self, **options):
        network = networks.build(networks.TABLE_3, nn.Tanh, **options)
        kept, x = [], torch.zeros(1, 3, 32, 32)
        for layer in network:
            x = layer(x)
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.MaxPool2d)):
                shape = tuple(x.movedim(1, -1).shape[1:])
                kept.append((shape, sum(parameter.numel() for parameter in layer.parameters())))
        return kept

    def test_table_3(self):
        convolution = 3 * 3 * 3 * 3
        counts = (*(convolution, convolution, 0) * 3, 384, 64, 64, 80)
        assert self.layers() == list(zip(self.SHAPES, counts, strict=True))

    def test_separable_convolutions_count_36_as_in_table_1(self):
        counts = [count for _, count in self.layers(conv="separable")]
        assert counts == [*(27, 9, 27, 9, 0) * 3, 384, 64, 64, 80]

    def test_biases_as_in_table_1(self):
        counts = [count for _, count in self.layers(bias=True)]
        assert counts == [*(84, 84, 0) * 3, 392, 72, 72, 90]

    def test_activation_everywhere_but_after_pooling_and_output(self):
        names = "".join(type(layer).__name__[0] for layer in networks.build(networks.TABLE_3, nn.Tanh))
        assert names == "CTCTM" * 3 + "F" + "LTLTLT" + "L"

    def test_initial_parameters(self):
        run = Run(TANH, 0, Settings(bias=True), CIFAR, CPU)
        weights = torch.cat([p.flatten() for n, p in run.network.named_parameters() if n.endswith("weight")])
        assert weights.min() >= -10
        assert weights.max() < 10
        torch.testing.assert_close(weights.var().item(), 100 / 3, rtol=0.1, atol=0)
        assert all((p == 0).all() for n, p in run.network.named_parameters() if n.endswith("bias"))

    def test_unknown_convolution(self):
        with pytest.raises(ValueError, match="conv='deep': must be one of plain, separable"):
            networks.build(networks.TABLE_3, nn.Tanh, conv="deep")


class TestReproducibility:
    def test_same_seed_same_result(self):
        assert same(trained(), trained())

    def test_seeds_differ_in_start_and_order(self):
        one, other = (Run(TANH, seed, SETTINGS, CIFAR, CPU) for seed in (0, 1))
        assert not torch.equal(one.network[0].weight, other.network[0].weight)
        draws = {train._generator(seed, epoch).initial_seed() for seed in range(25) for epoch in range(101)}
        assert len(draws) == 25 * 101

    def test_pipelines_of_a_seed_start_alike(self):
        starts = [Run(pipeline, 3, SETTINGS, CIFAR, CPU).network[0].weight for pipeline in FIGURE_3]
        assert all(torch.equal(starts[0], start) for start in starts)

    @pytest.mark.parametrize("pipeline", FIGURE_3, ids=lambda pipeline: pipeline.name)
    def test_resumed_run_equals_uninterrupted_one(self, tmp_path, pipeline):
        folder = Folder(tmp_path)
        folder.begin({})
        folder.save(trained(pipeline, epochs=1))
        resumed = Run(pipeline, 0, SETTINGS, CIFAR, CPU)
        folder.restore(resumed)
        while not resumed.done:
            resumed.train_epoch()
        assert same(resumed, trained(pipeline))

    def test_damaged_checkpoint(self, tmp_path):
        folder, run = Folder(tmp_path), trained(epochs=1)
        folder.begin({})
        folder.save(run)
        (checkpoint,) = (tmp_path / "checkpoints").iterdir()
        for content in (checkpoint.read_bytes()[:5000], b"", b"\x80\x02cos\nsystem\n."):
            checkpoint.write_bytes(content)
            with pytest.raises(FolderError, match=r"seed0\.pt: missing or damaged .*Delete .*seed0\.pt: "):
                folder.restore(run)


class TestEpoch:
    def test_no_step_asks_the_device(self):
        """Nothing reads a number off a tensor, and nothing copies one to the host, before the epoch's end."""
        operations = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                operations.append(operation.overloadpacket)
                return operation(*args, **(kwargs or {}))

        run = Run(SCALED, 0, SETTINGS, CIFAR, CPU)
        with Watch():
            run._train(1, lambda: operations.append("step"))
        last = max(index for index, operation in enumerate(operations) if operation == "step")
        assert operations.count("step") == 8
        forbidden = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero}
        assert not forbidden & set(operations[: last + 1])

    def test_incomplete_batch_is_dropped_and_steps_are_capped(self):
        assert SETTINGS.steps_per_epoch(70) == 8
        assert Settings().steps_per_epoch(50_000) == 1562
        assert Settings(steps=400).steps_per_epoch(50_000) == 400
        assert Settings(steps=400).steps_per_epoch(3200) == 100

    def test_numbers_of_an_epoch(self):
        run = trained(TANH, epochs=0)
        before = run.accuracy(CIFAR.test)
        with torch.no_grad():
            logits = run.network(CIFAR.test.images.float() / 255)
        assert before == pytest.approx((logits.argmax(1) == CIFAR.test.labels).double().mean().item())
        run.train_epoch()
        (row,) = run.history
        assert row["test_accuracy"] == run.accuracy(CIFAR.test)
        assert row["train_loss"] == pytest.approx(run.losses.mean().item())
        assert 0 <= row["train_accuracy"] <= 1
        assert row["gradient_q50"] == row["loss_gradient_q50"]

    def test_weight_decay_is_the_penalty_of_the_paper(self):
        """One step equals one of plain Adam on loss + r/2 * sum(theta^2), whose gradient is recorded."""
        settings = Settings(epochs=1, batch=70)
        run = trained(SCALED, epochs=1, settings=settings)
        other = Run(SCALED, 0, settings, CIFAR, CPU)
        optimizer = torch.optim.Adam(other.network.parameters(), lr=settings.lr)
        order = torch.randperm(70, generator=train._generator(0, 1))
        logits = other.network(CIFAR.train.images[order].float() / 255)
        squares = sum((parameter**2).sum() for parameter in other.network.parameters())
        (F.cross_entropy(logits, CIFAR.train.labels[order]) + SCALED.penalty / 2 * squares).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in other.network.parameters()])
        expected = np.quantile(gradient.abs().double().numpy(), gradients.QUANTILES)
        found = [value for key, value in run.history[0].items() if key.startswith("gradient_q")]
        assert found == pytest.approx(expected.tolist(), rel=1 / 32 + 1e-4)
        optimizer.step()
        for one, two in zip(run.network.parameters(), other.network.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


class TestPixels:
    IMAGES = CIFAR.train.images

    def test_unit_and_byte(self):
        assert torch.equal(train.pixel_transform("unit", self.IMAGES)(self.IMAGES), self.IMAGES / 255)
        assert torch.equal(train.pixel_transform("byte", self.IMAGES)(self.IMAGES), self.IMAGES.float())

    def test_standard(self):
        pixels = train.pixel_transform("standard", self.IMAGES)(self.IMAGES)
        torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(pixels.var((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)

    def test_unknown(self):
        with pytest.raises(ValueError, match="pixels='bits': must be one of unit, byte, standard"):
            train.pixel_transform("bits", self.IMAGES)
