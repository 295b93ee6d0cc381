"""Recordings made by hand, for tests of what is done with one."""

from __future__ import annotations

import pandas as pd

from pystack_nb.recording import Recording


PERIOD_NS = 1_000_000
START_NS = 5_000_000_000_000
PID = 100

INFO = {
    "format": 1,
    "mode": "sample",
    "source": "ebpf",
    "hz": {"asked": 1000, "reached": 998.4},
    "start_ns": START_NS,
    "wall_ns": 1_500_000_000,
    "pids": [PID],
    "lost": 0,
    "lost_by_cause": {},
    "incomplete": 0,
    "incomplete_by_cause": {},
    "clock": "CLOCK_MONOTONIC",
    "clock_snapshot": {
        "monotonic_ns": START_NS,
        "boottime_ns": START_NS + 7,
        "realtime_ns": 1_800_000_000_000_000_000,
    },
    "error": None,
    "complete": True,
    "notes": [],
}


def frame(text, line=0, *, kind="python"):
    """Make a frame of ``"function file"``; a Python function begins 3 lines before `line`."""
    function, _, filename = text.partition(" ")
    filename = filename or {"python": "/src/cell.py", "kernel": "[kernel]"}.get(
        kind, "/lib/libm.so"
    )
    return (kind, function, filename, line, max(line - 3, 0) if kind == "python" else 0)


def make_recording(samples, events=(), **info):
    """Make a recording.

    Parameters
    ----------
    samples : list of (int, int, tuple)
        Period that the sample falls into, tid and stack: what `frame` gives, outermost first,
        or texts for it.
    events : list of dict, optional
        Columns of the events table; what is missing gets a value.
    **info
        What differs from `INFO`.
    """
    numbers, rows = {}, []
    for period, tid, stack in samples:
        frames = tuple(frame(x, 4) if isinstance(x, str) else x for x in stack)
        leaf = next((x for x in reversed(frames) if x[0] == "python"), None)
        rows.append(
            {
                "ts_ns": START_NS + period * PERIOD_NS,
                "pid": PID,
                "tid": tid,
                "comm": "main" if tid == PID else f"worker-{tid}",
                "cpu": tid % 2,
                "state": "on-cpu",
                "weight_ns": PERIOD_NS,
                "stack_id": numbers.setdefault(frames, len(numbers)),
                "function": leaf and leaf[1],
                "filename": leaf and leaf[2],
                "line_number": leaf[3] if leaf else 0,
            }
        )
    columns = ["kind", "function", "filename", "line_number", "first_line"]
    frames = [
        {"stack_id": number, "depth": depth, **dict(zip(columns, row, strict=True))}
        for stack, number in numbers.items()
        for depth, row in enumerate(stack)
    ]
    usual = {"ts_ns": START_NS, "dur_ns": 0, "pid": PID, "tid": PID, "kind": "mark", "args": {}}
    last = max((x[0] for x in samples), default=0)
    return Recording(
        pd.DataFrame(rows, columns=list(rows[0]) if rows else SAMPLE_COLUMNS),
        pd.DataFrame(frames, columns=["stack_id", "depth", *columns]),
        pd.DataFrame([usual | x for x in events], columns=[*usual, "name"]),
        INFO | {"samples": len(rows), "end_ns": START_NS + (last + 1) * PERIOD_NS} | info,
    )


SAMPLE_COLUMNS = [
    "ts_ns", "pid", "tid", "comm", "cpu", "state", "weight_ns", "stack_id",
    "function", "filename", "line_number",
]  # fmt: skip
