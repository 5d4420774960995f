"""The guide's table of what works with what: a cell for each marker `works_with(row, *columns)` of a test.

`pytest -m works_with --works-with` runs those tests and writes the table from their results. A marker's
`says` replaces "yes", as where a test shows a refusal, or that PyTorch's own modules fail in the same way.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
GUIDE = TESTS.parent / "examples" / "README.md"
BEGIN, END = "<!-- works with: written by pytest -m works_with --works-with -->", "<!-- end -->"
COLUMNS = ("activation", "learned alpha", "grad_sketch", "monitor", "penalty", "recurrent")
ROWS = (
    *("torch.compile", "compiled autograd", "activation checkpointing"),
    *("func.grad, jvp, hessian", "vmap, is_grads_batched", "forward AD", "double backward"),
    *("torch.export", "ONNX", "jit.trace", "jit.script", "fx"),
    *("DistributedDataParallel", "FSDP2", "FSDP2 over a 2-D mesh", "FSDP1"),
    *("tensor parallel", "tensor parallel, compiled", "DTensor"),
    *("NestedTensor, jagged", "NestedTensor, strided"),
    *("CSV, JSON lines", "TensorBoard", "Weights & Biases", "Lightning", "Transformers"),
)
Claim = tuple[str, str, str]  # row, column, what the cell says


def claims(row: str, *columns: str, says: str = "yes") -> Iterator[Claim]:
    """The claims of a marker; ValueError for a row or column that the table lacks."""
    for column in columns:
        if row not in ROWS or column not in COLUMNS:
            raise ValueError(f"works_with takes rows {ROWS} and columns {COLUMNS}; got {row!r}, {column!r}")
        yield row, column, says


def marked() -> set[Claim]:
    """The claims of all tests, run or not."""
    found: set[Claim] = set()
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "works_with":
                values = [ast.literal_eval(argument) for argument in node.args]
                found.update(claims(*values, **{k.arg: ast.literal_eval(k.value) for k in node.keywords}))
    return found


def rendered(found: Iterable[Claim]) -> str:
    """The table as Markdown, with the rows that have a cell."""
    cells: dict[tuple[str, str], set[str]] = {}
    for row, column, says in found:
        cells.setdefault((row, column), set()).add(says)
    lines = [["", *COLUMNS], ["---"] * (1 + len(COLUMNS))]
    for row in ROWS:
        said = [", ".join(sorted(cells.get((row, column), ()))) for column in COLUMNS]
        if any(said):
            lines.append([row, *said])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--works-with", action="store_true", help="write the guide's table from the results")


def pytest_itemcollected(item: pytest.Item) -> None:
    for marker in item.iter_markers("works_with"):
        item.user_properties += [("works_with", claim) for claim in claims(*marker.args, **marker.kwargs)]


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    if not config.getoption("--works-with"):
        return
    reports = {status: terminalreporter.stats.get(status, []) for status in ("passed", "failed", "error")}
    claimed = {
        status: {
            tuple(value) for report in some for name, value in report.user_properties if name == "works_with"
        }
        for status, some in reports.items()
    }
    failed = claimed["failed"] | claimed["error"]
    table = rendered({(row, column, "FAILS") for row, column, _ in failed} | claimed["passed"] - failed)
    before, _, rest = GUIDE.read_text("utf-8").partition(BEGIN)
    GUIDE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}", "utf-8")
