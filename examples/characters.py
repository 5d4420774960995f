"""A recurrent network learns a poem by heart, letter by letter, with plain and with alpha-scaled cells.

`python -m examples.characters` takes about a minute on two CPU cores. It prints a table and what each network
writes in the end, and draws the loss over the training and, the point of scaling, how much of the gradient
arrives d letters back in time: |dL/dh_(T-d)| / |dL/dh_T|, L being the loss of the letter after T alone and h
the states of all layers. The ratio does not depend on the unit of h, which scaling changes.

A recurrent network is as deep as its sequence is long: the paper (arXiv 2106.02260, Sec. 4) hopes that its
remedies help there, too. A seed draws the initial weights, the same for every alpha, and the batches.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from tqdm import tqdm

import sigscale as ss
from examples.common import CAPTION, STYLES, count, parser, picture, positive, save_json

POEM = Path(__file__).with_name("jabberwocky.txt").read_text(encoding="utf-8")
"""Lewis Carroll, Through the Looking-Glass (1871); in the public domain."""
LETTERS = sorted(set(POEM))
CODES = torch.tensor([LETTERS.index(letter) for letter in POEM])
CELLS = {"rnn": ss.nn.RNN, "lstm": ss.nn.LSTM, "gru": ss.nn.GRU}
LENGTH, BATCH = 64, 16  # letters a sequence, sequences a step


class Network(nn.Module):
    """Embedding, two recurrent layers, linear layer."""

    def __init__(self, cell: str, hidden: int, alpha: float, learnable: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 32)
        self.recurrent = CELLS[cell](32, hidden, num_layers=2, alpha=alpha, learnable=learnable)
        self.head = nn.Linear(hidden, len(LETTERS))

    def forward(self, letters: Tensor, states: Any = None) -> tuple[Tensor, Any]:
        """Letters (length, batch) and states to scores of the next letters and the states after them."""
        output, states = self.recurrent(self.embedding(letters), states)
        return self.head(output), states


class Run(NamedTuple):
    """One network, trained."""

    label: str
    seed: int
    losses: list[float]
    before: list[float]  # gradient through time, by distance, before the training
    after: list[float]
    alpha: float
    seconds: float
    text: str


def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Letters (length, batch) from anywhere in the poem, and those that follow them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        start = torch.randint(len(CODES) - LENGTH, (BATCH,), generator=generator)
        letters = CODES[start + torch.arange(LENGTH + 1)[:, None]]
        yield letters[:-1], letters[1:]


def gradient_through_time(network: Network, letters: Tensor, following: Tensor) -> list[float]:
    """|dL/dh_(T-d)| / |dL/dh_T| for d = 0, 1, ...; of an LSTM, h is all of its state, (h, c)."""
    states: Any = None
    visited: list[tuple[Tensor, ...]] = []
    for letter in letters:
        _, states = network(letter[None], states)
        visited.append(states if isinstance(states, tuple) else (states,))
    hidden = visited[-1][0]
    loss = F.cross_entropy(network.head(hidden[-1]), following[-1])
    flat = [state for step in visited for state in step]
    gradients = torch.autograd.grad(loss, flat, materialize_grads=True)
    squares = torch.stack([g.double().square().sum() for g in gradients]).view(len(visited), -1).sum(1)
    norms = squares.sqrt().flip(0)
    return (norms / norms[0]).tolist()


@torch.no_grad()
def write(network: Network, start: str = "Beware", length: int = 120) -> str:
    """What the network goes on with, always the likeliest letter."""
    text, states = start, None
    letters = torch.tensor([[LETTERS.index(letter)] for letter in start])
    while len(text) < length:
        scores, states = network(letters, states)
        letters = scores[-1:].argmax(-1)
        text += LETTERS[int(letters)]
    return text


def train(label: str, alpha: float, learnable: bool, seed: int, options: argparse.Namespace) -> Run:
    torch.manual_seed(seed)
    network = Network(options.cell, options.hidden, alpha, learnable)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.lr)
    (probe,) = batches(seed=10_000, steps=1)
    before = gradient_through_time(network, *probe)
    losses, start = [], time.perf_counter()
    for letters, following in tqdm(
        batches(seed, options.steps), f"{label}, seed {seed}", options.steps, disable=None
    ):
        scores, _ = network(letters)
        loss = F.cross_entropy(scores.flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    after = gradient_through_time(network, *probe)
    with torch.no_grad():
        final = float(network.recurrent.alpha)
    return Run(label, seed, losses, before, after, final, seconds, write(network))


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """For each kind of cell the means over the seeds: of losses, and geometric ones of gradients."""
    table = pd.DataFrame(
        {
            "loss at half": [losses[len(losses) // 2] for losses in runs.losses],
            "loss at the end": [losses[-1] for losses in runs.losses],
            "gradient at 32, before": np.log([ratios[32] for ratios in runs.before]),
            "gradient at 32, after": np.log([ratios[32] for ratios in runs.after]),
            "alpha at the end": runs.alpha,
            "seconds": runs.seconds,
        }
    )
    means = table.groupby(runs.label, sort=False).mean()
    logarithms = means.columns.str.startswith("gradient")
    means.loc[:, logarithms] = np.exp(means.loc[:, logarithms])
    return means.rename_axis("cell").reset_index()


def draw(runs: pd.DataFrame, title: str, stem: Path) -> None:
    """The losses (left) and the gradients through time (right): lines are means, thin lines seeds."""
    with picture(stem, title, (10, 4.2)) as figure:
        left, right = figure.subplots(1, 2)
        for (color, _), (label, group) in zip(STYLES, runs.groupby("label", sort=False), strict=False):
            losses, before, after = (np.array(group[name].tolist()) for name in ("losses", "before", "after"))
            left.plot(losses.T, color=color, lw=0.5, alpha=0.4)
            left.plot(losses.mean(0), color=color, lw=1.8, label=label)
            right.plot(after.T, color=color, lw=0.5, alpha=0.4)
            right.plot(np.exp(np.log(after).mean(0)), color=color, lw=1.8)
            right.plot(np.exp(np.log(before).mean(0)), color=color, lw=1.2, ls=":")
        left.set(yscale="log", xlabel="step", ylabel="loss, nats a letter")
        left.legend(frameon=False)
        left.set_title("thick: mean over seeds; thin: each seed", **CAPTION)
        right.set(yscale="log", xlabel="distance d back in time, letters", ylim=(1e-12, 10))
        right.set_ylabel(r"$|\partial L/\partial h_{T-d}|\;/\;|\partial L/\partial h_T|$")
        right.set_title("dotted: before the training; solid: after it; geometric means", **CAPTION)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parser("characters", __doc__)
    options.add_argument("--cell", choices=sorted(CELLS), default="rnn", help="kind of recurrence")
    options.add_argument("--alpha", type=positive, default=2.0, help="compared with 1")
    options.add_argument("--steps", type=count, default=150, help="of Adam")
    options.add_argument("--seeds", type=count, default=3, help="how many of them")
    options.add_argument("--seed", type=int, default=0, help="the first of them")
    options.add_argument("--hidden", type=count, default=128, help="units a layer")
    options.add_argument("--lr", type=positive, default=3e-3, help="learning rate")
    chosen = options.parse_args(argv)
    torch.set_num_threads(1)  # so small a network is no faster on more
    kinds = {
        "alpha = 1, plain": (1.0, False),
        f"alpha = {chosen.alpha:g}": (chosen.alpha, False),
        f"alpha learned, from {chosen.alpha:g}": (chosen.alpha, True),
    }
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    runs = [train(label, *kind, seed, chosen) for label, kind in kinds.items() for seed in seeds]
    table = pd.DataFrame(runs)
    rows = summary(table)
    print(rows.to_markdown(index=False, floatfmt=".3g"))
    for label, text in table.groupby("label", sort=False).text.first().items():
        print(f"\n{label}: {text}")
    settings = {name: value for name, value in vars(chosen).items() if name != "out"}
    content = {"settings": settings, "summary": rows.to_dict("records"), "runs": [r._asdict() for r in runs]}
    save_json("characters", argv, chosen.out, content)
    plain, scaled = rows["gradient at 32, after"][:2]
    arrives = f"{scaled:.1g} of the gradient arrives with alpha = {chosen.alpha:g}, {plain:.1g} without"
    finding = f"32 letters back in time, {arrives}"
    setting = f"{chosen.cell.upper()}, two layers of {chosen.hidden} units, seeds: {chosen.seeds}"
    draw(table, f"{finding}\n{setting}", chosen.out / "characters")
    print(f"\nwritten to {chosen.out}: characters.json, characters.png, characters.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
