"""`bench/REPORT.md`: everything under bench/results/, a section a folder; and which results are stale.

REPORT.md shows the hash of the code behind each result and never says "stale", so that it changes only when
results do; whether the code has changed since is worked out and printed when `python bench/report.py` is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from codehash import ROOT, Code, changed
from tables import Row, markdown

INTRODUCTION = """# Results

All that lies under `bench/results/`, the latest first. Written by `make report`; do not edit. `code` is a
hash of the sources that were measured (`bench/codehash.py`); `make report` also says which of them have
changed since."""
WITHOUT = "without a code hash"
SHOWN = {".json", ".md", ".txt", ".csv"}


def report(results: Path) -> str:
    folders = sorted((path for path in results.iterdir() if path.is_dir()), key=_latest_first)
    return "\n\n".join([INTRODUCTION, *(_section(folder) for folder in folders)]) + "\n"


def main(results: Path, check: bool = False) -> int:
    """Write REPORT.md beside `results`, or only compare it, and print what is stale."""
    path, text = results.parent / "REPORT.md", report(results)
    print("\n".join(staleness(results)))
    if not check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        print(f"{path.name} is out of date: `make report`")
        return 1
    return 0


def staleness(results: Path, root: Path = ROOT) -> Iterator[str]:
    """A line for each result."""
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        codes = dict(_codes(folder))
        for name, code in codes.items():
            files = changed(code, root)
            state = f"**stale**, since then changed: {', '.join(files)}" if files else "of the code as it is"
            yield f"{name} ({code['hash']}): {state}"
        if not codes:
            yield f"{folder.name}: {WITHOUT}"


def _codes(folder: Path) -> Iterator[tuple[str, Code]]:
    for path in _stages(folder):
        yield f"{folder.name}/{path.parent.name}", _read(path)["code"]
    run = folder / "results.json"
    if run.exists() and (code := _read(run).get("machine_info", {}).get("code")):
        yield folder.name, code


def _section(folder: Path) -> str:
    parts = [f"## {folder.name}", *_provenance(folder)]
    if rows := [_row(folder, path) for path in _stages(folder)]:
        parts.append(markdown(rows))
    elif not dict(_codes(folder)):
        parts.append(f"{WITHOUT.capitalize()}.")
    links = [_link(path, folder) for path in sorted(folder.iterdir()) if path.suffix in SHOWN]
    parts += [", ".join(links)] if links else []
    pictures = sorted(path for place in (folder, *_places(folder)) for path in place.glob("*.png"))
    parts += [f"![{_name(path, folder)}]({_target(path, folder)})" for path in pictures]
    return "\n\n".join(parts)


def _provenance(folder: Path) -> Iterator[str]:
    """Of a folder that `evidence.py` or `report.py` wrote; others say it in their files."""
    path = folder / "environment.json"
    if path.exists():
        about = _read(path)
        host = [f"host {about['cpu']}"] if about["gpu"] else []
        names = ("driver", "cuda", "sigscale", "torch", "triton", "python")
        parts = [", ".join([about["gpu"] or about["cpu"], *host]), _versions(about, names)]
        trial = " A trial of the smallest sizes." if about["quick"] == "yes" else ""
        yield f"{'; '.join(parts)}; `{about['command']}`; {about['date']}.{trial}"
    path = folder / "results.json"
    provenance = _read(path).get("machine_info", {}).get("provenance") if path.exists() else None
    if provenance:
        versions = _versions(provenance, ("sigscale", "torch", "triton", "python"))
        code = "".join(f" Code {code['hash']}." for _, code in _codes(folder))
        yield f"{provenance['device']}; {versions}; `{provenance['command']}`; {provenance['date']}.{code}"


def _versions(about: Mapping[str, str], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {about[name]}" for name in names if about[name])


def _row(folder: Path, path: Path) -> Row:
    stage = _read(path)
    commit = re.sub(r"\b([0-9a-f]{10})[0-9a-f]{30}\b", r"\1", stage["about"]["commit"])
    links = [_link(path.parent / name, folder) for name in stage["files"] if not name.endswith(".png")]
    return {
        "stage": path.parent.name,
        "outcome": stage["outcome"],
        "seconds": f"{stage['seconds']:.0f}",
        "remark": stage["remark"].replace("|", "\\|"),
        "date": stage["date"],
        "commit": commit,
        "code": stage["code"]["hash"],
        "files": ", ".join(links),
    }


def _stages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/stage.json"), key=lambda path: _read(path)["date"])


def _places(folder: Path) -> list[Path]:
    return [path.parent for path in _stages(folder)]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _target(path: Path, folder: Path) -> str:
    """Relative to REPORT.md, which lies beside the folder of all results."""
    return path.relative_to(folder.parents[1]).as_posix()


def _link(path: Path, folder: Path) -> str:
    return f"[{_name(path, folder)}]({_target(path, folder)})"


def _latest_first(folder: Path) -> tuple[int, str]:
    date = re.search(r"(\d{4})-(\d{2})-(\d{2})$", folder.name)
    return (-int("".join(date.groups())) if date else 0), folder.name


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
