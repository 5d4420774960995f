"""Every layer learns its own alpha: where it goes, and what it brings, on CIFAR-10.

A tanh network (six convolutions, three dense layers) is trained from PyTorch's default start with alpha fixed
at 1, fixed at 2, and learned from 2 on, from the same seed. `python -m examples.learned_alpha` writes the
picture and the numbers to `runs/learned_alpha`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

import sigscale as ss
from examples.cifar10.data import GENERATED, Cifar10, asked_for
from examples.common import CAPTION, count, draw_losses, parser, picture, positive, save_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANNELS, UNITS = 16, 64
NAMES = [*(f"conv {number}" for number in range(1, 7)), "dense 1", "dense 2"]
LEARNED = "alpha learned, from 2"
WAYS: dict[str, Callable[[], nn.Module]] = {
    "alpha = 1": lambda: ss.nn.Tanh(alpha=1.0),
    "alpha = 2": lambda: ss.nn.Tanh(alpha=2.0),
    LEARNED: lambda: ss.nn.Tanh(learnable=True),
}
RECENT = 50  # steps over which the loss is averaged in the picture


def network(tanh: Callable[[], nn.Module]) -> nn.Sequential:
    """For images (n, 3, 32, 32): logits of ten classes."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(3):
        for _ in range(2):
            layers += [nn.Conv2d(channels, CHANNELS, 3, padding=1), tanh()]
            channels = CHANNELS
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(16 * CHANNELS, UNITS), tanh(), nn.Linear(UNITS, UNITS), tanh()]
    return nn.Sequential(*layers, nn.Linear(UNITS, 10))


def alphas(model: nn.Module) -> Tensor:
    """Those of all layers, learned or not."""
    layers = [layer for layer in model.modules() if isinstance(layer, ss.nn.Tanh)]
    return torch.stack([torch.as_tensor(layer.alpha).detach().reshape(()) for layer in layers])


def train(model: nn.Module, cifar: Cifar10, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train the model; its test accuracy, the loss of every step and the alphas before it (steps, layers)."""
    scales = [p for name, p in model.named_parameters() if name.endswith("log2_alpha")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("log2_alpha")]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": scales, "lr": chosen.alpha_lr}]
    optimizer = torch.optim.Adam(groups, lr=chosen.lr)
    generator = torch.Generator().manual_seed(chosen.seed)
    losses, history = torch.empty(chosen.steps), torch.empty(chosen.steps, len(NAMES))
    for step in tqdm(range(chosen.steps), desc=name, unit="step", disable=None):
        history[step] = alphas(model)
        chosen_ones = torch.randint(len(cifar.train.labels), (chosen.batch,), generator=generator)
        x, labels = cifar.train.batch(chosen_ones)
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return {"test_accuracy": cifar.test.accuracy(model), "losses": losses, "alphas": history}


def draw(results: dict[str, dict[str, Any]], stem: Path, setting: str) -> None:
    """Losses on the left, the alphas of the layers on the right."""
    final = results[LEARNED]["alphas"][-1]
    finding = f"Learned alphas end between {final.min():.2f} ({NAMES[final.argmin()]})"
    finding += f" and {final.max():.2f} ({NAMES[final.argmax()]})"
    with picture(stem, f"{finding}\n{setting}", (10, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        labels = {f"{name}: test accuracy {r['test_accuracy']:.1%}": r for name, r in results.items()}
        draw_losses(left, {label: result["losses"] for label, result in labels.items()}, RECENT)
        _draw_alphas(right, results[LEARNED]["alphas"])


def _draw_alphas(axes: Axes, history: Tensor) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import FormatStrFormatter

    for layer, name in enumerate(NAMES):
        axes.plot(history[:, layer], color=colormaps["viridis"](0.9 * layer / (len(NAMES) - 1)), label=name)
    axes.axhline(2.0, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title("conv 1 is next to the input; dotted: the start", **CAPTION)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set(xlabel="step", ylabel=r"$\alpha$ of each layer", xlim=(0, len(history)))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parser("learned_alpha", __doc__)
    options.add_argument("--data", type=Path, help="folder with CIFAR-10; None: a cache, or downloaded")
    options.add_argument("--steps", type=count, default=1000, help="for each of the three networks")
    options.add_argument("--batch", type=count, default=64, help="images a step")
    options.add_argument("--lr", type=positive, default=1e-3, help="of Adam")
    options.add_argument("--alpha-lr", type=positive, default=1e-2, help="for log2(alpha)")
    options.add_argument("--seed", type=int, default=0, help="of weights and batches")
    chosen = options.parse_args(argv)
    cifar = asked_for(options, chosen.data)
    results = {}
    for name, tanh in WAYS.items():
        torch.manual_seed(chosen.seed)
        model = network(tanh)
        results[name] = train(model, cifar, name, chosen)
        shown = ", ".join(f"{alpha:.2f}" for alpha in alphas(model).tolist())
        print(f"{name}: test accuracy {results[name]['test_accuracy']:.1%}; alpha {shown}")
    content = {
        "data": {"source": cifar.source, "sha256": cifar.sha256},
        "results": {name: _rounded(result) for name, result in results.items()},
    }
    save_json("learned_alpha", argv, chosen.out, content)
    source = GENERATED if cifar.generated else "CIFAR-10"
    draw(results, chosen.out / "learned_alpha", f"a tanh network on {source}, one seed")
    print(f"written to {chosen.out}: learned_alpha.json, learned_alpha.png, learned_alpha.svg")
    return 0


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    """Numbers as one reads them; the alphas of every tenth step."""
    losses = [round(loss, 4) for loss in result["losses"].tolist()]
    every_tenth = [[round(alpha, 4) for alpha in step] for step in result["alphas"][::10].tolist()]
    return {**result, "losses": losses, "alphas": every_tenth}


if __name__ == "__main__":
    sys.exit(main())
