"""Every row of the tables of inputs names a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = (ROOT / "docs/inputs.md").read_text()


def tables():
    """Rows under each header whose last column is the test."""
    header, rows = None, []
    for line in DOCUMENT.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif header[-1] == "test" and set(line) - set("|- "):
            rows.append(cells)
    return rows


@cache
def names_in(path):
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("row", tables(), ids=lambda row: row[0][:60])
def test_a_row_names_a_test_that_is_there(row):
    assert len(row) == 3, row
    assert all(row), row
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", row[-1])
    assert named, row[-1]
    assert named[2] in names_in(named[1]), row[-1]


def test_every_section_has_rows():
    for section in re.split(r"^## ", DOCUMENT, flags=re.M)[1:]:
        assert re.search(r"\| `tests/", section), section.splitlines()[0]
    assert len(tables()) > 40
