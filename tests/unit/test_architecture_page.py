"""ARCHITECTURE.md names every module of the package, and only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_the_page_names_every_module_and_no_other() -> None:
    section = PAGE.partition("## The package, file by file")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    modules = {path.stem for path in (ROOT / "layers/haltline/haltline").glob("*.py")} - {"__init__"}
    assert len(named) == len(set(named))
    assert set(named) == modules


def test_the_page_names_every_part_of_the_launcher() -> None:
    parts = {path.stem for path in (ROOT / "local").glob("*.py")} - {"__init__", "__main__"}
    assert {part for part in parts if f"`{part}`" not in PAGE} == set()


def test_every_test_that_the_page_names_exists() -> None:
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named
    assert {name for name in named if f"def {name}(" not in written} == set()


def test_every_race_says_who_wins_and_has_a_test() -> None:
    section = PAGE.partition("## Who wins each race")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows
    assert [row[0] for row in rows if len(row) != 4 or not row[1].strip() or "`test_" not in row[3]] == []
