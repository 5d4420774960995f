"""The paper's theory, evaluated: tables of what holds where, and a picture of vanishing gradients.

`python -m examples.theory` prints the tables and writes them, with the picture, to `runs/theory`.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

import sigscale as ss
from examples.common import count, environment, parser, picture
from sigscale import theory
from sigscale._files import atomic

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes

DEEPEST = 50
DEPTHS = (2, 5, 10, 20, DEEPEST)
LARGE = 1000.0
PANELS = (
    (r"plain: $\tanh z$", 1.0, False, "towards the input 2.5 times smaller a layer"),
    (r"scaled, $\alpha = 2$: $2\,\tanh(z/2)$", 2.0, False, "the same but for the first 2 layers"),
    (
        r"scaled, $\alpha = 1000$: $1000\,\tanh(z/1000)$",
        LARGE,
        False,
        r"kept in the first $\log\alpha\,/\,\log 1.5 = 17$ layers",
    ),
    (r"scaled naively: $2\,\tanh z$", 2.0, True, "saturated: 33 times smaller a layer"),
)
TITLE = (
    r"Scaling keeps gradients in the first $\log\alpha\,/\,\log 1.5$ layers; elsewhere they vanish, fastest "
    "where scaled naively\n"
    r"$|x| = |\theta^1| = \cdots = |\theta^l| = 1.5$"
)
SHADES = [0.12 + 0.88 * step / 255 for step in range(256)]  # of the color map; its yellow is too light
LOWEST, HIGHEST = 1e-24, 1e7
GREY = "0.35"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = parser("theory", __doc__)
    options.add_argument("--draws", type=count, default=100_000, help="networks for each t")
    options.add_argument("--seed", type=int, default=0, help="of these draws")
    chosen = options.parse_args(argv)
    missing = [name for name in ("matplotlib", "mpmath") if importlib.util.find_spec(name) is None]
    if missing:
        options.error(f'this needs {", ".join(missing)}, not installed here: pip install -e ".[examples]"')
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    command = shlex.join(["python", "-m", "examples.theory", *argv])
    foot = f"{versions}, commit {about['commit']}, float64 on the CPU; {command}"
    text = "\n\n".join([*report(chosen.draws, chosen.seed), foot])
    print(text)
    chosen.out.mkdir(parents=True, exist_ok=True)
    with atomic(chosen.out / "theory.txt") as part:
        part.write_text(text + "\n", encoding="utf-8")
    draw(chosen.out / "theory")
    print(f"\nwritten to {chosen.out}: theory.txt, theory.png, theory.svg")
    return 0


def report(draws: int, seed: int) -> Iterator[str]:
    """Every table, under its heading."""
    boundary = theory.theorem_1_boundary()
    yield _titled(
        f"Theorem 1, tanh: counterexamples among {draws:,} random networks of 1 to 6 layers.\n"
        f"Claim 1 is true for t <= {boundary.first:.4f}, claim 2 for t <= {boundary.second:.4f}: see "
        "theorem_1_boundary().",
        ("t", "claim 1: |dh| <= |d| t", "claim 2: |dh + r theta| >= |d| log(1/t)", "worst, of claim 2 or 1"),
        map(_domain, theory.theorem_1_domain(draws=draws, seed=seed)),
    )
    ts = (0.01, 0.1, 0.3, 0.5, 0.6)
    yield _titled(
        "Theorem 1 for the other functions: counterexamples to claims 1, 2 where both are true for tanh.",
        ("function", *(f"t = {t}" for t in ts)),
        (
            (name, *(f"{row.first}, {row.second}" for row in theory.theorem_1_domain(ts, draws, seed, name)))
            for name in ss.FUNCTIONS
        ),
    )
    yield _titled(
        "Theorem 2, |x| = |theta| = 1.5: |dg/dtheta^1|, the layer next to the input.",
        f"function;depth;plain;claim 1;alpha = 2;alpha = {LARGE:g};limit;claim 2;2 f(z)".split(";"),
        (_many_layers(name, depth) for name in ss.FUNCTIONS for depth in DEPTHS),
    )
    yield _titled(
        "The four properties.",
        ("function", "|f| <= 1", "z f'(z) -> 0", "f(inf) > 0", "linear at 0", "linear, f - f(0)"),
        map(_properties, theory.properties()),
    )
    yield _titled(
        f"Beyond float64: |dg/dtheta^1| at depth {DEEPEST}, all theta = 10, x = 1.5.",
        ("function", "float64", "exact, rounded"),
        map(_beyond, ss.FUNCTIONS),
    )


def _domain(row: theory.Search) -> tuple[object, ...]:
    worst = row.worst_second or row.worst_first
    if worst is None:
        return f"{row.t:.4g}", row.first, row.second, ""
    theta = ", ".join(f"{each:.3g}" for each in worst.theta)
    sign = "<" if worst.found < worst.claimed else ">"
    worst_of_all = (
        f"{worst.found:.3g} {sign} {worst.claimed:.3g}: theta = ({theta}), x = {worst.x:.3g}, "
        f"d = {worst.d:g}, r = {worst.r:.3g}, k = {worst.k}"
    )
    return f"{row.t:.4g}", row.first, row.second, worst_of_all


def _many_layers(name: str, depth: int) -> tuple[object, ...]:
    result = theory.theorem_2(depth, function=name)
    large = theory.partial([1.5] * depth, 1.5, 1, LARGE, name)
    numbers = (result.unscaled[0], result.scaled[1, 0], large, result.limit, result.naive[1, 0])
    plain, twofold, thousandfold, limit, naive = (f"{abs(float(number)):.2e}" for number in numbers)
    first, second = (_verdict(bool(claim.all())) for claim in (result.first, result.second))
    return name, depth, plain, first, twofold, thousandfold, limit, second, naive


def _properties(row: theory.Properties) -> tuple[object, ...]:
    rate = "exponentially" if math.isinf(row.tail) else f"like z^-{row.tail:g}"
    return (
        row.name,
        f"{_verdict(row.bounded)}, {row.bound:.4g}",
        f"{_verdict(row.vanishing)}, {rate}",
        f"{_verdict(row.positive)}, {row.upper:.4g}",
        f"{_verdict(row.linear)}" + (f", a = {row.slope:.4g}" if row.linear else ""),
        f"{_verdict(row.linear_if_centered)}, a = {row.centered_slope:.4g}",
    )


def _beyond(name: str) -> tuple[object, ...]:
    import mpmath

    theta, x = [10.0] * DEEPEST, 1.5
    rounded = theory.partial(theta, x, 1, function=name).item()
    exact = theory.exact.gradient(theta, x, function=name)[0]
    return name, f"{abs(rounded):.6e}", mpmath.nstr(abs(exact), 7, min_fixed=0, max_fixed=0)


def _verdict(holds: bool) -> str:
    return "yes" if holds else "NO"


def _titled(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    table = pd.DataFrame([list(map(str, row)) for row in rows], columns=list(head))
    return f"{title}\n\n{table.to_markdown(index=False, disable_numparse=True, tablefmt='simple')}"


def draw(stem: Path) -> None:
    """Write `stem`.png and `stem`.svg: |dg/dtheta^k| over the layers k, a curve for each depth."""
    import matplotlib as mpl

    norm = mpl.colors.Normalize(2, DEEPEST)
    shades = mpl.colors.ListedColormap(mpl.colormaps["viridis_r"](SHADES))
    with picture(stem, TITLE, (9, 6.8)) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey=True)
        for axes, (title, alpha, naive, note) in zip(panels.flat, PANELS, strict=True):
            _panel(axes, alpha, naive, lambda depth: shades(norm(depth)))
            axes.set_title(title, loc="left", fontsize=10)
            axes.text(0.985, 0.945, note, transform=axes.transAxes, ha="right", fontsize=8.5, color=GREY)
        _explain(panels)
        bar = figure.colorbar(
            mpl.cm.ScalarMappable(norm, shades), ax=panels, ticks=DEPTHS, pad=0.015, aspect=45
        )
        bar.set_label("depth $l$ of the network")
        bar.outline.set_visible(False)


def _panel(axes: Axes, alpha: float, naive: bool, color: Callable[[int], Any]) -> None:
    for depth in range(2, DEEPEST + 1):
        gradient = theory.gradient([1.5] * depth, 1.5, alpha, naive=naive).abs().tolist()
        layers, strong = range(1, depth + 1), depth in DEPTHS
        axes.plot(layers, gradient, color=color(depth), lw=2 if strong else 0.6, zorder=3 if strong else 2)
        if strong:
            axes.plot(depth, gradient[-1], "o", ms=4, color=color(depth), zorder=4)
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.set_yscale("log")
    axes.set_ylim(LOWEST, HIGHEST)
    axes.set_xlim(0, DEEPEST + 1)
    axes.set_xticks([1, 10, 20, 30, 40, DEEPEST])
    axes.set_yticks([10.0**power for power in range(-24, 5, 4)])
    axes.minorticks_off()


def _explain(panels: npt.NDArray[Any]) -> None:
    """What the axes are, and the bound of Theorem 2 in the first panel."""
    for axes in panels[-1]:
        axes.set_xlabel("layer $k$, counted from the input")
    for axes in panels[:, 0]:
        axes.set_ylabel(r"$|\partial g / \partial\theta^k|$")
    layers = range(1, DEEPEST + 1)
    bound = [2.0 ** (k - DEEPEST - 1) for k in layers]
    panels[0, 0].plot(layers, bound, color="#D55E00", lw=1.4, ls=(0, (4, 2)), zorder=5)
    panels[0, 0].annotate(
        f"Theorem 2's bound,\ndepth {DEEPEST}",
        (30, bound[29]),
        (33, 1e-16),
        color="#D55E00",
        fontsize=8.5,
        arrowprops={"arrowstyle": "-", "color": "#D55E00", "lw": 0.8},
    )


if __name__ == "__main__":
    sys.exit(main())
