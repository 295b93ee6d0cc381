"""What the documents tell a reader to type, names what there is."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys

from pathlib import Path
from typing import Any

import pytest

import pystack_nb


ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "data" / "profiler_logs" / "quickstart" / "quickstart"
DOCUMENTS = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
)
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
DOTTED = re.compile(r"\bpystack_nb(?:\.[A-Za-z_]\w*)+")
CALLED = re.compile(rf"({DOTTED.pattern})\(")
IMPORTED = re.compile(r"from pystack_nb[\w.]* import \w+")


def reach(name: str) -> object:
    """Import as much of a dotted name as is a module, and take the rest from it."""
    found, path = pystack_nb, "pystack_nb"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_dotted_name_of_a_document_can_be_imported(document: Path) -> None:
    for name in sorted(set(DOTTED.findall(document.read_text()))):
        assert reach(name) is not None


def test_what_a_document_calls_and_imports_is_there_in_a_new_interpreter() -> None:
    text = "\n".join(document.read_text() for document in DOCUMENTS)
    lines = ["import pystack_nb", *CALLED.findall(text), *IMPORTED.findall(text)]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_the_tables_of_the_readme_give_all_of_the_recorded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # GIVEN the README's examples, and a recording as the last one
    recording = pystack_nb.load(RECORDING)
    monkeypatch.setattr(pystack_nb, "last", lambda: recording)
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    lines, leaves = [x for x in blocks if "lines.nlargest" in x or "leaves.nlargest" in x]
    # WHEN they are run as they stand there, with what the first block imports
    names: dict[str, Any] = {}
    exec(blocks[0].replace("%load_ext pystack_nb\n", ""), names)
    exec(lines, names)
    exec(leaves, names)
    # THEN the native functions, which functions() folds away, have time of their own
    in_python = recording.samples["function"].notna()
    weights = recording.samples["weight_ns"]
    assert names["lines"].sum() == weights[in_python].sum()
    assert names["leaves"].sum() == weights.sum()
    assert names["leaves"].loc["kernel"].sum() > 0
    assert names["leaves"].loc["native"].sum() > 0
