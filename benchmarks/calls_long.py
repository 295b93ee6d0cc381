"""Long recordings: whether they are exact, what memory they take, and how soon they can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from calls_process import Process, TracerError, resident
from calls_speed import miscounted
from report import Row, missing, row


if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PROGRAM = "all"
MIB = 2**20

_ROWS = {
    "calls": ("calls", "", ""),
    "lost": ("lost", "", "0"),
    "miscounted": ("calls that cProfile counts otherwise", "", "0"),
    "grown_mib": ("the process grows by", "MiB", "<= 64"),
    "decode_s": ("from the end to tables", "s", ""),
    "bytes_a_call": ("raw recording, a call", "bytes", "<= 20"),
}


def measure(
    python: Path, tracer: str, calls: int, rounds: int, decode_target: str = ""
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Record so many calls, each time in a new process.

    Returns
    -------
    rows : list of Row
        Losses, differences from cProfile's counts, memory, time and bytes.
    raw : list of dict
        All that was told.
    """
    with Process(python, PROGRAM, "cprofile") as counter:
        a_unit = sum(counter.repeat(1, warm_up=0)["counts"].values())
        units = -(-calls // a_unit)
        true = counter.repeat(units, warm_up=0)["counts"]
    raw: list[dict[str, Any]] = []
    why = ""
    for _ in range(rounds):
        try:
            raw.append(_recorded(python, tracer, units, true))
        except TracerError as error:
            why = why or str(error)
    rows = []
    for name, (label, unit, aim) in _ROWS.items():
        target = decode_target if name == "decode_s" else aim
        values = [told[name] for told in raw]
        rows.append(missing(label, why, target) if why else row(label, unit, values, target))
    return rows, raw


def _recorded(python: Path, tracer: str, units: int, true: Mapping[str, int]) -> dict[str, Any]:
    with Process(python, PROGRAM, tracer) as process, resident(process.pid) as memory:
        told = process.repeat(units, warm_up=0)
    before = [size for ns, size in memory if ns < told["before_ns"]][-1]
    most = max(size for ns, size in memory if ns < told["end_ns"])
    differences = miscounted(told.pop("counts"), true)
    return told | {
        "grown_mib": (most - before) / MIB,
        "differences": differences,
        "miscounted": sum(map(abs, differences.values())),
        "bytes_a_call": told["bytes"] / sum(true.values()),
    }
