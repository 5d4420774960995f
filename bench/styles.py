"""What pictures of results share: colours and markers of providers, and the line that says where from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class Style(NamedTuple):
    colour: str
    marker: str
    label: str
    line: str = "-"


# Okabe and Ito's colours, which the colour-blind tell apart; markers do so in grey. The same everywhere:
# black is the memory's own speed, grey what is without alpha, orange what one writes by hand.
STYLES = {
    "copy": Style("#000000", "", "copy (x.clone())", "--"),
    "read": Style("#000000", "", "read (x.sum())", "--"),
    "plain": Style("#999999", "v", "plain f, alpha = 1"),
    "eager": Style("#E69F00", "s", "eager alpha * f(x / alpha)"),
    "compile": Style("#56B4E9", "D", "torch.compile of that"),
    "torch.sort": Style("#009E73", "^", "torch.sort"),
    "torch.quantile": Style("#0072B2", "P", "torch.quantile"),
    "torch.histc": Style("#E69F00", "s", "torch.histc of log2 |x|"),
    "wandb": Style("#CC79A7", "X", "recipe of wandb.watch"),
    "numpy": Style("#56B4E9", "D", "numpy.quantile"),
    "batch norm": Style("#F0E442", "h", "batch normalization"),
    "liger": Style("#009E73", "^", "liger-kernel's DyT"),
    "flag_gems": Style("#0072B2", "P", "flag_gems, alpha = 1"),
    "second pass": Style("#CC79A7", "X", "a second pass"),
    "sigscale, learned": Style("#D55E00", "d", "sigscale, alpha learned", ":"),
    "sigscale, sketch": Style("#D55E00", "*", "sigscale, gradient counted", "--"),
    "sigscale": Style("#D55E00", "o", "sigscale"),
}


def side_by_side(
    count: int, width: float, height: float, *, sharex: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels on one vertical axis; width and height in inches."""
    figure, axes = plt.subplots(
        1,
        count,
        figsize=(width, height),
        sharex=sharex,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    return figure, list(axes[0])


def finish(figure: Figure, what: str, provenance: dict[str, str], path: Path) -> None:
    versions = f"torch {provenance['torch']}, triton {provenance['triton']}, {provenance['date']}"
    figure.suptitle(f"{what}\n{provenance['device']}; {versions}", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)
