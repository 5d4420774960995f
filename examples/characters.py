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
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (PyTorch's own abbreviation)
from tqdm import tqdm

import sigscale as ss
from examples.cifar10.figures import STYLE, STYLES, save
from examples.cifar10.store import environment
from sigscale._files import atomic

POEM = """\
'Twas brillig, and the slithy toves
Did gyre and gimble in the wabe;
All mimsy were the borogoves,
And the mome raths outgrabe.

"Beware the Jabberwock, my son!
The jaws that bite, the claws that catch!
Beware the Jubjub bird, and shun
The frumious Bandersnatch!"

He took his vorpal sword in hand:
Long time the manxome foe he sought--
So rested he by the Tumtum tree,
And stood awhile in thought.

And as in uffish thought he stood,
The Jabberwock, with eyes of flame,
Came whiffling through the tulgey wood,
And burbled as it came!

One, two! One, two! And through and through
The vorpal blade went snicker-snack!
He left it dead, and with its head
He went galumphing back.

"And hast thou slain the Jabberwock?
Come to my arms, my beamish boy!
O frabjous day! Callooh! Callay!"
He chortled in his joy.

'Twas brillig, and the slithy toves
Did gyre and gimble in the wabe;
All mimsy were the borogoves,
And the mome raths outgrabe.
"""
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


def mean(values: Sequence[Sequence[float]], geometric: bool = False) -> list[float]:
    """The mean over runs, element by element."""
    table = torch.tensor(values, dtype=torch.float64)
    averaged = table.log().mean(0).exp() if geometric else table.mean(0)
    return averaged.tolist()


def summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each kind of cell the means over the seeds: of losses, and geometric ones of gradients."""
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        group = [run for run in runs if run.label == label]
        losses = mean([run.losses for run in group])
        rows.append(
            {
                "cell": label,
                "loss at half": losses[len(losses) // 2],
                "loss at the end": losses[-1],
                "gradient at 32, before": mean([run.before for run in group], geometric=True)[32],
                "gradient at 32, after": mean([run.after for run in group], geometric=True)[32],
                "alpha at the end": sum(run.alpha for run in group) / len(group),
                "seconds": sum(run.seconds for run in group) / len(group),
            }
        )
    return rows


def draw(runs: Sequence[Run], title: str, stem: Path) -> list[Path]:
    """The losses (left) and the gradients through time (right): lines are means, thin lines seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5)
        for (color, _), label in zip(STYLES, dict.fromkeys(run.label for run in runs), strict=False):
            group = [run for run in runs if run.label == label]
            for run in group:
                left.plot(range(1, len(run.losses) + 1), run.losses, color=color, lw=0.5, alpha=0.4)
            losses = mean([run.losses for run in group])
            left.plot(range(1, len(losses) + 1), losses, color=color, lw=1.8, label=label)
            for run in group:
                right.plot(run.after, color=color, lw=0.5, alpha=0.4)
            right.plot(mean([run.after for run in group], geometric=True), color=color, lw=1.8)
            right.plot(mean([run.before for run in group], geometric=True), color=color, lw=1.2, ls=":")
        left.set(yscale="log", xlabel="step", ylabel="loss, nats a letter")
        left.legend(frameon=False)
        left.set_title("thick: mean over seeds; thin: each seed", loc="left", fontsize=8.5, color="0.3")
        right.set(yscale="log", xlabel="distance d back in time, letters", ylim=(1e-12, 10))
        right.set_ylabel(r"$|\partial L/\partial h_{T-d}|\;/\;|\partial L/\partial h_T|$")
        caption = "dotted: before the training; solid: after it; geometric means"
        right.set_title(caption, loc="left", fontsize=8.5, color="0.3")
        paths = save(figure, stem)
        plt.close(figure)
    return paths


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.characters", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cell", choices=sorted(CELLS), default="rnn", help="default: %(default)s")
    parser.add_argument("--alpha", type=float, default=2.0, help="compared with 1 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=150, help="of Adam (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many of them (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the first one (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=128, help="units a layer (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="learning rate (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/characters"), help="default: %(default)s")
    options = parser.parse_args(arguments)
    if min(options.steps, options.seeds, options.hidden) < 1 or not (0 < options.alpha < math.inf):
        parser.error("--steps, --seeds and --hidden must be at least 1, and --alpha finite and > 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    torch.set_num_threads(1)  # so small a network is no faster on more
    start = f"{options.alpha:g}"
    kinds = {
        "alpha = 1, plain": (1.0, False),
        f"alpha = {start}": (options.alpha, False),
        f"alpha learned, from {start}": (options.alpha, True),
    }
    seeds = range(options.seed, options.seed + options.seeds)
    runs = [train(label, *kind, seed, options) for label, kind in kinds.items() for seed in seeds]
    rows = summary(runs)
    for row in rows:
        print(f"\n{row['cell']}: " + ", ".join(f"{k} {v:.3g}" for k, v in row.items() if k != "cell"))
        print(next(run.text for run in runs if run.label == row["cell"]))
    options.out.mkdir(parents=True, exist_ok=True)
    content = {
        "command": shlex.join(["python", "-m", "examples.characters", *arguments]),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        **environment(),
        "summary": rows,
        "runs": [run._asdict() for run in runs],
    }
    with atomic(options.out / "characters.json") as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")
    title = f"Jabberwocky by heart: {options.cell.upper()}, two layers of {options.hidden} units"
    for path in draw(runs, f"{title}; {options.seeds} seeds", options.out / "characters"):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
