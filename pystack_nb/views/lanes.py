"""A timeline of characters: a line per thread, and in it the function that ran when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb.views.call_slices import CallSlices
from pystack_nb.views.pauses import (
    GAP_PERIODS,
    extent,
    not_running,
    period_ns,
    spread,
    tells_pauses,
)
from pystack_nb.views.timeline import all_threads
from pystack_nb.views.wording import duration, label, many


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from pystack_nb.recording import Recording
    from pystack_nb.views.call_slices import Columns
    from pystack_nb.views.threads import Thread

    Ints = NDArray[Any]  # of integers
    Name = tuple[str, str, int]  # function, file and line that it begins in

THREADS = 8
COLUMNS = 72
OTHER = "·"
PAUSE = "-"
MAX_DEPTH = 100
FINER = 8  # parts of a column that calls are told apart in


class _Stretches(NamedTuple):
    """Stretches of a thread in which one function was innermost; -1: none was."""

    start_ns: Ints
    end_ns: Ints
    function: Ints
    names: list[Name]


def lanes(recording: Recording, keys: Mapping[Name, str]) -> list[str]:
    """Draw a line per thread; a column shows the function that was innermost most of it.

    Parameters
    ----------
    recording : Recording
        With calls or samples.
    keys : mapping of (str, str, int) to str
        The character that stands for a function, by its name, file and first line.
    """
    start_ns, end_ns = extent(recording)
    every = all_threads(recording)
    lines = []
    for thread in every[:THREADS]:
        of_thread = _of_samples if thread.unit == "sample" else _of_calls
        stretches = of_thread(recording, thread)
        cells = "".join(_cells(stretches, start_ns, end_ns, keys))
        if thread.unit == "call":
            paused = _paused(*not_running(recording, thread.tid), start_ns, end_ns)
            cells = "".join(
                PAUSE if pause and cell != " " else cell
                for cell, pause in zip(cells, paused, strict=True)
            )
        lines.append(f"  {label(thread.name, 15):<15} |{cells}|")
    if (more := len(every) - THREADS) > 0:
        lines.append(f"  and {many(more, 'less busy thread')}")
    lines.append(f"  {'':<15}  0{duration(end_ns - start_ns):>{COLUMNS - 1}}")
    lines.append(f"  {OTHER} another function   {_legend(recording, every[:THREADS])}")
    return lines


def _legend(recording: Recording, shown: list[Thread]) -> str:
    if all(thread.unit == "sample" for thread in shown):
        return "blank: not running"
    if tells_pauses(recording):
        return f"{PAUSE} in a call, and not running   blank: not running"
    return "blank: in no call   a call that waits is drawn as if it ran"


def _paused(begin: Ints, end: Ints, start_ns: int, end_ns: int) -> list[bool]:
    """Tell of which columns a thread did not run for the larger part."""
    edges = np.linspace(start_ns, end_ns, COLUMNS + 1)
    # How long it had not run up to each moment; that grows within pauses alone.
    moments = np.ravel(np.column_stack([begin, end]))
    before = np.cumsum(np.append(0, end - begin))
    so_far = np.ravel(np.column_stack([before[:-1], before[1:]]))
    if not len(begin):
        return [False] * COLUMNS
    part = np.diff(np.interp(edges, moments, so_far))
    paused: list[bool] = (part > (end_ns - start_ns) / COLUMNS / 2).tolist()
    return paused


def _cells(
    stretches: _Stretches, start_ns: int, end_ns: int, keys: Mapping[Name, str]
) -> Iterator[str]:
    start, end, function, names = stretches
    width = (end_ns - start_ns) / COLUMNS
    first = ((start - start_ns) / width).astype(np.int64).clip(0, COLUMNS - 1)
    last = ((end - 1 - start_ns) / width).astype(np.int64).clip(first, COLUMNS - 1)
    stretch, column = spread(first, last + 1)
    begin = np.maximum(start[stretch] - start_ns, column * width)
    time = np.minimum(end[stretch] - start_ns, (column + 1) * width) - begin
    votes = np.zeros((COLUMNS, len(names) + 1))
    np.add.at(votes, (column, function[stretch]), time)  # the last place is nobody's
    votes[:, -1] = 0
    winners, most = votes.argmax(axis=1).tolist(), votes.max(axis=1).tolist()
    for winner, running in zip(winners, most, strict=True):
        yield keys.get(names[winner], OTHER) if running else " "


def _of_samples(recording: Recording, thread: Thread) -> _Stretches:
    """Let each sample stand for the time up to the next one, or for a period before a gap."""
    samples, period = recording.samples, period_ns(recording)
    samples = samples[samples["tid"] == thread.tid]
    function_of, names = _leaves(recording)
    function = samples["stack_id"].map(function_of).fillna(len(names) - 1).to_numpy(np.int64)
    start = samples["ts_ns"].to_numpy()
    following = np.append(start[1:], start[-1] + period)
    end = np.where(following - start <= GAP_PERIODS * period, following, start + period)
    return _Stretches(start, end, function, names)


def _leaves(recording: Recording) -> tuple[pd.Series, list[Name]]:
    """Give the functions that stacks' time belongs to numbers.

    As in `Recording.functions`, that is the innermost Python frame, where there is one.  The
    last name is that of stacks without frames.
    """
    frames = recording.frames
    stack = frames["stack_id"].to_numpy()
    python = (frames["kind"] == "python").to_numpy()
    relevant = np.flatnonzero(python | ~np.isin(stack, stack[python]))
    innermost = relevant[np.diff(stack[relevant], append=-1) != 0]
    leaves = frames.iloc[innermost]
    names = _names(leaves.rename(columns={"line_number": "line", "first_line": "line_number"}))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    of_stack = pd.Series([numbers[x] for x in names], index=leaves["stack_id"].to_numpy())
    return of_stack, [*numbers, ("", "", 0)]


def _of_calls(recording: Recording, thread: Thread) -> _Stretches:
    """Look which call is innermost in the middle of each part of a column."""
    start_ns, end_ns = extent(recording)
    width = (end_ns - start_ns) / (COLUMNS * FINER)
    table = CallSlices(recording, [thread], MAX_DEPTH).merge(start_ns, width)
    names = _names(table)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    function = np.array([numbers[x] for x in names], np.int64)
    start = (table["ts_ns"] - start_ns) / width
    end = start + table["dur_ns"] / width
    first, last = (np.ceil(x - 0.5).astype(np.int64).clip(0, COLUMNS * FINER) for x in (start, end))
    call, part = spread(first, last)
    innermost = np.full(COLUMNS * FINER, -1, np.int64)
    innermost[part] = function[call]  # the deepest come last, and stay
    bounds = start_ns + np.arange(COLUMNS * FINER + 1) * width
    return _Stretches(bounds[:-1], bounds[1:], innermost, list(numbers))


def _names(table: pd.DataFrame | Columns) -> list[Name]:
    columns = (table[x].tolist() for x in ("function", "filename", "line_number"))
    return list(zip(*columns, strict=True))
