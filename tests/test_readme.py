"""The README and the guide: Python blocks run, links lead somewhere, tables say what tests have shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.oracles.works_with import BEGIN, END, GUIDE, claims, marked, rendered

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "examples/README.md")
MANY = ("README.md", "examples/README.md", "examples/cifar10/README.md", "bench/README.md", "bench/NOTES.md")


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", MANY)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_fits_one_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_table_is_that_of_the_tests():
    table = GUIDE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == rendered(marked()), "run pytest -m works_with --works-with"


def test_unknown_cells():
    with pytest.raises(ValueError, match=r"got 'FSDP3', 'monitor'"):
        [*claims("FSDP3", "monitor")]
