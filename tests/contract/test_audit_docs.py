"""The page on audit and repair names what the audit can find, and nothing else."""

import re
from pathlib import Path
from typing import Final

from reconciler.findings import Code, Invariant

PAGE: Final = (Path(__file__).parents[2] / "docs" / "operating" / "audit-and-repair.md").read_text(
    "utf-8"
)


def first_cells(heading: str) -> set[str]:
    """Return what the first cells of a section's table name."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)
    names = {name.strip(" `") for row in rows for name in row.split(",")}
    return names - {"code", "invariant"}


def test_every_code_is_explained() -> None:
    assert first_cells("What is found") == {code.value for code in Code}


def test_every_invariant_is_explained() -> None:
    checked = {invariant.value for invariant in Invariant} - {Invariant.ANOMALY.value}
    assert first_cells("What is checked") == checked
