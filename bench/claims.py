"""The paper's claims and what became of them, from a run of the CIFAR-10 example to the README.

    python bench/claims.py bench/results/figures-cpu-2026-11-26 --readme README.md

writes what `claims.json` in that folder says between the markers `<!-- bench:claims:begin -->` and
`<!-- bench:claims:end -->`; `report.md` beside it has every number, test and rule.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from readme import markers, replaced
from tables import Row, markdown

SECTION = "claims"


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
    parser.add_argument("--readme", type=Path, required=True, help="file with the markers")
    arguments = parser.parse_args()
    claims = json.loads((arguments.run / "claims.json").read_text(encoding="utf-8"))
    if claims["data_generated"]:
        raise SystemExit(f"{arguments.run}: made with generated images, which say nothing of the claims")
    new = replaced(arguments.readme.read_text(encoding="utf-8"), SECTION, markdown(rows(claims)))
    if new is None:
        raise SystemExit(f"{arguments.readme} has no {' ... '.join(markers(SECTION))} to write between")
    arguments.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
