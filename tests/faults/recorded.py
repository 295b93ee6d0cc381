"""Recordings of a function's own events, without probes."""

from __future__ import annotations

import tempfile

from pathlib import Path

import spools
import torch

from synthetic import make_recording

from pystack_nb import PyStackProfiler, faults, marks


SECOND = 10**9


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


def timed(model, *inputs, lasting=None, forwards=1, scale=1):
    """Record a model, and then let its layers' own work last as long as is wished.

    `lasting` has seconds by layer, 0 for others; each forward lasts `scale` times as long as
    the one before.
    """

    def run():
        with faults.annotate(model), torch.no_grad():
            model(*inputs)

    events = recorded(run).events
    lasting = lasting or {}
    rows, begin_ns = [], 0
    for number in range(forwards):
        clock_ns, open_ns = begin_ns, []
        spans = list(events[["name", "ts_ns", "dur_ns", "args"]].itertuples(index=False))
        for name, ts_ns, dur_ns, args in spans:
            while open_ns and open_ns[-1][0] <= ts_ns:
                open_ns.pop()[1]["dur_ns"] += clock_ns
            row = {"kind": "layer", "name": name, "args": args}
            rows.append(row | {"ts_ns": clock_ns, "dur_ns": -clock_ns})
            open_ns.append((ts_ns + dur_ns, rows[-1]))
            clock_ns += round(lasting.get(name, 0) * SECOND * scale**number)
        while open_ns:
            open_ns.pop()[1]["dur_ns"] += clock_ns
        begin_ns = clock_ns + SECOND
    return make_recording([], rows)


def layers_of(recording):
    """Give the events of layers as (name, call), in order of time."""
    events = recording.events[recording.events["kind"] == "layer"]
    return [(name, args["call"]) for name, args in zip(events["name"], events["args"], strict=True)]
