"""Recordings of a function's own events, without probes."""

from __future__ import annotations

import tempfile

from pathlib import Path

import spools

from pystack_nb import PyStackProfiler, marks


def recorded(function):
    """Run a function, whatever it raises but interrupts aside, and give what it told."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events"
        file = marks.begin(path)
        try:
            function()
        finally:
            marks.end(file)
        blocks = path.read_bytes() if path.exists() else b""
    head = spools.spool(spools.client(), spools.start(start_ns=1), spools.end(end_ns=2**62))
    return PyStackProfiler.parse_stack_data(head + blocks)


def layers_of(recording):
    """Give the events of layers as (name, call), in order of time."""
    events = recording.events[recording.events["kind"] == "layer"]
    return [(name, args["call"]) for name, args in zip(events["name"], events["args"], strict=True)]
