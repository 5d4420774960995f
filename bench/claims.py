"""The paper's claims and what became of them, from a run of the CIFAR-10 example to the README.

    python bench/claims.py bench/results/figures-cpu-2026-11-26 --readme README.md

writes what `claims.json` in that folder says between the markers `<!-- bench:claims:begin -->` and
`<!-- bench:claims:end -->`; `report.md` beside it has every number, test and rule. With `--readings`, folders
of runs that read the paper in other ways, their claims are compared between the markers of `bench:readings`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from readme import markers, replaced
from tables import Row, markdown

SECTION, READINGS = "claims", "readings"
OPTIONS = ("pixels", "conv", "bias", "batch", "lr", "steps")  # that say how the paper is read


def rows(claims: Mapping[str, Any]) -> list[Row]:
    """One for each statement that counts."""
    return [
        {
            "": statement["name"],
            "in the paper's words": f'"{statement["words"]}"',
            "measured": statement["measured"].replace("|", "\\|"),
            "our runs": _effect(statement),
            "p": "" if statement["p"] is None else f"{statement['p']:.2g}",
            "verdict": f"**{statement['verdict']}**",
        }
        for statement in claims["statements"]
        if statement["counts"]
    ]


def rows_of_readings(runs: Sequence[Path]) -> list[Row]:
    """One for each run, the first with the default reading: the statements that all of them judge."""
    read = [_read(run) for run in runs]
    named = [{statement["name"]: statement for statement in claims["statements"]} for claims, _ in read]
    names = [name for name, of in named[0].items() if of["counts"] and all(name in other for other in named)]
    if not names:
        raise SystemExit(f"{', '.join(map(str, runs))}: judge no statement that all have in common")
    default = read[0][1]
    words = [f"{name}, {named[0][name]['measured']}".replace("|", "\\|") for name in names]
    return [
        {"reading": _reading(about, default), "epochs": str(about["epochs"]), "seeds": _seeds(found, names)}
        | {word: _judged(found[name]) for word, name in zip(words, names, strict=True)}
        for (_, about), found in zip(read, named, strict=True)
    ]


def _read(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What became of the claims, and the settings."""
    try:
        claims, about = (
            json.loads((run / name).read_text(encoding="utf-8")) for name in ("claims.json", "run.json")
        )
        generated = claims["data_generated"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{run}: must be an output folder of examples.cifar10, with its claims.json and run.json "
            f"({type(error).__name__}: {error})"
        ) from error
    if generated:
        raise SystemExit(f"{run}: made with generated images, which say nothing of the claims")
    return claims, about


def _reading(about: Mapping[str, Any], default: Mapping[str, Any]) -> str:
    given = {name: about[name] for name in OPTIONS if about[name] != default[name]}
    words = [_option(name, value) for name, value in given.items()]
    return f"`{' '.join(words)}`" if words else "the default"


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {value}"


def _seeds(found: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    return str(max(found[name]["seeds"] for name in names))


def _judged(statement: Mapping[str, Any]) -> str:
    p = "" if statement["p"] is None else f", p = {statement['p']:.2g}"
    return f"{_effect(statement)}{p}: {statement['verdict']}"


def _effect(statement: Mapping[str, Any]) -> str:
    """The mean paired difference, in points of accuracy or as a factor of gradients, and its interval."""
    effect, (low, high) = statement["effect"], statement["interval"]
    if effect is None:
        return statement["why"]  # type: ignore[no-any-return]
    if statement["unit"] == "share of runs":
        return f"in {effect:.0%} of the runs, against the claim"
    interval = [end for end in (low, high) if end is not None]
    if statement["unit"] == "decimal logarithm":
        number, *ends = (f"{10**value:.2g}" for value in (effect, *interval))
        words = "times"
    else:
        number, *ends = (f"{value:+.1f}" for value in (effect, *interval))
        words = "points"
    return f"{number}{f' ({ends[0]} to {ends[1]})' if len(ends) == 2 else ''} {words}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder with a claims.json")
    parser.add_argument("--readings", type=Path, nargs="+", metavar="DIR", help="folders of other readings")
    parser.add_argument("--readme", type=Path, required=True, help="file with the markers")
    arguments = parser.parse_args()
    sections = {SECTION: rows(_read(arguments.run)[0])}
    if arguments.readings:
        sections[READINGS] = rows_of_readings([arguments.run, *arguments.readings])
    if not arguments.readme.is_file():
        raise SystemExit(f"{arguments.readme}: must be a file with {' ... '.join(markers(SECTION))}")
    text = arguments.readme.read_text(encoding="utf-8")
    for section, table in sections.items():
        new = replaced(text, section, markdown(table))
        if new is None:
            raise SystemExit(f"{arguments.readme} has no {' ... '.join(markers(section))} to write between")
        text = new
    arguments.readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
