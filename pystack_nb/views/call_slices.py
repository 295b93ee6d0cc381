"""Calls as slices of a timeline: each one exactly where it was, down to the width of a pixel.

What is narrower is merged, and what is drawn of it is a chain of calls that happened: among the
calls of a pixel that one caller made, those of the function that took the most time stand for
all, and only what these called is drawn below them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.nesting import distinct_functions


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.recording import Recording
    from pystack_nb.views.threads import Thread

    Ints = NDArray[Any]  # of integers
    Bools = NDArray[np.bool_]
    Columns = dict[str, NDArray[Any]]


class CallSlices:
    """The calls of some threads, to be drawn at any scale.

    Parameters
    ----------
    recording : Recording
        With calls.
    shown : list of Thread
        Whose calls to draw.
    max_depth : int
        Outermost calls that are shown of each stack.
    """

    def __init__(self, recording: Recording, shown: list[Thread], max_depth: int) -> None:
        calls = recording.calls
        tid, depth, start, length, parent = (
            calls[x].to_numpy() for x in ("tid", "depth", "ts_ns", "dur_ns", "parent")
        )
        function, first = distinct_functions(calls)
        self._named = calls.iloc[first]
        rows = np.flatnonzero((depth < max_depth) & is_one_of(tid, [x.tid for x in shown]))
        thread, self._tids = pd.factorize(tid[rows])
        # Two small numbers in one that is sorted quickly, by counting, where it has 16 bits.
        key = depth[rows].astype(np.int64) * len(self._tids) + thread
        narrow = key.astype(np.int16) if key.max(initial=0) < 2**15 else key
        order = np.argsort(narrow, kind="stable")
        rows = rows[order]
        place = np.full(len(calls) + 1, -1, np.int64)  # the last place is no caller's
        place[rows] = np.arange(len(rows))
        self._stretches = Stretches(
            thread[order],
            depth[rows],
            start[rows],
            start[rows] + length[rows],
            place[parent[rows]],
            function[rows],
            np.ones(len(rows), np.int64),
        )

    def merge(self, start_ns: int, pixel_ns: float) -> Columns:
        """Draw at a scale; a later one must not be finer.

        Returns
        -------
        dict of str to numpy.ndarray
            The columns of `Timeline.slices` but for ``level``, sorted by depth, thread and time.
        """
        if pixel_ns > 0:
            self._stretches = self._stretches.merged(start_ns, pixel_ns)
        drawn, named = self._stretches, self._named
        is_c = tables.is_text(named["kind"], tables.C_CALL)
        names = {"kind": np.where(is_c, "native", "python").astype(object)}
        for name in ("function", "filename"):
            names[name] = np.array(
                ["[unknown]" if x is None else x for x in tables.texts(named[name])], object
            )
        return {
            "tid": self._tids[drawn.thread],
            "depth": drawn.depth,
            "ts_ns": drawn.start,
            "dur_ns": drawn.end - drawn.start,
            **{name: texts[drawn.function] for name, texts in names.items()},
            "line_number": named["line_number"].to_numpy()[drawn.function],
            "count": drawn.calls,
            "unit": np.full(len(drawn.start), "call", object),
        }


class Stretches(NamedTuple):
    """Columns of what is drawn, sorted by depth, thread and time; `parent` is a row."""

    thread: Ints
    depth: Ints
    start: Ints
    end: Ints
    parent: Ints
    function: Ints
    calls: Ints

    def merged(self, start_ns: int, pixel_ns: float) -> Stretches:
        """Merge what lies in one pixel, level by level."""
        # The new row that each old one is in; -1 where another function stands for it.
        into = np.full(len(self.start) + 1, -1, np.int64)
        depths = np.arange(int(self.depth.max(initial=-1)) + 2)
        bounds = np.searchsorted(self.depth, depths).tolist()
        levels: list[Stretches] = []
        made = 0
        for begin, end in pairwise(bounds):
            rows = np.arange(begin, end)
            above = into[self.parent[begin:end]]
            if levels:
                rows, above = rows[above >= 0], above[above >= 0]
            level = Stretches(*(x[rows] for x in self))._replace(parent=above)
            drawn, stretch = level.merged_level(start_ns, pixel_ns)
            into[rows] = np.where(stretch >= 0, stretch + made, -1)
            levels.append(drawn)
            made += len(drawn.start)
        if not levels:
            return self
        return Stretches(*(np.concatenate(x) for x in zip(*levels, strict=True)))

    def merged_level(self, start_ns: int, pixel_ns: float) -> tuple[Stretches, Ints]:
        """Merge calls of one depth; tell of each which of the new ones it stands for, or -1."""
        if not len(self.start):
            return self, self.parent
        wide = self.end - self.start >= pixel_ns
        column = ((self.start - start_ns) / pixel_ns).astype(np.int64)
        apart = _changes(self.thread, self.parent, column)
        apart |= wide
        apart[1:] |= wide[:-1]
        cell = np.cumsum(apart) - 1
        function = _longest(cell, self.function, self.end - self.start)
        cells = self.joined(np.flatnonzero(apart), function)

        # Neighbouring pixels with the same function are one stretch.
        wide = wide[apart]
        apart = _changes(cells.thread, cells.parent, cells.function)
        apart[1:] |= wide[1:] | wide[:-1] | (cells.start[1:] - cells.end[:-1] > pixel_ns)
        first = np.flatnonzero(apart)
        stretch = (np.cumsum(apart) - 1)[cell]
        stands = self.function == function[cell]
        return cells.joined(first, cells.function[first]), np.where(stands, stretch, -1)

    def joined(self, first: Ints, function: Ints) -> Stretches:
        """Make one row of those from each of the `first` to the next."""
        last = np.append(first[1:], len(self.start)) - 1
        calls = np.add.reduceat(self.calls, first)
        rows = Stretches(*(x[first] for x in self))
        return rows._replace(end=self.end[last], function=function, calls=calls)


def _longest(cell: Ints, function: Ints, time: Ints) -> Ints:
    """Find for each cell the function that the most time belongs to."""
    functions = int(function.max()) + 1
    code, keys = pd.factorize(cell * functions + function)
    sums = np.bincount(code, weights=time)
    order = np.lexsort([sums, keys // functions])
    of_cell = keys[order] // functions
    found: Ints = keys[order][np.diff(of_cell, append=-1) != 0] % functions
    return found


def _changes(*columns: Ints) -> Bools:
    changes = np.ones(len(columns[0]), np.bool_)
    changes[1:] = False
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return changes


def is_one_of(tid: Ints, tids: list[int]) -> Bools:
    """Tell which of many numbers are among these few."""
    found = np.zeros(len(tid), np.bool_)
    for one in tids:
        found |= tid == one
    return found
