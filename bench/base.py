"""The package of two commits side by side, each in a folder of its own, nothing installed.

`kernels/` is `sigscale.kernels` once it is installed; a copy of `sigscale/` with a copy of `kernels/` in it
is the same package, and comes first where its folder comes first on Python's path.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import codehash
from codehash import ROOT

IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


@dataclass(frozen=True)
class Sides:
    """Folders to put first on Python's path, the commit of the base, and a folder for what else is needed."""

    base: Path
    tree: Path
    commit: str
    scratch: Path
    same: bool  # code


@contextlib.contextmanager
def sides(ref: str, root: Path = ROOT) -> Iterator[Sides]:
    """The package of the commit `ref` and of the working tree; all is removed again, whatever happens."""
    commit = resolved(ref, root)
    with tempfile.TemporaryDirectory(prefix="sigscale-compare-") as name:
        scratch = Path(name)
        with _worktree(commit, root, scratch / "checkout") as checkout:
            base = package(checkout, scratch / "base", ref)
            there = codehash.record((), checkout)
        tree = package(root, scratch / "tree", "the working tree")
        yield Sides(base, tree, commit, scratch, there["hash"] == codehash.record((), root)["hash"])


def resolved(ref: str, root: Path = ROOT) -> str:
    """The commit that a name stands for."""
    if not ref:
        raise SystemExit("name a commit to compare with: make bench-compare BASE=HEAD~1")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found.returncode:
        raise SystemExit(f"BASE={ref}: there is no such commit, branch or tag; `git log` names commits")
    return found.stdout.strip()


@contextlib.contextmanager
def _worktree(commit: str, root: Path, place: Path) -> Iterator[Path]:
    try:
        made = _git(root, "worktree", "add", "--detach", "--quiet", str(place), commit)
        if made.returncode:
            raise SystemExit(f"git cannot check {commit[:10]} out: {made.stderr.strip()}")
        if changes := _git(place, "status", "--porcelain").stdout.strip():
            raise SystemExit(
                f"the checkout of {commit[:10]} differs from the commit; is there a filter?\n{changes}"
            )
        yield place
    finally:
        _git(root, "worktree", "remove", "--force", str(place))
        shutil.rmtree(place, ignore_errors=True)
        _git(root, "worktree", "prune")


def package(source: Path, place: Path, name: str) -> Path:
    """A copy of the package, as it would be installed."""
    if missing := [folder for folder in codehash.PACKAGE if not (source / folder / "__init__.py").exists()]:
        raise SystemExit(f"{name} has no {missing[0]}/__init__.py: it is too old to compare with")
    shutil.copytree(source / "sigscale", place / "sigscale", ignore=IGNORED)
    shutil.copytree(source / "kernels", place / "sigscale" / "kernels", ignore=IGNORED)
    return place


def _git(where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=where, capture_output=True, text=True, check=False)
