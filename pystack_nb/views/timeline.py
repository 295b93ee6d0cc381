"""Where everything stands on a timeline: threads as rows, time across, stack depth inside a row.

Calls are slices as they are, with what is known of when they waited; of threads that have
none, samples become slices: as long as consecutive samples of a thread have the same outermost
frames, these frames are drawn as one stretch.  What the process told of itself, marks and
layers, has rows of its own.  Nothing here draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.views.call_slices import CallSlices, is_one_of
from pystack_nb.views.event_slices import EventSlices
from pystack_nb.views.pauses import GAP_COLUMNS, GAP_PERIODS, extent, pauses, period_ns, spread
from pystack_nb.views.threads import Thread, calling_threads, threads


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.recording import Recording
    from pystack_nb.views.call_slices import Columns

    Ints = NDArray[Any]  # of integers

FEWEST_COLUMNS = 400

_NUMBERS = ("tid", "depth", "ts_ns", "dur_ns", "line_number", "count")
# The columns of no slices at all.
_NONE: Columns = {
    name: np.zeros(0, np.int64 if name in _NUMBERS else object)
    for name in (*_NUMBERS[:4], "kind", "function", "filename", *_NUMBERS[4:], "unit")
}


class Row(NamedTuple):
    """A thread's place: `levels` levels of depth from level `top` down.

    The row for its events has its number with a minus as `tid`.
    """

    tid: int
    name: str
    size: int
    unit: str
    top: int
    levels: int

    @property
    def thread(self) -> int:
        """The thread's number."""
        return abs(self.tid)


@dataclass(frozen=True)
class Timeline:
    """A timeline laid out.

    Attributes
    ----------
    start_ns, end_ns : int
        What the time axis spans.
    rows : list of Row
        From the top: the main thread, then the others, busiest first; those with calls
        stand above those that have samples alone.  Events stand above their thread.
    slices : pandas.DataFrame
        Columns ``tid depth ts_ns dur_ns kind function filename line_number count unit level``.
        The last is the vertical place in the whole picture; ``count`` tells how many calls
        or samples, which ``unit`` says, the slice stands for.
    pauses : pandas.DataFrame
        Parts of slices of calls in which their thread was not running: columns ``tid level
        ts_ns dur_ns``.  Known only where the thread was sampled, too.
    hidden_threads, hidden_slices, hidden_levels : int
        How many did not fit; levels, of the deepest stack of a thread that is shown.
    """

    start_ns: int
    end_ns: int
    rows: list[Row]
    slices: pd.DataFrame
    pauses: pd.DataFrame
    hidden_threads: int
    hidden_slices: int
    hidden_levels: int

    @property
    def levels(self) -> int:
        """Height of the picture, in levels of depth."""
        return sum(row.levels for row in self.rows)


def layout(
    recording: Recording,
    *,
    columns: int = 1000,
    max_depth: int = 20,
    max_threads: int = 16,
    max_slices: int = 1500,
) -> Timeline:
    """Lay out a recording's timeline within bounds, whatever its size.

    Parameters
    ----------
    recording : Recording
        Any number of samples.
    columns : int
        Pixels that the time axis has; what is shorter than one is merged.
    max_depth : int
        Outermost frames that are shown of each stack.
    max_threads : int
        The busiest threads are kept.
    max_slices : int
        Where there are more, more is merged; of what is still too many the longest are kept.
    """
    start_ns, end_ns = extent(recording)
    every = all_threads(recording)
    events = EventSlices(recording, max_depth)
    shown = events.among(every[:max_threads], max_threads)
    calling = [thread for thread in shown if thread.unit == "call"]
    calls = CallSlices(recording, calling, max_depth) if calling else None
    sampled = [thread.tid for thread in shown if thread.unit == "sample"]
    while True:
        pixel_ns = (end_ns - start_ns) / columns
        parts = [calls.merge(start_ns, pixel_ns)] if calls else []
        parts += [_sampled(recording, sampled, columns, max_depth)] if sampled else []
        parts += events.merge(start_ns, pixel_ns)
        count = sum(len(x["tid"]) for x in parts)
        if count <= max_slices or columns < FEWEST_COLUMNS:
            break
        columns //= 2  # rather coarser than with holes
    drawn = {x: np.concatenate([_NONE[x], *(part[x] for part in parts)]) for x in _NONE}
    if count > max_slices:
        longest = np.sort(np.argpartition(-drawn["dur_ns"], max_slices)[:max_slices])
        drawn = {name: column[longest] for name, column in drawn.items()}

    deepest = np.zeros(len(shown), np.int64)
    place = {thread.tid: number for number, thread in enumerate(shown)}
    row = np.array([place[x] for x in drawn["tid"].tolist()], np.int64)
    np.maximum.at(deepest, row, drawn["depth"])
    tops = np.cumsum([0, *(deepest + 1)])
    rows = [
        Row(*thread, top=top, levels=levels + 1)
        for thread, top, levels in zip(shown, tops.tolist(), deepest.tolist(), strict=False)
    ]
    table = pd.DataFrame({**drawn, "level": tops[row] + drawn["depth"]}, copy=False)
    paused = pauses(recording, table, columns)
    return Timeline(
        start_ns,
        end_ns,
        rows,
        table,
        paused.nlargest(max_slices, "dur_ns") if len(paused) > max_slices else paused,
        hidden_threads=max(len(every) - max_threads, 0),
        hidden_slices=count - len(table),
        hidden_levels=max(_deepest(recording, shown) - max_depth, 0),
    )


def all_threads(recording: Recording) -> list[Thread]:
    """List the threads that have calls, and then those that have samples alone.

    Where the recording of calls ended early, samples say more: those that have some stand
    first, as threads with samples.
    """
    calling = calling_threads(recording) if len(recording.calls) else []
    first, then = calling, threads(recording)
    if recording.info.get("calls_stopped"):
        first, then = then, first
    tids = {thread.tid for thread in first}
    return first + [thread for thread in then if thread.tid not in tids]


def _sampled(recording: Recording, tids: list[int], columns: int, max_depth: int) -> Columns:
    table = slices(recording, columns=columns, max_depth=max_depth)
    table = table[table["tid"].isin(tids)].rename(columns={"samples": "count"})
    numbers = {x: table[x].to_numpy() for x in _NUMBERS}
    texts = {x: np.array(tables.texts(table[x]), object) for x in ("kind", "function", "filename")}
    return numbers | texts | {"unit": np.full(len(table), "sample", object)}


def slices(
    recording: Recording, *, columns: int | None = None, max_depth: int | None = None
) -> pd.DataFrame:
    """Join consecutive samples of each thread, depth by depth.

    Parameters
    ----------
    recording : Recording
        Whose samples to join.
    columns : int, optional
        Pixels that the recording's time is drawn over.  Samples that fall into one pixel of
        a thread are merged: one stands for them, with the frames that most have in common.
    max_depth : int, optional
        Outermost frames to keep of each stack.

    Returns
    -------
    pandas.DataFrame
        Columns ``tid depth ts_ns dur_ns kind function filename line_number samples``, sorted
        by thread, depth and time.  ``line_number`` is the function's first line.  A thread
        that has no sample for more than 2.5 periods, and 3 pixels, was idle: its slices end.
    """
    frames = recording.frames
    if max_depth is not None:
        frames = frames[frames["depth"] < max_depth]
    functions = _functions(frames)
    stacks = _Stacks(frames["stack_id"].to_numpy(), frames["depth"].to_numpy(), functions)

    samples = recording.samples
    tid, ts = samples["tid"].to_numpy(), samples["ts_ns"].to_numpy()
    stack = stacks.rows_of(samples["stack_id"].to_numpy())
    count = np.ones(len(ts), np.int64)  # samples that each one stands for
    period = period_ns(recording)
    gap = GAP_PERIODS * period
    start_ns, end_ns = extent(recording)
    pixel = (end_ns - start_ns) / columns if columns else 0.0
    gap = max(gap, GAP_COLUMNS * pixel)
    if len(ts) and pixel > period:
        column = ((ts - start_ns) / pixel).astype(np.int64)
        tid, column, stack, count = _merged(tid, column, stack, stacks.ranks()[stack])
        ts = start_ns + (column * pixel).astype(np.int64)
        period = int(np.ceil(pixel))

    order = np.lexsort([ts, tid])
    tid, ts, stack, count = tid[order], ts[order], stack[order], count[order]
    joins = np.zeros(len(ts) + 1, bool)  # joins[i]: sample i goes on where sample i - 1 was
    joins[1:-1] = (tid[1:] == tid[:-1]) & (np.diff(ts) <= gap)
    common = np.zeros(len(ts) + 1, np.int64)
    common[1:-1] = stacks.common_prefixes(stack[:-1], stack[1:])
    common[~joins] = 0
    depth = stacks.depths[stack]

    # Sample i opens the slices from the prefix that it shares with the one before it, down to
    # its own depth; sample j closes those below the prefix, of the one before it.  At each
    # depth, opening and closing take turns, so sorting by depth pairs them.
    opened, level = spread(common[:-1], depth)
    closed, closed_level = spread(common[1:], depth)
    opened = opened[np.argsort(level, kind="stable")]
    order = np.argsort(closed_level, kind="stable")
    closed, level = closed[order], closed_level[order]

    ends = ts + period
    ends[:-1] = np.where(joins[1:-1], ts[1:], ends[:-1])
    ends = np.minimum(ends, end_ns)
    before = np.concatenate([[0], np.cumsum(count)])
    function = stacks.matrix[stack[opened], level]
    named = frames.iloc[_first_rows(functions)]
    table = pd.DataFrame(
        {
            "tid": tid[opened],
            "depth": level.astype(np.int32),
            "ts_ns": ts[opened],
            "dur_ns": ends[closed] - ts[opened],
            "kind": named["kind"].array.take(function),
            "function": named["function"].array.take(function),
            "filename": named["filename"].array.take(function),
            "line_number": named["first_line"].to_numpy()[function],
            "samples": before[closed + 1] - before[opened],
        }
    )
    return table.sort_values(["tid", "depth", "ts_ns"], kind="stable", ignore_index=True)


def _deepest(recording: Recording, shown: list[Thread]) -> int:
    samples, frames, calls = recording.samples, recording.frames, recording.calls
    sampled = [thread.tid for thread in shown if thread.unit == "sample"]
    stacks = samples["stack_id"].to_numpy()[np.isin(samples["tid"].to_numpy(), sampled)]
    drawn = frames["depth"].to_numpy()[np.isin(frames["stack_id"].to_numpy(), stacks)]
    calling = [thread.tid for thread in shown if thread.unit == "call"]
    called = calls["depth"].to_numpy()[is_one_of(calls["tid"].to_numpy(), calling)]
    return int(max(drawn.max(initial=-1), called.max(initial=-1))) + 1


class _Stacks:
    """The functions of each distinct stack, as a matrix padded with -1."""

    def __init__(self, stack_ids: Ints, depths: Ints, functions: Ints) -> None:
        self._ids, row = np.unique(stack_ids, return_inverse=True)
        width = int(depths.max(initial=-1)) + 1
        # One row more, the last, for stacks without frames.
        self.matrix = np.full((len(self._ids) + 1, width), -1, np.int64)
        self.matrix[row, depths] = functions
        # Stacks that differ in lines alone are one stack here.
        weights = np.random.default_rng(1).integers(1, 2**62, width)
        same = pd.factorize(self.matrix @ weights)[0]
        self._canonical = _first_rows(same)[same]
        self.depths = (self.matrix >= 0).sum(axis=1)

    def rows_of(self, stack_ids: Ints) -> Ints:
        row = np.minimum(np.searchsorted(self._ids, stack_ids), max(len(self._ids) - 1, 0))
        known = self._ids[row] == stack_ids if len(self._ids) else np.zeros(len(row), bool)
        return self._canonical[np.where(known, row, len(self._ids))]

    def ranks(self) -> Ints:
        """Order the stacks, those with equal beginnings together."""
        rank = np.empty(len(self.matrix), np.int64)
        rank[np.lexsort([self.depths, *self.matrix.T[::-1]])] = np.arange(len(rank))
        return rank

    def common_prefixes(self, one: Ints, other: Ints) -> Ints:
        """Count the outermost frames that pairs of stacks have in common."""
        pair, pairs = pd.factorize(one * len(self.matrix) + other)
        one, other = pairs // len(self.matrix), pairs % len(self.matrix)
        prefix = np.zeros(len(pairs), np.int64)
        same = np.ones(len(pairs), bool)
        for depth in range(self.matrix.shape[1]):
            left = self.matrix[one, depth]
            same &= (left == self.matrix[other, depth]) & (left >= 0)
            prefix += same
        return prefix[pair]


def _functions(frames: pd.DataFrame) -> Ints:
    """Give each function a number, whatever line was executing."""
    files = len(frames["filename"].cat.categories)
    name = frames["function"].cat.codes.to_numpy(np.int64) * files
    named = pd.factorize(name + frames["filename"].cat.codes.to_numpy())[0]
    line = frames["first_line"].to_numpy(np.int64)
    numbers: Ints = pd.factorize(named * (line.max(initial=0) + 1) + line)[0]
    return numbers


def _first_rows(numbers: Ints) -> Ints:
    """Where each number is first, given that they were given in order of appearance."""
    return np.unique(numbers, return_index=True)[1]


def _merged(tid: Ints, column: Ints, stack: Ints, rank: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """Keep one stack of each thread and column, and count the samples.

    It is the median in the order of `rank`, where stacks with equal beginnings are neighbours:
    whatever frames more than half of the stacks begin with, this one does.
    """
    thread, threads = pd.factorize(tid)
    columns = int(column.max()) + 1
    cell = thread * columns + column
    order = np.lexsort([rank, cell])
    cell, stack = cell[order], stack[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    count = np.diff(first, append=len(cell))
    cell = cell[first]
    return threads[cell // columns], cell % columns, stack[first + count // 2], count
