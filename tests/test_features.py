"""docs/features.md: whatever is said to be there names files that are there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in (DOCS / "features.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| feature")
]


def test_the_table_is_whole() -> None:
    assert len(ROWS) == 38
    assert {len(row) for row in ROWS} == {12}
    assert {mark for row in ROWS for mark in row[1].strip("*").split("/")} <= {"Y", "P", "N"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_every_feature_has_evidence(row: list[str]) -> None:
    ours, where = row[1].strip("*"), row[-1]
    files = re.findall(r"\]\(([^)#]+)\)", where)
    assert [name for name in files if not (DOCS / name).exists()] == []
    if set(ours.split("/")) != {"N"}:
        assert files, row[0]
    for setting in re.findall(r"`([\w.]+)(?:=\w+)?`", where):
        # Settings are said as one types them; each has to be somewhere in conf/.
        last = setting.split(".")[-1]
        text = "".join(path.read_text() for path in (DOCS.parent / "conf").rglob("*.yaml"))
        assert re.search(rf"^\s*(- )?{last}:", text, flags=re.M), setting
