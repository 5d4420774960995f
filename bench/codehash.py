"""A hash of the code behind a result, so that a result whose code has changed can be told.

Of a result count: all of `kernels/` and `sigscale/`, the files that ran, and what these import from `bench`,
`examples` and `tests`.  Of a Python file comments, docstrings, blank lines, white space at line ends and the
kind of line ends do not count, of other files the kind of line ends; the order of files does not either, nor
does the version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ("kernels", "sigscale")
FOLDERS = ("bench", "tests", ".")  # where imports are looked for; the last for `examples`
LENGTH = 12  # hexadecimal digits

Code = dict[str, Any]


def record(starts: Iterable[str], root: Path = ROOT) -> Code:
    """The hash of all code behind the files `starts`, and that of each file."""
    files = {path: _digest(root / path) for path in sorted({*_package(root), *_closure(starts, root)})}
    return {"hash": combined(files), "files": files}


def combined(files: Mapping[str, str]) -> str:
    lines = "".join(f"{path} {digest}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:LENGTH]


def changed(code: Code, root: Path = ROOT) -> list[str]:
    """Files behind a result that are different now, gone, or new in the package."""
    files: dict[str, str] = code["files"]
    different = {path for path, digest in files.items() if _digest(root / path) != digest}
    return sorted(different | (_package(root) - files.keys()))


def essence(text: str) -> str:
    """What counts of a Python file."""
    lines = text.splitlines()
    try:
        docstrings = _docstrings(ast.parse(text), lines)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (SyntaxError, tokenize.TokenError):
        return text
    kept = (line.rstrip() for row, line in enumerate(lines, 1) if row not in docstrings)
    return "\n".join(line for line in kept if line)


def _docstrings(tree: ast.Module, lines: list[str]) -> set[int]:
    """Rows of docstrings that have their lines to themselves."""
    rows: set[int] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            before = lines[first.lineno - 1].encode()[: first.col_offset]
            after = lines[(first.end_lineno or first.lineno) - 1].encode()[first.end_col_offset :]
            if isinstance(first.value.value, str) and not before.strip() and not after.strip():
                rows |= {*range(first.lineno, (first.end_lineno or first.lineno) + 1)}
    return rows


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    return _digest_of(path.read_bytes(), path.suffix == ".py")


@lru_cache(maxsize=1024)
def _digest_of(content: bytes, python: bool) -> str:
    text = content.decode().replace("\r\n", "\n").replace("\r", "\n")
    counted = essence(text) if python else text
    return hashlib.sha256(counted.encode()).hexdigest()[:LENGTH]


def _package(root: Path) -> set[str]:
    found = (path for folder in PACKAGE for path in (root / folder).rglob("*.py"))
    return {path.relative_to(root).as_posix() for path in found}


def _closure(starts: Iterable[str], root: Path) -> set[str]:
    """The files and, again and again, what they import."""
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            if path.endswith(".py"):
                waiting += _imports(root / path, root)
    return found


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Files that a file imports, the package's own aside."""
    for name in _imported(path.read_bytes()):
        if name.split(".")[0] not in PACKAGE:
            yield from _files(name, root)


@lru_cache(maxsize=1024)
def _imported(content: bytes) -> tuple[str, ...]:
    """Modules, and names that may be modules."""
    names: list[str] = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _files(module: str, root: Path) -> Iterator[str]:
    place = module.replace(".", "/")
    for folder in FOLDERS:
        for path in (root / folder / f"{place}.py", root / folder / place / "__init__.py"):
            if path.is_file():
                yield path.relative_to(root).as_posix()
