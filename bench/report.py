"""Turn benchmark runs into what is committed: tables, pictures, the numbers behind them; `bench/REPORT.md`.

    python bench/report.py

renders all of bench/results/ to bench/REPORT.md and says which results are stale: the code that they measured
has changed since. With `--check` nothing is written, and a REPORT.md that is out of date is an error.

    pytest bench --benchmark-only --benchmark-json=run.json
    python bench/report.py run.json --name h200 --readme README.md

writes results.json, tables.md and pictures to bench/results/h200/, and tables between the README's
markers (`readme.py`), of what was measured. A results.json written so is itself a valid argument, and so is
a folder of `evidence.py`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import rendering
from codehash import Code
from readme import SECTIONS, markers, replaced
from tables import KINDS, Results, losses, markdown, rows

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """Where and how numbers were measured, the numbers, and of what code."""

    provenance: dict[str, str]
    results: Results
    code: Code = field(default_factory=dict)


def load(path: Path) -> Run:
    """A run's JSON, or those of all stages in a folder as if they were one."""
    if path.is_dir():
        found = sorted([*path.glob("results.json"), *path.glob("*/results.json")])
        runs = [load(file) for file in found if "machine_info" in json.loads(file.read_text())]
        if not runs:
            raise SystemExit(f"{path} holds no results of benchmarks: make them with `make evidence`")
        return replace(runs[0], results=[result for run in runs for result in run.results], code={})
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        results = [r for benchmark in run["benchmarks"] for r in benchmark["extra_info"].get("results", [])]
        machine = run["machine_info"]
        loaded = Run(machine["provenance"], results, machine.get("code", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{path}: must be what `pytest bench --benchmark-only --benchmark-json={path}` writes "
            f"({type(error).__name__}: {error})"
        ) from error
    if not results:
        raise SystemExit(f"{path} holds no results: make it with `pytest bench --benchmark-json={path}`")
    return loaded


def provenance_line(provenance: dict[str, str]) -> str:
    p = provenance
    versions = ", ".join(f"{name} {p[name]}" for name in ("sigscale", "torch", "triton", "python"))
    return f"{p['device']}; {versions}; `{p['command']}`; {p['date']}."


def tables(run: Run) -> str:
    """All tables of a run in Markdown, with where the numbers come from, and every loss."""
    measured = [(kind, rows(run.results, name)) for name, kind in KINDS.items()]
    parts = [
        f"{kind.title[0].upper()}{kind.title[1:]}.\n\n{markdown(table)}" for kind, table in measured if table
    ]
    lost = losses(run.results).replace("  ", "- ")
    return "\n\n".join([provenance_line(run.provenance), *parts, lost]) + "\n"


def write(folder: Path, run: Run) -> None:
    from figure import PICTURES  # needs matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(result) for result in run.results)  # one a line, for readable diffs
    machine = json.dumps({"provenance": run.provenance, **({"code": run.code} if run.code else {})}, indent=1)
    text = f'{{"machine_info": {machine},\n"benchmarks": [{{"extra_info": {{"results": [\n{lines}\n]}}}}]}}\n'
    (folder / "results.json").write_text(text)
    (folder / "tables.md").write_text(tables(run))
    for name, draw in PICTURES.items():
        draw(run.results, run.provenance, folder / name)


def update_readme(readme: Path, run: Run) -> None:
    """Replace what stands between the markers of each section that was measured."""
    text, missing = readme.read_text(encoding="utf-8"), []
    for section, table_of in SECTIONS.items():
        if table := table_of(run.results):
            new = replaced(text, section, f"{markdown(table)}\n\n{provenance_line(run.provenance)}")
            missing += [" ... ".join(markers(section))] * (new is None)
            text = text if new is None else new
    readme.write_text(text, encoding="utf-8")
    if missing:
        raise SystemExit(f"{readme} has no {', '.join(missing)} to write between; all else is written")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="JSON of a run, or a folder of evidence")
    parser.add_argument("--name", help="folder under bench/results to write to; by default that of RUN")
    parser.add_argument("--readme", type=Path, help="file with the markers")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where REPORT.md is old")
    arguments = parser.parse_args()
    if arguments.run is None and (arguments.name or arguments.readme):
        parser.error("--name and --readme take RUN, the results to be written")
    if arguments.readme and not arguments.readme.is_file():
        parser.error(f"--readme {arguments.readme}: must be a file with markers such as {markers('')[0]}")
    if arguments.run is None:
        raise SystemExit(rendering.main(RESULTS, check=arguments.check))
    run = load(arguments.run)
    if arguments.name or not arguments.readme:
        write(RESULTS / (arguments.name or arguments.run.stem), run)
    if arguments.readme:
        update_readme(arguments.readme, run)


if __name__ == "__main__":
    main()
