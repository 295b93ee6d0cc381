"""What the programs of a measurement have in common: surroundings, the machine, the results."""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import tempfile
import time

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).resolve().parent / "results"

_QUIET = 0.3  # of a CPU, that others may use without being mentioned


@contextmanager
def session(name: str, facts: dict[str, Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Measure in like surroundings, and keep what was found.

    Parameters
    ----------
    name
        What the file of results is called after.
    facts
        Of this measurement, for that file.

    Yields
    ------
    folder : pathlib.Path
        Is there while measuring.
    sections : dict
        To be filled with what was found; written to a file of `RESULTS` at the end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that children end, too
    sections: dict[str, Any] = {}
    results = {"machine": _machine(), **facts, "sections": sections}
    if (busy := _others_cpus()) > _QUIET:
        print(f"Others are using {busy:.1f} of the CPUs: these numbers will be worse than yours.")
    results["machine"]["cpus_busy_before"] = busy
    begin = time.monotonic()
    # As on tmpfs as the machine has it, and gone at the end.
    try:
        with tempfile.TemporaryDirectory(prefix="pystack_nb-bench-") as temporary:
            folder = Path(temporary)
            _surroundings(folder)
            yield folder, sections
    finally:  # what was measured before an interrupt is worth its minutes
        results["seconds"] = time.monotonic() - begin
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"\n{results['seconds']:.0f} s; all numbers: {os.path.relpath(path)}")


def _surroundings(folder: Path) -> None:
    """Give every process the same settings, and folders that are removed at the end."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        # Of spool files and sockets.
        "XDG_RUNTIME_DIR": str(folder),
        "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
        # A user's start-up files and history belong to no measurement.
        "IPYTHONDIR": str(folder / "ipython"),
    }


def _machine() -> dict[str, Any]:
    return {
        "kernel": platform.release(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _others_cpus(seconds: float = 2.0) -> float:
    """Return how many CPUs are in use while this process sleeps."""
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _busy_ticks() -> int:
    user, nice, system, _, _, irq, soft, steal, *_ = map(
        int, Path("/proc/stat").read_text().split(maxsplit=1)[1].splitlines()[0].split()
    )
    return user + nice + system + irq + soft + steal
