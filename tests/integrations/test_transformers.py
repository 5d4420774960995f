"""In a training by Transformers' Trainer the callback records the gradients that reach the optimizer."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pytest
import torch

import sigscale as ss
from sigscale.integrations.files import FileLogger
from tests.oracles.collected import assert_row, flattened

pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sigscale.integrations.transformers import GradientMonitorCallback

UNCLIPPED = {"max_grad_norm": 0.0}


class Truth(TrainerCallback):
    """Keeps the parameters' gradients of each step as the optimizer is about to get them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, np.ndarray]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs) -> None:
        self.steps.append({name: flattened(p.grad) for name, p in model.named_parameters()})


def train(folder, callback, *, steps: int, resume=None, **options) -> Truth:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 16, "max_position_embeddings": 8}
    config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_act="tanh", **sizes)
    model = BertForSequenceClassification(config)
    ss.scale_activations(model)
    tokens = torch.arange(64).view(16, 4) % 16
    data = [{"input_ids": row, "labels": row[0] % 2} for row in tokens]
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=2,
        save_steps=3,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    truth = Truth()
    Trainer(model, arguments, train_dataset=data, callbacks=[callback, truth]).train(
        resume_from_checkpoint=resume
    )
    return truth


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
@pytest.mark.works_with("Transformers", "monitor")
def test_gradients_of_each_step(tmp_path, options):
    callback = GradientMonitorCallback()
    truth = train(tmp_path, callback, steps=2, **UNCLIPPED, **options)
    history = callback.monitor.history()
    assert history.steps.tolist() == [0, 1]
    assert "bert.pooler.activation" in history.names
    for step, gradients in enumerate(truth.steps):
        for name, g in gradients.items():
            assert_row(history, step, name, g)


def test_clipped_gradients_are_announced(tmp_path):
    callback = GradientMonitorCallback(exclude="*.bias")
    with pytest.warns(
        UserWarning, match=r"recorded after the Trainer has clipped their norm to 0.001; set Tra"
    ):
        truth = train(tmp_path, callback, steps=1, max_grad_norm=1e-3)
    norm = sum((g**2).sum() for g in truth.steps[0].values()) ** 0.5
    assert 0.9e-3 < norm < 1.01e-3
    weight = "classifier.weight"
    assert_row(callback.monitor.history(), 0, weight, truth.steps[0][weight])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(tmp_path, GradientMonitorCallback(parameters=False), steps=1)


def test_resumed_training_continues_the_history(tmp_path):
    whole, path = GradientMonitorCallback(), tmp_path / "gradients.jsonl"
    train(tmp_path, whole, steps=5, **UNCLIPPED)
    resumed = GradientMonitorCallback(logger=partial(FileLogger, path=path))
    train(tmp_path, resumed, steps=5, resume=str(tmp_path / "checkpoint-3"), **UNCLIPPED)
    want, found = whole.monitor.history(), resumed.monitor.history()
    assert found.names == want.names
    np.testing.assert_array_equal(found.steps, want.steps)
    np.testing.assert_array_equal(found.values, want.values)
    assert len(path.read_text().splitlines()) == 2 * len(want.names)
    (tmp_path / "checkpoint-3" / "gradients.npz").unlink()
    with pytest.warns(
        UserWarning, match="resumes at step 3 from a checkpoint without a history of gradients"
    ):
        train(
            tmp_path, GradientMonitorCallback(), steps=4, resume=str(tmp_path / "checkpoint-3"), **UNCLIPPED
        )
