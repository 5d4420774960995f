"""Convert a residual network of tanh to alpha-scaled activations, train it, and fold the scale away again.

The network stands for any that is there already: `sigscale.scale_activations` changes its modules in place,
and after training `sigscale.fold` gives a copy with the same outputs that needs nothing but PyTorch. The
picture shows the gradients that its layers get before and after, from the same initial weights, and how both
train. Start it from the repository root: `python -m examples.convert`.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)

import sigscale as ss
from examples.cifar10.data import GENERATED, Split, asked_for
from examples.common import STYLES, count, draw_losses, parser, picture, positive, save_json

BATCH, RATE = 32, 1e-3
FIRST = 20  # steps whose gradients are measured
TESTED = 2000  # images
WINDOW = 25  # steps that a curve of the loss averages


class Block(nn.Module):
    """Two convolutions with a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.act1 = nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()
        self.conv2, self.act2 = nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(x + self.conv2(self.act1(self.conv1(x))))  # type: ignore[no-any-return]


def network(seed: int) -> nn.Sequential:
    """For (n, 3, 32, 32) images; Glorot's initial weights, which are made for tanh, and biases 0."""
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {}
    channels = 3
    for stage, width in enumerate((8, 16, 32), 1):
        layers[f"conv{stage}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers[f"act{stage}"] = nn.Tanh()
        layers[f"block{stage}"] = Block(width)
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
        channels = width
    layers |= {"flatten": nn.Flatten(), "dense1": nn.Linear(32 * 16, 64), "act4": nn.Tanh()}
    model = nn.Sequential(OrderedDict(layers, dense2=nn.Linear(64, 10)))
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    return model


class Training(NamedTuple):
    """`medians`: of the absolute gradients of each layer's weights, over the first steps."""

    losses: list[float]
    medians: pd.Series[float]
    accuracy: float


def train(model: nn.Module, data: Split, test: Split, steps: int, seed: int) -> Training:
    """Adam on random batches, which are the same for every model."""
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    with ss.GradientMonitor(model, activations=False, exclude="*.bias") as monitor:
        for step in range(steps):
            x, labels = data.batch(torch.randint(len(data.labels), (BATCH,), generator=generator))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            if step < FIRST:
                monitor.step()
            optimizer.step()
            losses.append(loss.item())
        history = monitor.history()
    layers = [row for row, kind in enumerate(history.kinds) if kind == "parameter"]
    medians = np.median(history.quantile(0.5)[:, layers], axis=0)
    names = [history.names[row].removesuffix(".weight") for row in layers]
    return Training(losses, pd.Series(medians, names), test.accuracy(model))


def draw(stem: Path, runs: dict[str, Training], source: str) -> None:
    """Gradients by layer on the left, losses on the right."""
    from matplotlib.ticker import LogLocator

    plain, converted = (run.medians for run in runs.values())
    ratios = converted / plain
    finding = f"After conversion, weights get {ratios.min():.2f} to {ratios.max():.2f} times the gradients"
    with picture(stem, f"{finding}\na residual tanh network on {source}, one seed", (10, 4.4)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        left.hlines(plain.index, plain, converted, color="0.8", lw=3, zorder=1)
        for (label, run), (color, marker) in zip(runs.items(), STYLES, strict=False):
            left.scatter(run.medians, plain.index, 36, color, marker=marker, label=label, zorder=2)
        left.set(xscale="log", xlabel=f"median |gradient| of a layer's weights, first {FIRST} steps")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.xaxis.set_major_formatter("{x:g}")
        left.minorticks_off()
        left.invert_yaxis()
        left.grid(axis="x", color="0.92")
        left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
        labels = {f"{name}: test accuracy {run.accuracy:.1%}": run.losses for name, run in runs.items()}
        draw_losses(right, labels, WINDOW)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parser("convert", __doc__)
    options.add_argument("--data", type=Path, help="folder with CIFAR-10; None: a cache, or downloaded")
    options.add_argument("--alpha", type=positive, default=2.0, help="of the converted activations")
    options.add_argument("--steps", type=count, default=400, help="for each of the two networks")
    options.add_argument("--seed", type=int, default=0, help="of weights and batches")
    chosen = options.parse_args(argv)
    cifar10 = asked_for(options, chosen.data)
    source = GENERATED if cifar10.generated else "CIFAR-10"
    test = Split(cifar10.test.images[:TESTED], cifar10.test.labels[:TESTED])
    model = network(chosen.seed)
    converted = copy.deepcopy(model)
    report = ss.scale_activations(converted, alpha=chosen.alpha)
    print(report)
    runs = {
        label: train(each, cifar10.train, test, chosen.steps, chosen.seed)
        for label, each in (("tanh", model), (f"converted, alpha = {chosen.alpha:g}", converted))
    }
    settings = {
        "alpha": chosen.alpha,
        "steps": chosen.steps,
        "seed": chosen.seed,
        "batch": BATCH,
        "rate": RATE,
    }
    about = {"data": source, "sha256": cifar10.sha256, "test_images": len(test.labels)}
    numbers = {"activations_changed": len(report.changed), **compare(runs, converted, test)}
    save_json("convert", argv, chosen.out, {"settings": {**settings, **about}, "numbers": numbers})
    draw(chosen.out / "convert", runs, source)
    print(f"written to {chosen.out}: convert.json, convert.png, convert.svg")
    return 0


def compare(runs: dict[str, Training], converted: nn.Module, test: Split) -> dict[str, Any]:
    """Numbers of both networks, and of the converted one when the scale is folded into its weights."""
    folded = ss.fold(converted)
    with torch.no_grad():
        x, _ = test.batch(torch.arange(min(500, len(test.labels))))
        outputs = converted(x)
        difference = (folded(x) - outputs).abs().max().item()
    plain, scaled = runs.values()
    ratios = scaled.medians / plain.medians
    accuracies = {"tanh": plain.accuracy, "converted": scaled.accuracy, "folded": test.accuracy(folded)}
    print(f"gradients of the weights, converted over tanh: {ratios.min():.2f} to {ratios.max():.2f} times")
    print("test accuracy: " + ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items()))
    print(f"fold: outputs up to {outputs.abs().max():.3g} differ by {difference:.2g} at most")
    return {
        "median_gradient_ratio": ratios.to_dict(),
        "test_accuracy": accuracies,
        "mean_loss_last_50_steps": {name: fmean(run.losses[-50:]) for name, run in runs.items()},
        "fold_largest_difference": difference,
        "fold_largest_output": outputs.abs().max().item(),
    }


if __name__ == "__main__":
    sys.exit(main())
