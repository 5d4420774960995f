"""Every layer learns its own alpha: where it goes, and what it brings, on CIFAR-10.

A tanh network (six convolutions, three dense layers) is trained from PyTorch's default start with alpha fixed
at 1, fixed at 2, and learned from 2 on, from the same seed. `python -m examples.learned_alpha` writes the
picture and the numbers to `runs/learned_alpha`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from tqdm import tqdm

import sigscale as ss
from examples.cifar10 import data
from examples.cifar10.figures import STYLE, STYLES, save
from examples.cifar10.runtime import DataError
from examples.cifar10.store import environment
from sigscale._files import atomic

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
DASHES = ("solid", "dashed", "solid")
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


def pixels(images: Tensor) -> Tensor:
    return images / 127.5 - 1.0


def train(model: nn.Module, cifar: data.Cifar10, name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train the model; its test accuracy, the loss of every step and the alphas before it (steps, layers)."""
    scales = [p for name, p in model.named_parameters() if name.endswith("log2_alpha")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("log2_alpha")]
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": scales, "lr": chosen.alpha_lr}]
    optimizer = torch.optim.Adam(groups, lr=chosen.lr)
    generator = torch.Generator().manual_seed(chosen.seed)
    losses, history = torch.empty(chosen.steps), torch.empty(chosen.steps, len(NAMES))
    for step in tqdm(range(chosen.steps), desc=name, unit="step", disable=None):
        history[step] = alphas(model)
        images = torch.randint(len(cifar.train.labels), (chosen.batch,), generator=generator)
        loss = F.cross_entropy(model(pixels(cifar.train.images[images])), cifar.train.labels[images])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return {"test_accuracy": accuracy(model, cifar.test), "losses": losses, "alphas": history}


@torch.no_grad()
def accuracy(model: nn.Module, split: data.Split) -> float:
    parts = zip(split.images.split(1000), split.labels.split(1000), strict=True)
    hits = [(model(pixels(x)).argmax(1) == y).sum() for x, y in parts]
    return torch.stack(hits).sum().item() / len(split.labels)


def draw(results: dict[str, dict[str, Any]], stem: Path, title: str) -> list[Path]:
    """Losses on the left, the alphas of the layers on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        for (color, _), dashes, (name, result) in zip(STYLES, DASHES, results.items(), strict=False):
            losses = result["losses"]
            means = losses.unfold(0, min(RECENT, len(losses)), 1).mean(1)
            label = f"{name}: test accuracy {result['test_accuracy']:.1%}"
            steps = range(len(losses) - len(means), len(losses))
            left.plot(steps, means, color=color, linestyle=dashes, label=label)
        left.set(xlabel="step", ylabel=f"training loss, mean of {RECENT} steps")
        left.legend(frameon=False)
        _draw_alphas(right, results[LEARNED]["alphas"])
        paths = save(figure, stem)
        plt.close(figure)
    return paths


def _draw_alphas(axes: Axes, history: Tensor) -> None:
    """A line a layer, with its name where it ends, or above where names would overlap."""
    from matplotlib import colormaps
    from matplotlib.ticker import FormatStrFormatter

    exponents = history.log2()  # what is learned
    gap, at = 0.045 * (float(exponents.max() - exponents.min()) or 1.0), -torch.inf
    for layer in history[-1].argsort().tolist():
        color = colormaps["viridis"](0.9 * layer / (len(NAMES) - 1))
        axes.plot(history[:, layer], color=color)
        at = max(at + gap, float(exponents[-1, layer]))
        axes.annotate(
            NAMES[layer],
            (1.01 * len(history), 2**at),
            color=color,
            fontsize=8,
            va="center",
            annotation_clip=False,  # or it is not drawn, outside the axes as it is
        )
    axes.axhline(2.0, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_title("conv 1 is next to the input; dotted: the start", loc="left", fontsize=8.5, color="0.3")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.set(xlabel="step", ylabel=r"$\alpha$ of each layer", xlim=(0, len(history)))


def options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.learned_alpha", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--data", type=Path, help="folder with CIFAR-10 (default: downloaded to a cache)")
    parser.add_argument("--out", type=Path, default=Path("runs/learned_alpha"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam (default: %(default)s)")
    parser.add_argument("--alpha-lr", type=float, default=1e-2, help="for log2(alpha) (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    chosen = parser.parse_args(argv)
    if min(chosen.steps, chosen.batch) < 1:
        parser.error(f"--steps and --batch must be at least 1; got {chosen.steps} and {chosen.batch}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    chosen = options(argv)
    try:
        cifar = data.load(chosen.data, allow_generated=True)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if cifar.generated:
        print(f"Generated images, not CIFAR-10: {cifar.why_generated}", file=sys.stderr)
    results = {}
    for name, tanh in WAYS.items():
        torch.manual_seed(chosen.seed)
        model = network(tanh)
        results[name] = train(model, cifar, name, chosen)
        shown = ", ".join(f"{alpha:.2f}" for alpha in alphas(model).tolist())
        print(f"{name}: test accuracy {results[name]['test_accuracy']:.1%}; alpha {shown}")
    chosen.out.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", "-m", "examples.learned_alpha", *argv]),
        "data": {"source": cifar.source, "sha256": cifar.sha256},
        **environment(),
        "results": {name: _rounded(result) for name, result in results.items()},
    }
    with atomic(chosen.out / "learned_alpha.json") as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    source = "generated images" if cifar.generated else "CIFAR-10"
    title = f"A tanh network whose layers learn their alphas: {source}, one seed"
    for path in draw(results, chosen.out / "learned_alpha", title):
        print(path)
    return 0


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    """Numbers as one reads them; the alphas of every tenth step."""
    losses = [round(loss, 4) for loss in result["losses"].tolist()]
    every_tenth = [[round(alpha, 4) for alpha in step] for step in result["alphas"][::10].tolist()]
    return {**result, "losses": losses, "alphas": every_tenth}


if __name__ == "__main__":
    sys.exit(main())
