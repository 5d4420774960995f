"""Epoch after epoch of several seeds at once: reproducible, resumable, and never asking the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from examples.cifar10 import train
from examples.cifar10.gradients import QUANTILES
from examples.cifar10.runtime import FolderError, orders
from examples.cifar10.store import Folder
from examples.cifar10.train import NUMBERS, Run, Settings, single, train_epoch
from sigscale.kernels import reference_sketch
from tests.oracles.cifar10 import BEYOND, CIFAR, CPU, PIPELINES, SCALED, SETTINGS, TANH, same, trained


class TestReproducibility:
    def test_same_seeds_same_result(self):
        assert same(trained(), trained())

    def test_a_seed_alone_is_the_seed_among_others(self):
        """To rounding, which large weights magnify: hence the network that starts from small ones."""
        small = PIPELINES["deep-tanh-a2"]
        alone, among = trained(small, (1,)), trained(small, (0, 1, 2))
        for one, other in zip(alone.network.parameters(), among.network.parameters(), strict=True):
            torch.testing.assert_close(one[0], other[1], rtol=1e-4, atol=1e-5)
        for name in ("test_accuracy", "train_accuracy", "train_loss", "gradient_q50", "gradient_mean"):
            one, other = alone.column(name)[:, 0], among.column(name)[:, 1]
            assert one == pytest.approx(other, rel=0.02), name

    @pytest.mark.parametrize(
        "name",
        [
            *("deep-tanh", SCALED.name, "combined-relu", "combined-sigmoid"),  # native steps
            *("deep-tanh-norm", "deep-tanh-learned", "large-tanh-s", "combined-tanh-a2-r-bf16-output"),
        ],
    )
    def test_resumed_run_equals_uninterrupted_one(self, tmp_path, name):
        folder = Folder(tmp_path)
        folder.begin({})
        pipeline = (PIPELINES | BEYOND)[name]
        folder.save(trained(pipeline, epochs=1))
        resumed = Run(pipeline, (0, 1), SETTINGS, CIFAR, CPU)
        folder.restore(resumed)
        assert resumed.epoch == 1
        while not resumed.done:
            train_epoch([resumed])
        assert same(resumed, trained(pipeline))

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    def test_side_by_side(self, device):
        """To the result of each alone, also if one is further than the others."""
        device, settings = torch.device(device), SETTINGS
        alone, beside = (
            [Run(pipeline, (0, 1), settings, CIFAR.to(device), device) for pipeline in (TANH, SCALED)]
            for _ in range(2)
        )
        for run in alone:
            while not run.done:
                train_epoch([run])
        train_epoch(beside[1:])
        while training := [run for run in beside if not run.done]:
            train_epoch(training)
        assert all(map(same, alone, beside))
        assert not same(*beside)

    @pytest.mark.gpu
    def test_resumed_run_on_a_gpu(self, tmp_path):
        """Where the first one went on from graphs, and the second one has to capture them anew."""
        folder, device = Folder(tmp_path), torch.device("cuda")
        folder.begin({})
        settings = replace(SETTINGS, epochs=7)
        runs = [Run(SCALED, (0, 1), settings, CIFAR.to(device), device) for _ in range(2)]
        train_epoch(runs[:1])
        folder.save(runs[0])
        folder.restore(runs[1])
        for run in runs:
            while not run.done:
                train_epoch([run])
        assert same(*runs)

    def test_damaged_state(self, tmp_path):
        folder, run = Folder(tmp_path), trained(epochs=1)
        folder.begin({})
        folder.save(run)
        (state,) = (tmp_path / "state").iterdir()
        for content in (state.read_bytes()[:5000], b"", b"\x80\x02cos\nsystem\n."):
            state.write_bytes(content)
            with pytest.raises(FolderError, match=r"seeds0-1\.pt: missing or damaged .*Delete it"):
                folder.restore(run)

    def test_state_of_another_device(self, tmp_path, monkeypatch):
        folder, run = Folder(tmp_path), trained(epochs=1)
        folder.begin({})
        folder.save(run)
        monkeypatch.setattr("examples.cifar10.store.device_name", lambda device: "a GPU")
        with pytest.raises(FolderError, match="was begun on cpu, this is a GPU"):
            folder.restore(run)


class TestEpoch:
    def test_no_step_asks_the_device(self, monkeypatch):
        """Nothing reads a number off a tensor, and nothing copies one to the host, before the epoch's end.

        Nothing is counted meanwhile: on a GPU that is a kernel's work, and its twin may read.
        """
        for twin in ("count", "count_many"):
            monkeypatch.setattr(reference_sketch, twin, lambda *args: None)
        operations = []

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
                operations.append(operation.overloadpacket)
                return operation(*args, **(kwargs or {}))

        run = Run(SCALED, (0, 1), SETTINGS, CIFAR, CPU)
        with Watch():
            train_epoch([run], lambda: operations.append("step"))
        assert operations.count("step") == 8
        forbidden = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero}
        assert not forbidden & set(operations)

    def test_incomplete_batch_is_dropped_and_steps_are_capped(self):
        assert SETTINGS.steps_per_epoch(70) == 8
        assert Settings().steps_per_epoch(50_000) == 1562
        assert Settings(steps=400).steps_per_epoch(50_000) == 400
        assert Settings(steps=400).steps_per_epoch(3200) == 100

    def test_numbers_of_an_epoch(self):
        """Against plain PyTorch: one seed's network by itself, before the first and after the last step."""
        settings = Settings(epochs=1, batch=70)
        run = trained(TANH, (0, 5), epochs=1, settings=settings)
        assert run.column("test_accuracy").shape == (1, 2)
        for place, seed in enumerate(run.seeds):
            network = single(TANH, settings, seed)
            order = orders([seed], 1, 70, CPU)[0]
            logits = network(CIFAR.train.images[order] / 255)
            labels = CIFAR.train.labels[order]
            found = dict(zip(NUMBERS, run.history[0][place], strict=True))
            assert found["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert found["train_accuracy"] == pytest.approx((logits.argmax(1) == labels).double().mean())
            for parameter, trained_one in zip(network.parameters(), run.network.parameters(), strict=True):
                parameter.data.copy_(trained_one[place])
            hits = network(CIFAR.test.images / 255).argmax(1) == CIFAR.test.labels
            assert found["test_accuracy"] == pytest.approx(hits.double().mean().item())

    def test_weight_decay_is_the_penalty_of_the_paper(self):
        """One step equals one of plain Adam on loss + r/2 * sum(theta^2), whose gradient is recorded."""
        settings = Settings(epochs=1, batch=70)
        run = trained(SCALED, (0, 5), epochs=1, settings=settings)
        network = single(SCALED, settings, 5)
        optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
        order = orders([5], 1, 70, CPU)[0]
        squares = sum((parameter**2).sum() for parameter in network.parameters())
        logits = network(CIFAR.train.images[order] / 255)
        (F.cross_entropy(logits, CIFAR.train.labels[order]) + SCALED.l2 / 2 * squares).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        expected = np.quantile(gradient.abs().double().numpy(), QUANTILES)
        found = [run.column(f"gradient_q{round(100 * q):02d}")[0, 1] for q in QUANTILES]
        assert found == pytest.approx(expected.tolist(), rel=1 / 32 + 1e-4)
        optimizer.step()
        for one, two in zip(run.network.parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(one[1], two, rtol=0, atol=1e-6)

    @pytest.mark.gpu
    @pytest.mark.parametrize("name", ["combined-tanh-a2-r", "large-tanh-r", "deep-tanh"])
    def test_graph_is_the_steps_it_replays(self, name):
        """Bit for bit, measured ones or not."""
        device = torch.device("cuda")
        runs = []
        for eager in (True, False):
            run = Run(PIPELINES[name], range(3), SETTINGS, CIFAR.to(device), device)
            run._train_step.graphs = run._test.graphs = not eager
            while not run.done:
                train_epoch([run])
            runs.append(run)
        assert same(*runs)


class TestShuffling:
    def test_permutations_that_differ(self):
        found = orders(range(3), 1, 70, CPU)
        assert found.sort(1).values.tolist() == [list(range(70))] * 3
        rows = {tuple(row) for epoch in (1, 2) for row in orders(range(3), epoch, 70, CPU).tolist()}
        assert len(rows) == 6

    def test_is_split_mix(self):
        """Against the algorithm in Python's own integers."""
        start, keys = int(np.random.SeedSequence((5, 2)).generate_state(1, np.uint64)[0]), []
        for _ in range(200):
            start = z = (start + 0x9E3779B97F4A7C15) % 2**64
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            z ^= z >> 31
            keys.append(z - 2**64 if z >= 2**63 else z)
        assert orders([4, 5], 2, 200, CPU)[1].tolist() == sorted(range(200), key=keys.__getitem__)

    def test_every_place_is_as_likely(self):
        first = orders(range(2000), 1, 10, CPU)[:, 0]
        counts = torch.bincount(first, minlength=10).double()
        assert ((counts - 200) ** 2 / 200).sum() < 28  # chi squared, 9 degrees of freedom, 0.1 %


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
