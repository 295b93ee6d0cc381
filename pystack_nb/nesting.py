"""Calls of one thread, one inside another, as the steps that the thread took."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from pystack_nb.errors import RecordingFormatError


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ints = NDArray[Any]  # of integers
    Bools = NDArray[np.bool_]

ROWS_AT_ONCE = 1 << 17


class Steps(NamedTuple):
    """Beginnings and ends of calls, in their order.

    Attributes
    ----------
    ts_ns : numpy.ndarray of int64, shape (n,)
        When; never falls.
    row : numpy.ndarray of int64, shape (n,)
        Which call, as its row.
    begins : numpy.ndarray of bool, shape (n,)
        Whether it begins; else it ends.
    """

    ts_ns: Ints
    row: Ints
    begins: Bools


def by_thread(calls: pd.DataFrame) -> Iterator[tuple[int, int, Ints]]:
    """Yield pid, tid and the rows of each thread, in the order of their numbers."""
    pid, tid = calls["pid"].to_numpy(np.int64), calls["tid"].to_numpy(np.int64)
    thread = (pid << 32) + tid
    if not len(thread):
        return
    if (thread == thread[0]).all():
        yield int(pid[0]), int(tid[0]), np.arange(len(thread))
        return
    order = np.argsort(thread, kind="stable")
    starts = np.flatnonzero(np.diff(thread[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        row = order[start]
        yield int(pid[row]), int(tid[row]), order[start:stop]


def distinct_functions(calls: pd.DataFrame, line: str = "line_number") -> tuple[Ints, Ints]:
    """Give the functions of calls numbers, from 0 in the order in which they appear.

    Parameters
    ----------
    calls : pandas.DataFrame
        Any table with columns ``function`` and ``filename``.
    line : str, optional
        The column with the functions' first lines.

    Returns
    -------
    of_call : numpy.ndarray of int64, shape (n,)
        The number of each call's function.
    first : numpy.ndarray of int64, shape (functions,)
        Where each function's first call stands.
    """
    function, filename = calls["function"].array, calls["filename"].array
    key = (function.codes.astype(np.int64) + 1) * (len(filename.categories) + 1)
    key = pd.factorize(key + filename.codes + 1)[0].astype(np.int64) << 32
    of_call, distinct = pd.factorize(key + calls[line].to_numpy())
    first = np.zeros(len(distinct), np.int64)
    first[of_call[::-1]] = np.arange(len(calls) - 1, -1, -1)
    return of_call, first


def steps(calls: pd.DataFrame, rows: Ints, at_once: int = ROWS_AT_ONCE) -> Iterator[Steps]:
    """Walk through the calls of a thread.

    Parameters
    ----------
    calls : pandas.DataFrame
        `Recording.calls`.
    rows : numpy.ndarray of int, shape (n,)
        Those of one thread, in their order.
    at_once : int, optional
        How many calls to look at for each piece: what bounds the memory.

    Yields
    ------
    Steps
        The next piece: each call begins and ends once in all of them.

    Raises
    ------
    RecordingFormatError
        If the calls don't nest.
    """
    depths, starts, durations = (calls[x].to_numpy() for x in ("depth", "ts_ns", "dur_ns"))
    is_open = np.zeros(0, np.int64)  # one call for each depth
    last_ns = int(starts[rows[0]]) if len(rows) else 0
    for start in range(0, len(rows), at_once):
        # The open calls are walked again, as if they began here.
        row = np.concatenate([is_open, rows[start : start + at_once]])
        depth = depths[row].astype(np.int64)
        is_last = start + at_once >= len(rows)
        before = len(is_open)
        ended = depth + 1 - np.append(depth[1:], 0 if is_last else depth[-1] + 1)
        if depth[0] != 0 or (ended < 0).any():
            raise _not_nested()
        innermost = np.zeros(int(depth.max()) + 1, np.int64)
        innermost[depth] = np.arange(len(row))  # the last of each depth
        still = innermost[:0] if is_last else innermost[: depth[-1] + 1]
        is_open = row[still]

        begins = np.zeros(len(row) + int(ended.sum()), np.bool_)
        begins[np.arange(len(row)) + np.cumsum(ended) - ended] = True
        step_row = np.empty(len(begins), np.int64)
        step_row[begins] = row
        step_row[~begins] = _ends(row, depth, ended, still)
        step_row, begins = step_row[before:], begins[before:]
        ts_ns = starts[step_row] + np.where(begins, 0, durations[step_row])
        if (np.diff(ts_ns, prepend=last_ns) < 0).any():
            raise _not_nested()
        last_ns = int(ts_ns[-1])
        yield Steps(ts_ns, step_row, begins)


def _ends(row: Ints, depth: Ints, ended: Ints, still: Ints) -> Ints:
    """Tell which calls end, in order, when so many of them end before the next one begins."""
    closer = np.repeat(np.arange(len(row)), ended)
    first = np.cumsum(ended) - ended
    level = depth[closer] - (np.arange(len(closer)) - first[closer])
    # At each depth, beginnings and ends take turns: sorted by depth, they stand in pairs.
    closed = np.delete(np.arange(len(row)), still)
    closed = closed[_sorted(depth[closed])]
    ends = np.empty(len(closer), np.int64)
    ends[_sorted(level)] = row[closed]
    return ends


def _sorted(depth: Ints) -> Ints:
    # NumPy sorts 16 bits by counting, and wider ones by comparing.
    narrow = depth.astype(np.int16) if depth.max(initial=0) < 2**15 else depth
    return np.argsort(narrow, kind="stable")


def _not_nested() -> RecordingFormatError:
    return RecordingFormatError(
        "the calls of a thread do not nest; use the calls of a Recording unchanged"
    )
