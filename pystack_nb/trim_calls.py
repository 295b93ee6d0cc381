"""The calls of a cell's recording, without those of the machinery: see `pystack_nb.trim`.

Every call is judged by the calls that it was made from, outermost first: its chain.  The rules
are those for samples.

* A chain with a call of the cell's own code is the cell's.
* Any other chain is kept from its outermost call that is not the machinery's, unless what
  called that one runs no other people's code.  Where that is not known, since it began
  before the recording, the whole thread is the machinery's if that was at work in it then, and
  no code of the user's was; where that is not known either, it is what most chains of the
  thread begin with.
* On the cell's thread, all of the time counts: the probe records nothing there but while the
  cell's own code runs (`CallOptions.only_in`).  That code need not be in the table, since it may
  be excluded, or shorter than what has a row: what the shell calls to run code is the user's.  A
  chain that begins there by itself is another stack of the cell's, such as a greenlet's.
* Of what shows the value of the cell's last expression, only the value's own functions stay.
* A call of the machinery below (`Machinery.inside`) makes way for what other people's code it
  calls, and so does what it calls of C functions and of Python's own library.

What was left out below a call that stays leaves its time to that call, as self time.

A call that began in time and ended behind it, such as one of a thread that goes on, is cut
there: it is not complete.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import tables
from pystack_nb.trim_tables import of_file, runs_code, shows, shows_value


if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pystack_nb.machinery import Machinery

    Ints = NDArray[Any]  # of integers
    Bools = NDArray[np.bool_]

# What is known of a chain.
_CELL = 1  # it has a call of the cell's
_OWN = 2  # it has one that is nobody's machinery ...
_USERS = 4  # ... and the outermost of these was called by the user
_SHOWN = 8  # it shows the cell's value, which has not been asked for its looks


def trim_calls(
    calls: pd.DataFrame,
    machinery: Machinery,
    cell: Mapping[str, Any],
    stacks: Mapping[int, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Keep the calls of the cell, of its tasks and of its threads.

    Parameters
    ----------
    calls : pandas.DataFrame
        `Recording.calls`.
    machinery : Machinery
        What to cut.
    cell : mapping
        As for `pystack_nb.trim.trim`.
    stacks : mapping of int to sequence of str, optional
        Files of the functions that each thread was in when the recording began, outermost first.

    Returns
    -------
    pandas.DataFrame
        With ``depth``, ``parent`` and ``self_ns`` as they are among what is left.
    """
    if not len(calls):
        return calls
    parent = calls["parent"].to_numpy()
    levels = _Levels(calls["depth"].to_numpy())
    by_shell = _run_by_shell(calls, parent, machinery, cell)
    known = _chains(calls, parent, levels, machinery, cell, by_shell=by_shell, stacks=stacks or {})
    early, cut, limit_ns = _out_of_time(calls, cell)
    shown = (known & _SHOWN) != 0
    kept = ((known & (_CELL | _USERS)) != 0) & ~shown & ~early
    kept[cut] &= calls["ts_ns"].to_numpy()[cut] <= limit_ns

    by_shell &= (known & _CELL) == 0  # else it is a cell inside of this one
    kept &= ~_inside(calls, parent, levels, machinery, by_shell)
    caller, depth = _callers(parent, kept, levels)
    dur_ns, self_ns = _cut(calls, parent, cut, limit_ns)
    left_out = np.flatnonzero(~kept & (caller >= 0))
    np.add.at(self_ns, caller[left_out], self_ns[left_out])
    _end_before_showing(calls["ts_ns"].to_numpy(), dur_ns, self_ns, caller, parent, shown, kept)
    complete = calls["complete"].to_numpy().copy()
    complete[cut] = False

    rows = np.flatnonzero(kept)
    place = np.full(len(calls) + 1, -1, dtype=np.int64)  # the last place is no caller's
    place[rows] = np.arange(len(rows))
    changed = {
        "dur_ns": dur_ns,
        "self_ns": self_ns,
        "depth": depth,
        "parent": place[caller],
        "complete": complete,
    }
    # Mostly, all of the cell's calls follow each other, and need not be copied.
    together = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
    chosen = slice(rows[0], rows[-1] + 1) if together else rows
    columns = {
        name: changed[name][chosen] if name in changed else calls[name].array[chosen]
        for name in tables.CALLS
    }
    return pd.DataFrame(columns, copy=False)


class _Levels:
    """The rows of each depth, from the outermost on: callers come before those they call."""

    def __init__(self, depth: Ints) -> None:
        # NumPy sorts 16 bits by counting, and wider ones by comparing.
        narrow = depth.astype(np.int16) if depth.max(initial=0) < 2**15 else depth
        self._order = np.argsort(narrow, kind="stable")
        self._sizes = np.bincount(depth).tolist()

    def __iter__(self) -> Iterator[Ints]:
        start = 0
        for size in self._sizes:
            yield self._order[start : start + size]
            start += size


def _chains(
    calls: pd.DataFrame,
    parent: Ints,
    levels: _Levels,
    machinery: Machinery,
    cell: Mapping[str, Any],
    *,
    by_shell: Bools,
    stacks: Mapping[int, Sequence[str]],
) -> Ints:
    in_cell = of_file(calls, lambda name: name == cell["filename"])
    other = of_file(calls, machinery.is_other)
    own = _is_python(calls) & of_file(
        calls, lambda name: not name.startswith((*machinery.others, *machinery.carriers))
    )
    users = ~other[parent]
    roots = np.flatnonzero(parent < 0)
    tid = calls["tid"].to_numpy()[roots]
    users[roots] = _users_roots(tid, own[roots].astype(np.int8) - other[roots])
    for thread, files in stacks.items():
        users[roots[tid == thread]] = machinery.runs_users_code(files)
    users[roots[tid == cell["tid"]]] = True
    users |= by_shell
    seed = _CELL * in_cell.astype(np.uint8)
    seed[own] |= _OWN
    seed[own & users] |= _USERS
    seed[shows_value(calls, machinery.display)] |= _SHOWN
    asks = of_file(calls, lambda name: name.startswith(machinery.renderers or "\0"))
    asked = own & shows(calls) & asks[parent] & (parent >= 0)

    # What a chain may still learn, by what it knows: only the outermost own call decides.
    open_to = np.array([0xFF, 0xFF] + 2 * [0xFF ^ _USERS], dtype=np.uint8)
    known = np.zeros(len(calls) + 1, dtype=np.uint8)  # the last place is no caller's
    for rows in levels:
        above = known[parent[rows]]
        known[rows] = above | (seed[rows] & open_to[above & (_CELL | _OWN)])
        known[rows[asked[rows]]] &= ~np.uint8(_SHOWN)
    return known[:-1]


def _users_roots(tid: Ints, side: Ints) -> Bools:
    """Tell of calls without a caller in the table whether the user's code made them.

    A `side` is 1 for the user's functions, -1 for the machinery's and 0 for those between.
    """
    thread = pd.factorize(tid)[0]
    users: Bools = (np.bincount(thread, weights=side) >= 0)[thread]
    return users


def _out_of_time(calls: pd.DataFrame, cell: Mapping[str, Any]) -> tuple[Bools, Ints, Ints]:
    """Find the calls that begin too early, and those that end too late, with when is too late."""
    # Its own rows don't tell when the cell ran: short ones, such as a resume, are not there.
    ts_ns, dur_ns = (calls[x].to_numpy() for x in ("ts_ns", "dur_ns"))
    ends_ns = ts_ns + dur_ns
    begin_ns, end_ns = int(cell["start_ns"]), int(cell["end_ns"])
    late = np.flatnonzero(ends_ns > end_ns)
    return ts_ns < begin_ns, late, np.full(len(late), end_ns)


def _run_by_shell(
    calls: pd.DataFrame, parent: Ints, machinery: Machinery, cell: Mapping[str, Any]
) -> Bools:
    """Find what the cell's code calls where that has no row: the shell runs it."""
    mine: Bools = calls["tid"].to_numpy() == cell["tid"]
    return mine & runs_code(calls, machinery.shell)[parent] & (parent >= 0)


def _inside(
    calls: pd.DataFrame, parent: Ints, levels: _Levels, machinery: Machinery, by_shell: Bools
) -> Bools:
    """Find the machinery's calls, and those that it makes for its own work."""
    python = _is_python(calls)
    inside: Bools = of_file(calls, lambda name: name.startswith(machinery.inside)) & python
    if inside.any():
        helps = ~python | (of_file(calls, machinery.is_help) & ~shows(calls))
        helps &= (parent >= 0) & ~by_shell
        for rows in levels:
            inside[rows] |= helps[rows] & inside[parent[rows]]
    return inside


def _callers(parent: Ints, kept: Bools, levels: _Levels) -> tuple[Ints, Ints]:
    """Find the nearest call that is kept above each one, and how many there are above it."""
    caller = np.full(len(parent) + 1, -1, dtype=np.int64)  # the last place is no caller's
    depth = np.full(len(parent) + 1, -1, dtype=np.int32)
    stays = np.append(kept, False)
    for rows in levels:
        above = parent[rows]
        above = np.where(stays[above], above, caller[above])
        caller[rows] = above
        depth[rows] = depth[above] + 1
    return caller[:-1], depth[:-1]


def _cut(calls: pd.DataFrame, parent: Ints, rows: Ints, limit_ns: Ints) -> tuple[Ints, Ints]:
    """End some of the calls sooner; self time behind that goes, too."""
    ts_ns, dur_ns = calls["ts_ns"].to_numpy(), calls["dur_ns"].to_numpy().copy()
    self_ns = calls["self_ns"].to_numpy().copy()
    behind = ts_ns[rows] + dur_ns[rows] - np.maximum(ts_ns[rows], limit_ns)
    dur_ns[rows] -= behind
    self_ns[rows] -= behind
    called = parent[rows] >= 0
    np.add.at(self_ns, parent[rows][called], behind[called])
    return dur_ns, self_ns


def _end_before_showing(  # noqa: PLR0917 - columns of one table
    ts_ns: Ints, dur_ns: Ints, self_ns: Ints, caller: Ints, parent: Ints, shown: Bools, kept: Bools
) -> None:
    """End the cell's code where the showing of its value begins, if nothing of that is kept."""
    first = np.flatnonzero(shown & (parent >= 0))
    first = first[~shown[parent[first]] & kept[parent[first]]]
    for row in first.tolist():
        cell = int(parent[row])
        end_ns = ts_ns[cell] + dur_ns[cell]
        if end_ns <= ts_ns[row]:
            continue  # it ends where something before this was shown
        later = kept & (caller == cell) & (ts_ns >= ts_ns[row]) & (ts_ns <= end_ns)
        if not later.any():
            self_ns[cell] -= end_ns - ts_ns[row]
            dur_ns[cell] -= end_ns - ts_ns[row]


def _is_python(calls: pd.DataFrame) -> Bools:
    return ~tables.is_text(calls["kind"], tables.C_CALL)
