"""The pictures of a run. Titles say what was found; every provider has its one look."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.harness.activations import gbps
from bench.harness.providers import PROVIDERS, provider
from bench.harness.timing import OURS
from bench.report import Results, growth
from bench.report.tables import ALONE, number, size

Lines = dict[str, list[tuple[int, float]]]
DTYPES = ("float32", "bfloat16")  # drawn filled, hollow


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of panels, width and height of each in inches."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, [*figure.subplots(1, count, squeeze=False, sharey=True)[0]]


def chosen(records: Results, kind: str, **about: str) -> Results:
    return [
        r for r in records if r["kind"] == kind and about.items() <= r.items() and r["seconds"] is not None
    ]


def lines(records: Results, value: Callable[[dict[str, Any]], float]) -> Lines:
    """Points by provider."""
    found: Lines = {}
    for record in records:
        found.setdefault(record["provider"], []).append((record["elements"], value(record)))
    return found


def plot(axes: Axes, title: str, of: Lines) -> None:
    for name in of:
        provider(name)
    for name, look in PROVIDERS.items():
        if name in of:
            n, values = zip(*sorted(of[name]), strict=True)
            style: dict[str, Any] = {"color": look.color, "linestyle": look.line, "marker": look.marker}
            axes.plot(n, values, label=look.label, markersize=5, **style)
    dress(axes, title)


def dress(axes: Axes, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("elements")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def legend(figure: Figure, axes: Iterable[Axes], columns: int = 4) -> None:
    """One for all panels, below them."""
    found: dict[str, Artist] = {}
    for panel in axes:
        found |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    order = {look.label: place for place, look in enumerate(PROVIDERS.values())}
    labels = sorted(found, key=lambda label: order.get(label.rsplit(", ", 1)[0], order.get(label, 99)))
    handles = [found[label] for label in labels]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, borderpad=2
    )


def bandwidth(records: Results) -> Figure | None:
    """Effective bandwidth of tanh in fp32 over size, a panel per direction; the roof is the fastest copy."""
    of = chosen(records, "activation", function="tanh", dtype="float32")
    directions = [*dict.fromkeys(record["direction"] for record in of)]
    if not directions:
        return None
    figure, axes = panels(len(directions), 4.6, 4.4)
    roof = max(gbps(record) for record in of if record["provider"] == "copy")
    for panel, direction in zip(axes, directions, strict=True):
        plot(panel, direction, lines(chosen(of, "activation", direction=direction), gbps))
        panel.axhline(roof, color="#000000", linewidth=0.8, linestyle=":")
    axes[0].set_ylabel("effective bandwidth (GB/s)")
    legend(figure, axes)
    ours = [r for r in of if r["provider"] == OURS]
    largest = max(ours, key=lambda r: (r["elements"], directions.index(r["direction"])))
    over = number(largest["ratios"]["eager"][0])
    figure.suptitle(
        f"Fused tanh, fp32: {over} of eager's time, {gbps(largest) / roof:.0%} of the fastest copy's "
        f"bandwidth at {size(largest['elements'])}, {largest['direction']}",
        fontsize=11,
    )
    return figure


def quantiles(records: Results) -> Figure | None:
    """Time over size for Gaussian values in fp32: sketches, and five exact quantiles."""
    about = {"values": "Gaussian", "dtype": "float32"}
    exact = chosen(records, "exact", quantiles="five", **about)
    found = {"distribution of a tensor": chosen(records, "sketch", **about), "five exact quantiles": exact}
    found = {title: of for title, of in found.items() if of}
    if not found:
        return None
    figure, axes = panels(len(found), 5.2, 4.4)
    for panel, (title, of) in zip(axes, found.items(), strict=True):
        plot(panel, title, lines(of, lambda r: 1e6 * r["seconds"]))
    axes[0].set_ylabel("time (µs)")
    legend(figure, axes)
    figure.suptitle("Time of a distribution, and of exact quantiles", fontsize=11)
    if ours := [r for r in exact if r["provider"] == OURS and "torch.quantile" in r["ratios"]]:
        last = max(ours, key=lambda r: r["elements"])
        over = 1 / last["ratios"]["torch.quantile"][0]
        figure.suptitle(
            f"Five exact quantiles of {size(last['elements'])} values: {over:.1f} times the speed of "
            "torch.quantile",
            fontsize=11,
        )
    return figure


def sketch(records: Results) -> Figure | None:
    """Time of a pass that counts over that of one that does not: Gaussian values, and the range of others."""
    of = [record for record in chosen(records, "backward") if "cost" in record]
    directions = [*dict.fromkeys(record["direction"] for record in of)]
    if not directions:
        return None
    figure, axes = panels(len(directions), 5.2, 4.4)
    for panel, direction in zip(axes, directions, strict=True):
        for dtype in DTYPES:
            _costs(panel, chosen(of, "backward", direction=direction, dtype=dtype), dtype)
        panel.axhline(1, color="#999999", linewidth=1)
        dress(panel, direction)
    axes[0].set_ylabel("time over that without counting")
    legend(figure, axes, 3)
    ours = [r for r in of if r["provider"] == OURS and r["values"] == "Gaussian"]
    last = max(ours, key=lambda r: (r["elements"], r["dtype"] == "float32"))
    figure.suptitle(
        f"Counting the gradient: {number(last['cost']['no sketch'][0])} times the {last['direction']} pass "
        f"at {size(last['elements'])}, {last['dtype']} (bars: range over other values)",
        fontsize=11,
    )
    return figure


def _costs(axes: Axes, of: Results, dtype: str) -> None:
    hollow = DTYPES.index(dtype)
    found = lines([r for r in of if r["values"] == "Gaussian"], lambda r: r["cost"]["no sketch"][0])
    for name, points in found.items():
        look = provider(name)
        style: dict[str, Any] = {
            "color": look.color,
            "linestyle": "--" if hollow else "-",
            "marker": look.marker,
        }
        fill = "none" if hollow else "full"
        axes.plot(*zip(*sorted(points), strict=True), label=f"{look.label}, {dtype}", fillstyle=fill, **style)
    by_size: dict[int, list[float]] = {}
    for record in of:
        if record["provider"] == OURS:
            by_size.setdefault(record["elements"], []).append(record["cost"]["no sketch"][0])
    for elements, costs in by_size.items():
        if len(costs) > 1:
            at = [elements * 1.08 ** (1 + hollow)] * 2  # beside the point
            axes.plot(at, [min(costs), max(costs)], marker="_", linewidth=1, color=provider(OURS).color)


def bars(axes: Axes, drawn: Sequence[tuple[str, str, Sequence[float], float | None]]) -> None:
    """A bar from 0 per (label, provider, percents with quartiles, the paper's)."""
    for row, (_, name, (middle, low, high), paper) in enumerate(drawn):
        axes.barh(row, middle, color=provider(name).color, height=0.7)
        axes.plot([low, high], [row, row], color="#000000", linewidth=1)
        text = f"{middle:+.1f} %"
        if paper is not None:
            axes.plot(paper, row, "D", color="#FFFFFF", markeredgecolor="#000000", zorder=3)
            text += f" (paper {paper:+.1f} %)"
        at = (max(middle, high, paper or 0.0, 0.0), row)
        axes.annotate(text, at, xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(0, color="#999999", linewidth=1)
    axes.set_yticks(range(len(drawn)), [label for label, *_ in drawn], fontsize=8)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def percents(ratio: Sequence[float]) -> list[float]:
    return [100 * (r - 1) for r in ratio]


def monitor(records: Results) -> Figure | None:
    """What each way of monitoring adds to a step, a panel per network."""
    of = [record for record in chosen(records, "monitor") if "cost" in record]
    networks = [*dict.fromkeys(record["network"] for record in of)]
    if not networks:
        return None
    figure, axes = panels(len(networks), 5.6, 3.4)
    found = []
    for panel, network in zip(axes, networks, strict=True):
        drawn = []
        for record in chosen(of, "monitor", network=network):
            name, cost = record["provider"], percents(record["cost"]["no monitor"])
            label = "GradientMonitor" if name == OURS else provider(name).label
            drawn.append((label, name, cost, None))
            found += [f"{cost[0]:.0f} % ({network})"] * (name == OURS)
        bars(panel, drawn)
        panel.set_title(network, fontsize=10)
        panel.set_xlabel("added to a step, % (bars: median, lines: quartiles)", fontsize=8)
    figure.suptitle(f"Monitoring every gradient adds {' and '.join(found)}", fontsize=11)
    return figure


def table4(records: Results) -> Figure | None:
    """What each model adds to its baseline, beside what the paper reports; a panel per mode."""
    of = chosen(records, "table4")
    modes = [*dict.fromkeys(record["mode"] for record in of)]
    if not modes:
        return None
    figure, axes = panels(len(modes), 6.4, 4.0)
    for panel, mode in zip(axes, modes, strict=True):
        drawn = []
        for record in chosen(of, "table4", mode=mode):
            for other, ratio in record["cost"].items():
                cost, first = percents(ratio), other == record["baseline"]
                paper = 100 * record["paper_overhead"] if first and record["paper_overhead"] else None
                drawn.append((record["label"] if first else ALONE, record["provider"], cost, paper))
        bars(panel, drawn)
        panel.set_title(mode, fontsize=10)
        panel.set_xlabel("overhead in % (bars: median, lines: quartiles, diamonds: the paper)", fontsize=8)
    (both,) = chosen(of, "table4", provider=OURS, mode=modes[-1])
    added = percents(both["cost"][both["baseline"]])[0]
    figure.suptitle(
        f"Table 4: both remedies add {added:+.1f} % to a step ({modes[-1]}; paper "
        f"{100 * both['paper_overhead']:+.1f} %), {both['data']}",
        fontsize=11,
    )
    return figure


PICTURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "bandwidth.png": bandwidth,
    "quantiles.png": quantiles,
    "sketch.png": sketch,
    "monitor.png": monitor,
    "table4.png": table4,
    "growth.png": growth.draw,
}
