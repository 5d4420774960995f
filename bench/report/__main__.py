"""Turn runs of the benchmarks into what is committed: results, pictures, bench/README.md, README's table.

    python -m bench.report                             render all of bench/results/, say what is stale
    python -m bench.report RUN.jsonl ... --name NAME   first store these runs as bench/results/NAME

Results are stale if `kernels/` or `sigscale/` changed after their commit. The README's table, between
`<!-- results:begin -->` and `<!-- results:end -->`, shows the latest run on a CPU and the latest on a GPU.
With `--check` nothing is written, and a file that is out of date is an error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import report
from bench.report import NAME, RESULTS, ROOT, Run
from bench.report.tables import KINDS, losses, markdown, summary, table

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
HEAD = """# Measurements

All benchmark results under `bench/results/`, the latest first. Written by `make report`; do not edit.

Ratios are medians over rounds in which all alternatives were timed in turn, with quartiles in parentheses.
Below 1, sigscale is faster. [NOTES.md](NOTES.md) has predictions for GPUs and what was learned.
"""


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN.jsonl", help="runs to store, merged")
    parser.add_argument("--name", help="folder under bench/results to store them in")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is out of date")
    arguments = parser.parse_args(argv)
    if bool(arguments.runs) != bool(arguments.name):
        parser.error("RUN.jsonl and --name belong together: what to store, and as what")
    results = root / RESULTS.relative_to(ROOT)
    if arguments.runs:
        report.store(results / arguments.name, report.merged([*map(report.load, arguments.runs)]))
    found = [(path.parent, report.load(path)) for path in sorted(results.glob(f"*/{NAME}"))]
    runs = dict(sorted(found, key=lambda of: of[1].provenance["date"], reverse=True))
    texts = {root / "bench/README.md": page(runs), root / "README.md": front_page(root / "README.md", runs)}
    old = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for folder, run in runs.items():
        if report.is_stale(run):
            print(f"stale: {folder.name}, measured at {run.provenance['commit']}")
    if not arguments.check:
        for path in old:
            path.write_text(texts[path], encoding="utf-8")
    elif old:
        print(f"out of date: {', '.join(path.relative_to(root).as_posix() for path in old)}; `make report`")
        return 1
    return 0


def page(runs: dict[Path, Run]) -> str:
    """bench/README.md."""
    return "\n".join([HEAD, *(part for folder, run in runs.items() for part in section(folder, run))])


def section(folder: Path, run: Run) -> Iterator[str]:
    """A run: where it comes from, pictures, tables, every loss."""
    yield f"## {folder.name}\n\n{provenance(run)}\n\n[Numbers](results/{folder.name}/{NAME})\n"
    for picture in sorted(folder.glob("*.png")):
        yield f"![{picture.stem}](results/{folder.name}/{picture.name})\n"
    for kind in KINDS:
        found = table(run.results, kind)
        if not found.empty:
            yield f"### {KINDS[kind].title}\n\n{KINDS[kind].explained}\n\n{markdown(found)}\n"
    yield f"### Losses\n\n{losses(run.results).replace('  ', '- ')}\n"


def provenance(run: Run) -> str:
    about = run.provenance
    versions = ", ".join(f"{name} {about[name]}" for name in ("sigscale", "torch", "triton", "python"))
    measured = f"commit {about['commit'][:10]}; `{about['command']}`; {about['date']}"
    return f"{about['device']}; {versions}; {measured}."


def front_page(readme: Path, runs: dict[Path, Run]) -> str:
    """README.md with its table rendered anew."""
    text = readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{readme}: must have {BEGIN} and {END}, to write the table between")
    latest = {run.provenance["kind"]: run for run in reversed(runs.values())}
    parts = [f"{summary(latest[kind].results)}\n\n{provenance(latest[kind])}\n" for kind in sorted(latest)]
    return re.sub(f"(?s){BEGIN}.*{END}", lambda _: "\n".join([BEGIN, "\n".join(parts) + END]), text)


if __name__ == "__main__":
    sys.exit(main())
