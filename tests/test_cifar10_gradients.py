"""The gradients of the CIFAR-10 example: numbers of an epoch, histories of the layers, and resuming them."""

import numpy as np
import pytest
import torch

import sigscale as ss
from examples.cifar10 import gradients, train
from examples.cifar10.errors import FolderError
from examples.cifar10.folder import Folder
from examples.cifar10.train import FIGURE_3, Run
from test_cifar10_training import CIFAR, CPU, RELU, SCALED, SETTINGS, same, trained

pytestmark = pytest.mark.usefixtures("one_thread")


class TestGradientSummary:
    def summarized(self, values):
        return gradients.summarize("g", ss.QuantileSketch(gradients.MANTISSA_BITS).update(values))

    def test_against_numpy(self):
        values = torch.randn(7, 143)
        found = self.summarized(values)
        expected = np.quantile(values.abs().double().numpy(), gradients.QUANTILES)
        assert list(found.values())[:5] == pytest.approx(expected.tolist(), rel=1 / 32)
        assert found["g_mean"] == pytest.approx(values.abs().mean().item(), rel=1 / 64)
        assert list(found) == ["g_q05", "g_q25", "g_q50", "g_q75", "g_q95", "g_mean", "g_nonfinite"]

    def test_non_finite_values_are_counted(self):
        found = self.summarized(torch.tensor([torch.nan, 1.0, -torch.inf, -3.0, 2.0]))
        assert (found["g_mean"], found["g_nonfinite"]) == (pytest.approx(2.0, rel=1 / 64), 2.0)
        assert found["g_q50"] == pytest.approx(2.5, rel=1 / 32)  # nan is left out, infinity is a value
        assert found["g_q95"] == torch.inf

    def test_nothing_but_nan(self):
        found = self.summarized(torch.full((3,), torch.nan))
        assert np.isnan([found["g_q50"], found["g_mean"]]).all()
        assert found["g_nonfinite"] == 3

    def test_zeros_and_huge_values(self):
        assert set(self.summarized(torch.zeros(1000)).values()) == {0.0}
        found = self.summarized(torch.full((1000,), 3e38))
        assert found["g_mean"] == pytest.approx(3e38, rel=1 / 64)
        assert found["g_q25"] == pytest.approx(3e38, rel=1 / 32)


class TestGradientsOfAnEpoch:
    @pytest.mark.parametrize("pipeline", FIGURE_3, ids=lambda pipeline: pipeline.name)
    def test_quantiles_hold_those_of_all_parameters_and_steps(self, pipeline):
        """Of the second epoch, so that nothing of the first one may be left in the sketches."""
        run = trained(pipeline, epochs=1)
        parameters = list(run.network.parameters())
        loss, objective, values = [], [], []

        def keep_values():
            values.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))

        def keep():
            loss.append(torch.cat([parameter.grad.flatten() for parameter in parameters]))
            objective.append(torch.add(loss[-1], values[-1], alpha=pipeline.penalty))
            keep_values()

        keep_values()
        run.train_epoch(keep)
        for name, kept, sketch in (
            ("loss_gradient", loss, run.gradients.loss),
            ("gradient", objective, run.gradients.objective),
        ):
            magnitudes = torch.stack(kept).abs().double().numpy()
            assert int(sketch.count) == magnitudes.size == 8 * sum(p.numel() for p in parameters)
            for q in gradients.QUANTILES:
                lower, upper = (bound.item() for bound in sketch.bounds(q, magnitude=True))
                assert lower <= np.quantile(magnitudes, q) <= upper
                assert lower <= run.history[1][f"{name}_q{round(100 * q):02d}"] <= upper
            assert run.history[1][f"{name}_mean"] == pytest.approx(magnitudes.mean(), rel=1 / 64)

    def test_monitor_sees_the_gradient_of_the_loss_layer_by_layer(self):
        run = trained(SCALED, epochs=1)
        history = run.monitor.history()
        assert history.steps.tolist() == list(range(8))
        assert history.names[:3] == ["all activations", "all parameters", "conv1_1_activation"]
        assert history.kinds.count("activation") == 9
        assert history.names[-1] == "dense4.weight"
        (last,) = run.network.dense4.parameters()
        median = np.quantile(last.grad.abs().double().numpy(), 0.5)
        assert history.quantile(0.5)[-1, -1] == pytest.approx(median, rel=1 / 8)
        assert history.below(train.VANISHED).shape == (8, 21)

    @pytest.mark.parametrize("pipeline", FIGURE_3, ids=lambda pipeline: pipeline.name)
    def test_measuring_changes_nothing(self, monkeypatch, pipeline):
        measured = trained(pipeline)
        monkeypatch.setattr(gradients.EpochGradients, "record", lambda self: None)
        monkeypatch.setattr(ss.GradientMonitor, "__init__", lambda self, *arguments, **options: None)
        monkeypatch.setattr(ss.GradientMonitor, "step", lambda self: None)
        bare = trained(pipeline)
        assert [row["train_loss"] for row in bare.history] == [row["train_loss"] for row in measured.history]
        for one, two in zip(bare.network.parameters(), measured.network.parameters(), strict=True):
            assert torch.equal(one, two)

    def test_long_runs_keep_as_many_steps_as_short_ones(self, monkeypatch):
        monkeypatch.setattr(train, "RECORDS", 10)
        run = trained(RELU)
        assert run.monitor.history().steps.tolist() == list(range(0, 24, 3))
        assert int(run.gradients.loss.count) == 8 * sum(p.numel() for p in run.network.parameters())


class TestSavedGradients:
    def test_gradients_that_are_ahead_of_the_checkpoint_are_cut_off(self, tmp_path, monkeypatch):
        monkeypatch.setattr(train, "RECORDS", 10)
        folder, run = Folder(tmp_path), trained(epochs=1)
        folder.begin({})
        folder.save(run)
        run.train_epoch()
        run.monitor.save(tmp_path / "gradients" / "tanh-scaled-penalty-seed0.npz")
        resumed = Run(SCALED, 0, SETTINGS, CIFAR, CPU)
        folder.restore(resumed)
        assert resumed.monitor.history().steps.tolist() == [0, 3, 6]
        while not resumed.done:
            resumed.train_epoch()
        assert same(resumed, trained())

    def test_damaged_gradients(self, tmp_path):
        folder, run = Folder(tmp_path), trained(epochs=2)
        folder.begin({})
        folder.save(run)
        (file,) = (tmp_path / "gradients").iterdir()
        trained(epochs=1).monitor.save(tmp_path / "short.npz")
        short = (tmp_path / "short.npz").read_bytes()
        for content in (file.read_bytes()[:5000], b"", short):
            file.write_bytes(content)
            with pytest.raises(FolderError, match=r"seed0\.npz: missing or damaged .*Delete .*seed0\.pt: "):
                folder.restore(Run(SCALED, 0, SETTINGS, CIFAR, CPU))
        file.unlink()
        with pytest.raises(FolderError, match=r"seed0\.npz: missing or damaged \(FileNotFoundError\)"):
            folder.restore(Run(SCALED, 0, SETTINGS, CIFAR, CPU))
