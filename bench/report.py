"""Turn the JSON of a benchmark run into what is committed: tables, pictures, the numbers behind them.

    pytest bench --benchmark-only --benchmark-json=run.json
    python bench/report.py run.json --name h200 --readme README.md

writes results.json, tables.md and pictures to bench/results/h200/, and tables between the README's
markers (`readme.py`), of what was measured. A results.json written so is itself a valid argument.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from figure import PICTURES
from readme import SECTIONS, markers, replaced
from tables import KINDS, Results, losses, markdown, rows

RESULTS = Path(__file__).parent / "results"


def load(path: Path) -> tuple[dict[str, str], Results]:
    """Where and how the numbers were measured, and the numbers."""
    run = json.loads(path.read_text())
    results = [r for benchmark in run["benchmarks"] for r in benchmark["extra_info"].get("results", [])]
    if not results:
        raise SystemExit(f"{path} holds no results: make it with `pytest bench --benchmark-json={path}`")
    return run["machine_info"]["provenance"], results


def provenance_line(provenance: dict[str, str]) -> str:
    p = provenance
    versions = ", ".join(f"{name} {p[name]}" for name in ("sigscale", "torch", "triton", "python"))
    return f"{p['device']}; {versions}; `{p['command']}`; {p['date']}."


def tables(provenance: dict[str, str], results: Results) -> str:
    """All tables of a run in Markdown, with where the numbers come from, and every loss."""
    measured = [(kind, rows(results, name)) for name, kind in KINDS.items()]
    parts = [
        f"{kind.title[0].upper()}{kind.title[1:]}.\n\n{markdown(table)}" for kind, table in measured if table
    ]
    return "\n\n".join([provenance_line(provenance), *parts, losses(results).replace("  ", "- ")]) + "\n"


def write(folder: Path, provenance: dict[str, str], results: Results) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(result) for result in results)  # one result a line, for readable diffs
    machine = json.dumps({"provenance": provenance}, indent=1)
    run = f'{{"machine_info": {machine},\n"benchmarks": [{{"extra_info": {{"results": [\n{lines}\n]}}}}]}}\n'
    (folder / "results.json").write_text(run)
    (folder / "tables.md").write_text(tables(provenance, results))
    for name, draw in PICTURES.items():
        draw(results, provenance, folder / name)


def update_readme(readme: Path, provenance: dict[str, str], results: Results) -> None:
    """Replace what stands between the markers of each section that was measured."""
    text, missing = readme.read_text(), []
    for section, table_of in SECTIONS.items():
        if table := table_of(results):
            new = replaced(text, section, f"{markdown(table)}\n\n{provenance_line(provenance)}")
            missing += [" ... ".join(markers(section))] * (new is None)
            text = text if new is None else new
    readme.write_text(text)
    if missing:
        raise SystemExit(f"{readme} has no {', '.join(missing)} to write between; all else is written")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="JSON of a run, or a results.json")
    parser.add_argument("--name", help="folder under bench/results to write to; by default that of RUN")
    parser.add_argument("--readme", type=Path, help="file with the markers")
    arguments = parser.parse_args()
    provenance, results = load(arguments.run)
    if arguments.name or not arguments.readme:
        write(RESULTS / (arguments.name or arguments.run.stem), provenance, results)
    if arguments.readme:
        update_readme(arguments.readme, provenance, results)


if __name__ == "__main__":
    main()
