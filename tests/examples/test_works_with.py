"""The guide's table says what marked tests have shown."""

from __future__ import annotations

import pytest

from tests.oracles.works_with import BEGIN, END, GUIDE, claims, marked, rendered


def test_table_is_that_of_the_tests():
    table = GUIDE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == rendered(marked()), "run pytest -m works_with --works-with"


def test_unknown_cells():
    with pytest.raises(ValueError, match=r"got 'FSDP3', 'monitor'"):
        [*claims("FSDP3", "monitor")]
