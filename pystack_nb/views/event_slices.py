"""Marks, layers and faults as slices of a timeline, in rows of their own above their threads'."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.recording import Recording
from pystack_nb.views.call_slices import CallSlices
from pystack_nb.views.threads import Thread


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.views.call_slices import Columns

UNIT = KIND = "event"


class EventSlices:
    """The events of a recording but the one that is its cell, to be drawn at any scale.

    Parameters
    ----------
    recording : Recording
        Its events are drawn as calls are, by name, those within others below them.
    max_depth : int
        Outermost events that are shown of each stack.
    """

    def __init__(self, recording: Recording, max_depth: int) -> None:
        events = recording.events
        cell = recording.info.get("cell")
        start_ns = cell.get("start_ns") if isinstance(cell, dict) else None
        is_cell = tables.is_text(events["kind"], "mark") & tables.is_text(events["name"], "cell")
        is_cell &= events["ts_ns"].to_numpy() == start_ns
        self._events = events[~is_cell]
        tids, counts = np.unique(self._events["tid"].to_numpy(), return_counts=True)
        self._size = dict(zip(tids.tolist(), counts.tolist(), strict=True))
        self._max_depth = max_depth
        self._slices: CallSlices | None = None

    def among(self, shown: list[Thread], most: int) -> list[Thread]:
        """Give threads with a row for events above each that has some.

        Parameters
        ----------
        shown : list of Thread
            Threads that are shown anyway.
        most : int
            Other threads are added, which have events alone, up to so many in all.

        Returns
        -------
        list of Thread
            Rows for events have the thread's number with a minus.
        """
        tids = [thread.tid for thread in shown]
        alone = [tid for tid in self._size if tid not in tids][: max(most - len(tids), 0)]
        rows: list[Thread] = []
        for thread in shown:
            rows += [self._row(thread.tid)] if thread.tid in self._size else []
            rows.append(thread)
        rows += [self._row(tid) for tid in alone]
        drawn = [row for row in rows if row.unit == UNIT]
        if drawn:
            calls = _as_calls(self._events)
            recording = Recording(
                tables.empty(tables.SAMPLES), tables.empty(tables.FRAMES), calls=calls
            )
            self._slices = CallSlices(recording, drawn, self._max_depth)
        return rows

    def merge(self, start_ns: int, pixel_ns: float) -> list[Columns]:
        """Draw at a scale, as `CallSlices.merge` does; nothing where there are no events."""
        if self._slices is None:
            return []
        columns = self._slices.merge(start_ns, pixel_ns)
        count = len(columns["tid"])
        what = {"unit": np.full(count, UNIT, object), "kind": np.full(count, KIND, object)}
        return [columns | what]

    def _row(self, tid: int) -> Thread:
        return Thread(-tid, "events", self._size[tid], UNIT)


def _as_calls(events: pd.DataFrame) -> pd.DataFrame:
    """Make a table of calls of events; what begins within another one is called by it."""
    tid, ts_ns, dur_ns = (events[x].to_numpy() for x in ("tid", "ts_ns", "dur_ns"))
    order = np.lexsort([-dur_ns, ts_ns, tid])
    events, tid, ts_ns, dur_ns = events.iloc[order], tid[order], ts_ns[order], dur_ns[order]
    depth, parent = _nesting(tid, ts_ns, ts_ns + dur_ns)
    return pd.DataFrame(
        {
            "ts_ns": ts_ns,
            "dur_ns": dur_ns,
            "self_ns": dur_ns,
            "pid": events["pid"].to_numpy(),
            "tid": -tid,
            "depth": depth,
            "parent": parent,
            "function": events["name"].array,
            "filename": events["kind"].array,
            "line_number": np.zeros(len(tid), np.int32),
            "complete": np.ones(len(tid), bool),
            "kind": tables.CALL,
        }
    )


def _nesting(
    tid: NDArray[np.integer], begun: NDArray[np.int64], ended: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    depth, parent = np.zeros(len(tid), np.int32), np.full(len(tid), -1, np.int64)
    is_open: list[tuple[int, int]] = []
    last = None
    for row, (thread, start, end) in enumerate(
        zip(tid.tolist(), begun.tolist(), ended.tolist(), strict=True)
    ):
        if thread != last:
            is_open, last = [], thread
        while is_open and is_open[-1][0] <= start:
            is_open.pop()
        depth[row] = len(is_open)
        parent[row] = is_open[-1][1] if is_open else -1
        is_open.append((end, row))
    return depth, parent
