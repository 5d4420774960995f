"""What the paper leaves open and could explain a difference, each with the options that test it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from examples.cifar10.claims import LATER
from examples.cifar10.networks import CONVOLUTIONS
from examples.cifar10.train import PIXELS, Settings

PENALIZED = ("C1", "C3", "C4")


def of(claim: str, experiment: Mapping[str, Any]) -> list[str]:
    """Sentences for a claim that an experiment did not reproduce; they name what it was run with."""
    now = {field.name: experiment.get(field.name, field.default) for field in fields(Settings)}
    pixels = "|".join(p for p in PIXELS if p != now["pixels"])
    conv = now["conv"] or "as in the paper's tables"
    others = "|".join(c for c in CONVOLUTIONS if c != now["conv"])
    bias = {None: "as in the paper's tables", True: "everywhere", False: "nowhere"}[now["bias"]]
    biases = {None: "`--bias`, `--no-bias`", True: "`--no-bias`", False: "`--bias`"}[now["bias"]]
    lines = [
        f"Epochs: not stated, here {now['epochs']}: `--epochs {max(2 * now['epochs'], 2 * LATER)}`.",
        f"Batch: not stated, here {now['batch']} images, by which the steps of an epoch change as well: "
        f"`--batch {2 * now['batch']}`, `--batch {max(1, now['batch'] // 2)}`.",
        f"The pixels' scale: not stated, here `{now['pixels']}`: `--pixels {pixels}`.",
        f"The reading of the tables' convolutions: here {conv}: `--conv {others}`.",
        f"Biases: here {bias}: {biases}.",
        "The initial values of biases: not stated, here zero. No option; `large_uniform` and `small_normal` "
        "in networks.py set them.",
        _rate(now["lr"]),
    ]
    if now["steps"]:
        lines.insert(
            0,
            f"Not all images: an epoch was cut to {now['steps']} steps: run without `--quick` and `--steps`.",
        )
    if claim in PENALIZED:
        lines.append(
            "The penalty: here r/2 times the sum of squares, as the paper writes it; Keras's `l2(r)` is r "
            "times it, with twice the gradient. No option; `R = 0.02` in pipelines.py is that reading."
        )
        lines.append(
            "Which gradient the lower panels show: here that of the objective, penalty included; statements "
            "marked * are of the loss alone."
        )
    return lines


def _rate(lr: float) -> str:
    if lr != Settings.lr:
        return f"Adam's learning rate: here {lr:g}, not the paper's: `--lr {Settings.lr:g}`."
    return f"Adam's learning rate: the paper's, {lr:g}; what it does depends on epochs and batch: `--lr F`."
