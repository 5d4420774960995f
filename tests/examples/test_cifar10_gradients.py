"""The gradients of the CIFAR-10 example: numbers of an epoch, histories of the layers, and resuming them."""

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from examples.cifar10 import train
from examples.cifar10.gradients import COLUMNS, QUANTILES, STATISTICS, EpochGradients
from sigscale.kernels.launcher import ALIGNMENT
from tests.oracles.cifar10 import PIPELINES, RELU, SCALED, TANH, trained


class TestSummary:
    """Of gradients that are given: two networks, the second one of ones."""

    def summarized(self, values, l2=0.0, l1=0.0):
        values = torch.as_tensor(values, dtype=torch.float32)
        parameter = nn.Parameter(torch.stack([torch.full_like(values, 3.0), torch.full_like(values, -2.0)]))
        parameter.grad = torch.stack([values, torch.ones_like(values)])
        gradients = EpochGradients([parameter], 2, l2, l1)
        gradients.record()
        first, second = gradients.summary()
        assert second[len(STATISTICS)] == pytest.approx(1, rel=1 / 32)
        return dict(zip(COLUMNS, first.tolist(), strict=True))

    def test_against_numpy(self):
        values = torch.randn(1001)
        found = self.summarized(values)
        quantiles = [found[f"gradient_q{round(100 * q):02d}"] for q in QUANTILES]
        assert quantiles == pytest.approx(np.quantile(values.abs().double().numpy(), QUANTILES), rel=1 / 32)
        assert found["gradient_mean"] == pytest.approx(values.abs().mean().item(), rel=1 / 64)
        assert {name: found[f"loss_gradient_{name}"] for name in STATISTICS} == {
            name: found[f"gradient_{name}"] for name in STATISTICS
        }

    def test_penalties(self):
        found = self.summarized([1.0, -4.0, 2.0], l2=0.5, l1=0.25)
        assert found["loss_gradient_mean"] == pytest.approx(7 / 3, rel=1 / 32)
        assert found["gradient_mean"] == pytest.approx((2.75 + 2.25 + 3.75) / 3, rel=1 / 32)

    def test_vanished(self):
        found = self.summarized([0.0, 1e-9, 1e-7, 1.0])
        assert found["gradient_vanished"] == 0.5

    def test_not_finite(self):
        found = self.summarized([torch.nan, 1.0, -torch.inf, -3.0, 2.0])
        assert found["gradient_nonfinite"] == 2.0
        assert found["gradient_q50"] == pytest.approx(2.5, rel=1 / 32)  # nan is left out, infinity is a value
        assert found["gradient_mean"] == found["gradient_q95"] == torch.inf

    def test_nothing_but_nan(self):
        found = self.summarized([torch.nan] * 3)
        assert np.isnan([found["gradient_q50"], found["gradient_mean"]]).all()
        assert found["gradient_nonfinite"] == 3


class TestEpoch:
    @pytest.mark.parametrize("pipeline", [TANH, SCALED], ids=lambda pipeline: pipeline.name)
    def test_quantiles_of_all_parameters_and_steps(self, pipeline):
        """Of the second epoch, so that nothing of the first one may be left in the counts."""
        run = trained(pipeline, epochs=1)
        values, loss, objective = [run.network.state_dict(keep_vars=True)], [], []
        parameters = list(run.network.parameters())

        def beside(tensors):
            return torch.cat([tensor.detach().reshape(2, -1) for tensor in tensors], 1)

        values = [beside(parameters)]

        def keep():
            loss.append(beside([parameter.grad for parameter in parameters]))
            objective.append(torch.add(loss[-1], values[-1], alpha=pipeline.l2))
            values.append(beside(parameters))

        train.train_epoch([run], keep)
        for name, kept in (("loss_gradient", loss), ("gradient", objective)):
            magnitudes = torch.cat(kept, 1).abs().double().numpy()
            assert magnitudes.shape[1] == 8 * sum(p[0].numel() for p in parameters)
            for q in QUANTILES:
                found = run.column(f"{name}_q{round(100 * q):02d}")[1]
                assert found == pytest.approx(np.quantile(magnitudes, q, axis=1), rel=1 / 32)
            assert run.column(f"{name}_mean")[1] == pytest.approx(magnitudes.mean(1), rel=1 / 64)

    def test_monitor_sees_the_gradient_of_the_loss_layer_by_layer(self, monkeypatch):
        monkeypatch.setattr(train, "RECORDS", 8)
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

    @pytest.mark.parametrize("name", ["combined-tanh-a2-r", "large-tanh", "combined-relu"])
    def test_measuring_changes_nothing(self, monkeypatch, name):
        measured = trained(PIPELINES[name])
        monkeypatch.setattr(EpochGradients, "record", lambda self: None)
        monkeypatch.setattr(ss.GradientMonitor, "__init__", lambda self, *arguments, **options: None)
        monkeypatch.setattr(ss.GradientMonitor, "step", lambda self: None)
        bare = trained(PIPELINES[name])
        assert np.array_equal(bare.column("train_loss"), measured.column("train_loss"), equal_nan=True)
        for one, two in zip(bare.network.parameters(), measured.network.parameters(), strict=True):
            assert torch.equal(one, two)

    def test_every_epoch_keeps_as_many_steps(self, monkeypatch):
        monkeypatch.setattr(train, "RECORDS", 3)
        run = trained(RELU)
        assert run.monitor.history().steps.tolist() == list(range(0, 24, 3))
        coordinates = 8 * sum(p.numel() for p in run.network.parameters())
        assert int(run.gradients.counts.sum()) == coordinates


@pytest.mark.parametrize("coordinates", [8, 1078])
def test_rows_on_a_gpu_begin_at_16_bytes(coordinates):
    """As one kind of tensor: an unaligned row would take a second launch. The meta device stands in."""
    parameter = nn.Parameter(torch.empty(3, coordinates, device="meta"))
    kept = EpochGradients([parameter], 3, l2=0.1)._kept
    assert kept.shape == (6, 1, coordinates)
    assert kept.stride(0) * kept.element_size() % ALIGNMENT == 0
    assert all(row[:1].is_contiguous() for row in kept)
