"""Notebooks of the repository, as ``scripts/demo.py`` runs them, and as they are kept."""

from __future__ import annotations

import subprocess
import sys

from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat


if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"


def run(name: str, out: Path) -> subprocess.CompletedProcess[str]:
    """Execute a notebook, which leaves its files and itself in `out`."""
    program = [sys.executable, ROOT / "scripts" / "demo.py", name, "--out", out]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def executed(folder: Path, name: str) -> list[Any]:
    """Return the cells of code, all of which were executed, in order and without an error."""
    cells = nbformat.read(folder / f"{name}.ipynb", as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [x for x in outputs(code) if x.output_type == "error" or x.get("name") == "stderr"] == []
    return code


def outputs(cells: list[Any]) -> Iterator[Any]:
    """Go through the outputs of all cells."""
    for cell in cells:
        yield from cell.outputs


def text(cell: Any) -> str:
    """Return what a cell has printed, and its value, as text."""
    return "".join(
        x.text if x.output_type == "stream" else x.data.get("text/plain", "") for x in cell.outputs
    )
