"""In a Lightning training the callback records gradients accumulated, unscaled and before clipping."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import sigscale as ss
from sigscale.integrations.files import FileLogger
from tests.oracles.collected import assert_row, flattened
from tests.oracles.logged import scalars

pl = pytest.importorskip("lightning.pytorch")
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from sigscale.integrations.lightning import GradientMonitorCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore:.*isinstance.treespec.*"),
]

SCALE, CLIP = 8.0, 1e-3


class Network(pl.LightningModule):
    """Keeps the gradients of each step as the optimizer is about to get them: `truth[step][name]`."""

    def __init__(self, scale: float = 1.0, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 3), ss.nn.Tanh(), nn.Linear(3, 1))
        self.scale, self.optimizer_count = scale, optimizers
        self.automatic_optimization = optimizers == 1
        self.truth: list[dict[str, np.ndarray]] = []
        self.norms: list[float] = []
        self.parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        hidden = self.net[0](batch)
        hidden.register_hook(lambda g: self.parts["net.1"].append(flattened(g) / self.scale))
        return self.net[1:](hidden).square().mean()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        found = {name: flattened(p.grad) for name, p in self.named_parameters()}
        self.truth.append({**found, **{name: np.concatenate(parts) for name, parts in self.parts.items()}})
        self.parts.clear()

    def optimizer_step(self, epoch, index, optimizer, closure) -> None:
        super().optimizer_step(epoch, index, optimizer, closure)
        self.norms.append(sum(p.grad.square().sum().item() for p in self.parameters()) ** 0.5)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(self.optimizer_count)]


def fit(callback, folder, network=None, *, resume=None, **options):
    """The trainer and the network after a training of 6 batches an epoch."""
    network = Network() if network is None else network
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    options = {"max_epochs": 1, "logger": False, **quiet, **options}
    trainer = pl.Trainer(accelerator="cpu", callbacks=[callback], default_root_dir=folder, **options)
    batches = torch.randn(6, 8, 4, generator=torch.Generator().manual_seed(1))
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(network, loader, **(resume or {}))
    return trainer, network


def half_precision() -> dict[str, object]:
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=100)
    return {"plugins": MixedPrecision("16-mixed", "cpu", scaler)}


@pytest.mark.parametrize(
    ("scale", "precision", "accumulated"),
    [
        (1.0, dict, 3),
        (1.0, lambda: {"precision": "bf16-mixed"}, 1),
        (SCALE, half_precision, 1),
        (SCALE, half_precision, 3),
    ],
    ids=["fp32", "bf16", "fp16", "fp16, accumulated"],
)
@pytest.mark.works_with("Lightning", "monitor")
def test_gradients_before_clipping(scale, precision, accumulated, tmp_path):
    callback = GradientMonitorCallback()
    options = {"gradient_clip_val": CLIP, "accumulate_grad_batches": accumulated, **precision()}
    _, network = fit(callback, tmp_path, Network(scale), **options)
    history = callback.monitor.history()
    assert history.steps.tolist() == [*range(6 // accumulated)]
    assert history.names[2:] == ["net.1", *(name for name, _ in network.named_parameters())]
    assert max(network.norms) < 1.01 * CLIP
    for step, truth in enumerate(network.truth):
        assert np.linalg.norm(truth["net.2.weight"]) > 2 * CLIP
        for name, g in truth.items():
            assert_row(history, step, name, g)


def test_trainer_loggers_get_the_history(tmp_path):
    callback, logger = GradientMonitorCallback(ring=4), CSVLogger(tmp_path, version=0)
    fit(callback, tmp_path, logger=logger)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        lines = [*csv.DictReader(file)]
    want = scalars(callback.monitor.history(), ["q05", "q25", "q50", "q75", "q95", "below_1e-08"])
    for tag, numbers in want.items():
        assert {int(line["step"]): float(line[tag]) for line in lines if line[tag]} == numbers, tag


@pytest.mark.parametrize("weights_only", [False, True])
def test_resumed_training_continues_the_history(tmp_path, weights_only):
    whole = GradientMonitorCallback()
    fit(whole, tmp_path, max_epochs=2)
    path = tmp_path / "gradients.csv"
    first = GradientMonitorCallback(logger=partial(FileLogger, path=path))
    trainer, _ = fit(first, tmp_path)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = GradientMonitorCallback(logger=partial(FileLogger, path=path))
    resume = {"ckpt_path": tmp_path / "last.ckpt", "weights_only": weights_only}
    fit(resumed, tmp_path, resume=resume, max_epochs=2)
    want, found = whole.monitor.history(), resumed.monitor.history()
    assert found.names == want.names
    np.testing.assert_array_equal(found.steps, want.steps)
    np.testing.assert_array_equal(found.values, want.values)
    assert len(path.read_text().splitlines()) == 1 + 12 * len(want.names)


def test_another_training_begins_another_history(tmp_path):
    callback = GradientMonitorCallback()
    for _ in range(2):
        fit(callback, tmp_path)
        assert callback.monitor.history().steps.tolist() == [0, 1, 2, 3, 4, 5]


def test_model_is_free_after_an_error(tmp_path):
    network = Network()
    network.configure_gradient_clipping = lambda *args, **options: 1 / 0
    callback = GradientMonitorCallback()
    with pytest.raises(ZeroDivisionError):
        fit(callback, tmp_path, network)
    assert len(callback.monitor.history()) == 1
    ss.GradientMonitor(network).close()


def test_refusals(tmp_path):
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        GradientMonitorCallback(evry=10)
    with pytest.raises(ValueError, match="a step must be that of one optimizer; the training has 2: make a"):
        fit(GradientMonitorCallback(), tmp_path, Network(optimizers=2))
