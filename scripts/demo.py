"""Run a notebook from top to bottom in a real kernel, and say what it left.

The kernel runs under the Python that runs this program, whatever kernels are installed on the
machine. Ends with status 1, and the cell's own error, when a cell fails.

With ``--update``, what is kept in the repository is made anew: the notebook's outputs, and, of the
quickstart, in ``data/profiler_logs/quickstart`` the same cell recorded at a lower rate, so that it
is small.
"""

from __future__ import annotations

import argparse
import copy
import os
import shutil
import sys

from pathlib import Path

import nbformat

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
QUICKSTART = "01_quickstart"
LOGS = ROOT / "data" / "profiler_logs"
OUT = LOGS / "demo"
KEPT = LOGS / "quickstart"
HZ, KEPT_HZ = "--hz 999", "--hz 199"

# What each notebook must leave, as glob patterns below OUT, and what each is.
TRACE = "the recording, for ui.perfetto.dev"
EXPECTED = {
    QUICKSTART: {
        "*.ipynb": "the executed notebook",
        "*/samples.parquet": "the recording, as a folder of Parquet files",
        "*.json": "the recording, as JSON",
        "*.pftrace": TRACE,
        "*.png": "a picture of the timeline",
    },
    "02_every_call": {"*.ipynb": "the executed notebook", "*.pftrace": TRACE},
    "04_faults": {"*.ipynb": "the executed notebook", "*.pftrace": TRACE},
}


class ThisPython(KernelSpecManager):
    """Knows one kernel: this interpreter."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        """Give the same specification whatever the notebook asks for."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--IPKernelApp.log_level=ERROR"]  # its warnings are not about this notebook
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


def execute(document: nbformat.NotebookNode, out: Path) -> None:
    """Execute a notebook, which leaves its files in `out`."""
    os.environ["PYSTACK_NB_DEMO_DIR"] = str(out)
    NotebookClient(
        document,
        km=AsyncKernelManager(kernel_spec_manager=ThisPython()),
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(NOTEBOOKS)}},
    ).execute()


def run(name: str, out: Path) -> nbformat.NotebookNode:
    """Execute a notebook in a new folder `out`, and keep it there as far as it got."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    notebook = NOTEBOOKS / f"{name}.ipynb"
    document = nbformat.read(notebook, as_version=4)
    try:
        execute(document, out)
    finally:
        nbformat.write(document, out / notebook.name)
    return document


def update(name: str, document: nbformat.NotebookNode) -> None:
    """Keep an executed notebook; of the quickstart, make the recording that is kept."""
    if name == QUICKSTART:
        keep_recording(document)
    nbformat.write(document, NOTEBOOKS / f"{name}.ipynb")


def keep_recording(document: nbformat.NotebookNode) -> None:
    """Record the quickstart's cell anew, at the lower rate."""
    shutil.rmtree(KEPT, ignore_errors=True)
    KEPT.mkdir()
    smaller = copy.deepcopy(document)
    for cell in smaller.cells:
        cell.source = cell.source.replace(HZ, KEPT_HZ)
    execute(smaller, KEPT)


def report(name: str, out: Path) -> int:
    """Print what lies in `out`; 1 if something that the notebook should leave is not there."""
    status = 0
    for pattern, what in EXPECTED[name].items():
        paths = sorted(out.glob(pattern))
        for path in paths:
            shown = path.parent if path.name == "samples.parquet" else path
            print(f"{os.path.relpath(shown)}: {what}")
        if not paths:
            print(f"{os.path.relpath(out)}/{pattern}: missing, it should be {what}")
            status = 1
    return status


def main() -> int:
    """Read the command line and run the demo."""
    parser = argparse.ArgumentParser(description="Run a notebook in a real kernel.")
    parser.add_argument(
        "notebook", nargs="?", default=QUICKSTART, choices=EXPECTED, help=f"default: {QUICKSTART}"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where to leave everything")
    parser.add_argument(
        "--update",
        action="store_true",
        help="also put the notebook's outputs, and the quickstart's recording, in the repository",
    )
    options = parser.parse_args()
    out = options.out.absolute()
    try:
        document = run(options.notebook, out)
        if options.update:
            update(options.notebook, document)
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    return report(options.notebook, out)


if __name__ == "__main__":
    sys.exit(main())
