"""The pictures of a run. Titles say what was found; every provider has its one look."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from bench.harness.activations import gbps
from bench.harness.providers import PROVIDERS, provider
from bench.harness.timing import OURS
from bench.report import Results, growth
from bench.report.tables import size

Lines = dict[str, list[tuple[int, float]]]  # points by provider


def chosen(records: Results, kind: str, **about: str) -> Results:
    return [
        r for r in records if r["kind"] == kind and about.items() <= r.items() and r["seconds"] is not None
    ]


def by(records: Results, *names: str) -> dict[str, Results]:
    """Records by their values of these names."""
    found: dict[str, Results] = {}
    for record in records:
        found.setdefault(", ".join(record[name] for name in names), []).append(record)
    return found


def lines(records: Results, value: Callable[[dict[str, Any]], float], n: str = "elements") -> Lines:
    found: Lines = {}
    for record in records:
        found.setdefault(record["provider"], []).append((record[n], value(record)))
    return found


def panels(
    count: int, width: float, height: float, most: int = 4, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most so many, width and height of each in inches."""
    columns, rows = min(most, count), -(-count // most)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [*figure.subplots(rows, columns, squeeze=False, **shared).flat]
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def curves(found: Mapping[str, Lines], ylabel: str, xlabel: str = "elements", **shared: Any) -> Figure:
    """A panel for each of these, both axes logarithmic, and one legend for all."""
    figure, axes = panels(len(found), 4.6, 4.2, **shared)
    legend: dict[str, Artist] = {}
    for panel, (title, of) in zip(axes, found.items(), strict=True):
        for name in sorted(of, key=[*PROVIDERS].index):
            look, (n, values) = provider(name), zip(*sorted(of[name]), strict=True)
            style: dict[str, Any] = {"color": look.color, "linestyle": look.line, "marker": look.marker}
            (legend[look.label],) = panel.plot(n, values, label=look.label, markersize=5, **style)
        panel.set(xscale="log", yscale="log", xlabel=xlabel, title=title)
        panel.set_xscale("log", base=2)
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    axes[0].set_ylabel(ylabel)
    figure.legend(legend.values(), [*legend], loc="outside lower center", ncols=4, frameon=False, borderpad=2)
    return figure


def bandwidth(records: Results) -> Figure | None:
    """Effective bandwidth of tanh in fp32 over size, a panel per direction; the roof is the fastest copy."""
    of = chosen(records, "activation", function="tanh", dtype="float32")
    if not of:
        return None
    found = {direction: lines(part, gbps) for direction, part in by(of, "direction").items()}
    figure = curves(found, "effective bandwidth (GB/s)", sharey=True)
    roof = max(gbps(record) for record in of if record["provider"] == "copy")
    for panel in figure.axes:
        panel.axhline(roof, color="#000000", linewidth=0.8, linestyle=":")
    last = max(
        (r for r in of if r["provider"] == OURS),
        key=lambda r: (r["elements"], [*found].index(r["direction"])),
    )
    figure.suptitle(
        f"Fused tanh, fp32: {last['over']['eager'][0]:.2f} of eager's time, {gbps(last) / roof:.0%} of the "
        f"fastest copy's bandwidth at {size(last['elements'])}, {last['direction']}"
    )
    return figure


def quantiles(records: Results) -> Figure | None:
    """Time over size for Gaussian values in fp32: sketches, and five exact quantiles."""
    about = {"values": "Gaussian", "dtype": "float32"}
    exact = chosen(records, "exact", quantiles="five", **about)
    of = {"distribution of a tensor": chosen(records, "sketch", **about), "five exact quantiles": exact}
    found = {title: lines(part, lambda r: 1e6 * r["seconds"]) for title, part in of.items() if part}
    if not found:
        return None
    figure = curves(found, "time (µs)", sharey=True)
    if ours := [r for r in exact if "torch.quantile" in r["over"]]:
        last = max(ours, key=lambda r: r["elements"])
        speed = 1 / last["over"]["torch.quantile"][0]
        values = f"Five exact quantiles of {size(last['elements'])} values"
        figure.suptitle(f"{values}: {speed:.1f} times the speed of torch.quantile")
    return figure


def sketch(records: Results) -> Figure | None:
    """Time of a pass that counts over that of one that does not, for Gaussian values."""
    of = [r for r in chosen(records, "backward", values="Gaussian") if "no sketch" in r["over"]]
    if not of:
        return None
    parts = by(of, "direction", "dtype")
    found = {title: lines(part, lambda r: r["over"]["no sketch"][0]) for title, part in parts.items()}
    figure = curves(found, "time over that without counting", sharey=True)
    last = max(
        (r for r in of if r["provider"] == OURS), key=lambda r: (r["elements"], r["dtype"] == "float32")
    )
    cost = f"{last['over']['no sketch'][0]:.2f} times the {last['direction']} pass"
    figure.suptitle(f"Counting the gradient: {cost} at {size(last['elements'])}, {last['dtype']}")
    return figure


def percent(ratio: float) -> float:
    return 100 * (ratio - 1)


def bars(parts: Mapping[str, Results], label: str) -> Figure:
    """A panel for each of these: what is added to a step, quartiles as lines, the paper's as diamonds."""
    figure, axes = panels(len(parts), 8.4, 4.0, most=2)
    for panel, (title, of) in zip(axes, parts.items(), strict=True):
        drawn = [
            (r, map(percent, ratio)) for r in of for name, ratio in r["over"].items() if provider(name).less
        ]
        for row, (record, (middle, low, high)) in enumerate(drawn):
            color, paper = provider(record["provider"]).color, record.get("paper") or 0.0
            panel.barh(row, middle, color=color, xerr=[[middle - low], [high - middle]])
            text, at = f"{middle:+.1f} %", (max(high, 100 * paper, 0.0), row)
            if paper:
                panel.plot(100 * paper, row, "D", color="#FFFFFF", markeredgecolor="#000000")
                text += f" (paper {100 * paper:+.1f} %)"
            panel.annotate(text, at, xytext=(7, 0), textcoords="offset points", va="center", fontsize=8)
        panel.set_yticks(range(len(drawn)), [record[label] for record, _ in drawn])
        panel.invert_yaxis()
        panel.margins(x=0.2)
        panel.set(title=title, xlabel="added to a step, % (bars: median, lines: quartiles)")
    return figure


def monitor(records: Results) -> Figure | None:
    """What each way of monitoring adds to a step, a panel per network."""
    parts = by(chosen(records, "monitor"), "network")
    if not parts:
        return None
    figure = bars(parts, "provider")
    ours = chosen(records, "monitor", provider=OURS)
    added = sorted(percent(r["over"]["no monitor"][0]) for r in ours)
    figure.suptitle(f"Monitoring every gradient adds {added[0]:.0f} to {added[-1]:.0f} % to a step")
    return figure


def table4(records: Results) -> Figure | None:
    """What each model adds to its baseline, beside what the paper reports; a panel per mode."""
    parts = by(chosen(records, "table4"), "mode")
    if not parts:
        return None
    figure = bars(parts, "model")
    mode = [*parts][-1]
    (both,) = chosen(records, "table4", provider=OURS, mode=mode)
    added = f"both remedies add {percent(both['over']['plain'][0]):+.1f} % to a step"
    figure.suptitle(f"Table 4: {added} ({mode}; paper {100 * both['paper']:+.1f} %)\n{both['data']}")
    return figure


def growing(records: Results) -> Figure | None:
    """Time against elements and seeds, and the line that fits; where launch cost ends stands in the title."""
    found = {
        f"{series}\n{growth.end(of)}": (lines(of, lambda r: 1e6 * r["seconds"], "n"), of[0]["unit"])
        for series, of in growth.series(records).items()
    }
    if not found:
        return None
    figure = curves({title: of for title, (of, _) in found.items()}, "time of a call (µs)")
    for panel, (of, unit) in zip(figure.axes, found.values(), strict=False):
        for name, points in of.items():
            panel.plot(*growth.line(points), color=provider(name).color, linewidth=1, zorder=0)
        panel.set_xlabel(unit)
    figure.suptitle("At small sizes time is launch cost, which stays the same")
    return figure


PICTURES: Mapping[str, Callable[[Results], Figure | None]] = {
    "bandwidth.png": bandwidth,
    "quantiles.png": quantiles,
    "sketch.png": sketch,
    "monitor.png": monitor,
    "table4.png": table4,
    "growth.png": growing,
}
