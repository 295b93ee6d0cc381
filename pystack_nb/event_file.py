"""The file beside a spool file in which a process keeps its own events.

It has blocks of ``PST_META`` records whose ``role`` is ``events``, and each of them stands for
many events: strings and args once, the rest as columns of numbers, so that both ends handle
them by the batch.  `pystack_nb.events` reads them.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import os
import threading
import time

from collections import deque
from typing import TYPE_CHECKING, Any

from pystack_nb.spool import meta_block


if TYPE_CHECKING:
    from pathlib import Path

ROLE = "events"
COLUMNS = ("ts_ns", "dur_ns", "tid", "kind", "name", "args", "number")
BEGUN = -1  # the duration of what has only begun

# An event is written at once, so that it survives the process; but where more than a thousand
# a second come, only every millisecond, so that writing costs about a hundredth of the time.
_INTERVAL_NS = 1_000_000
_BURST = 100
_MOST_WAITING = 65_536
_MOST_EVENTS = 10_000_000
LONGEST_TEXT = 1000
_MOST_VALUES = 200
_INT64 = range(-(2**63), 2**63)

Row = tuple[str, str, int, int, int, dict[str, Any], int]


class EventFile:
    """Events of this process on their way to a file.

    Parameters
    ----------
    path
        Made when there is something to write.  It is opened anew each time: a descriptor that
        stays open might be closed by the recorded program, and be another file's then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()
        self._rows: deque[Row] = deque()
        self._written = 0
        self._lost = 0
        self._is_closed = False
        self._next_ns = 0
        # A signal's handler may have events of its own while its thread is writing.
        self._lock = threading.RLock()

    def add(self, row: Row) -> None:
        """Take an event: kind, name, ts_ns, dur_ns, tid, cleaned args, and a mark's number."""
        if len(self._rows) >= _MOST_WAITING:
            self._lost += 1
            return
        self._rows.append(row)
        now_ns = time.perf_counter_ns()
        if now_ns >= self._next_ns - _BURST * _INTERVAL_NS and self._lock.acquire(blocking=False):
            try:
                self._next_ns = max(self._next_ns, now_ns) + _INTERVAL_NS
                self._flush()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Write what is left, and take no more."""
        with self._lock:
            self._flush()
            if self._lost:
                with contextlib.suppress(OSError):
                    self._append({"lost": self._lost})
            self._is_closed = True

    def _flush(self) -> None:
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        if not rows or self._is_closed:
            return
        room = max(_MOST_EVENTS - self._written, 0)
        self._lost += len(rows)  # till they are written, whatever happens
        try:
            if rows[:room]:
                self._append({"pid": self._pid, **_columns(rows[:room])})
        except OSError:
            return
        self._written += len(rows[:room])
        self._lost -= len(rows[:room])

    def _append(self, meta: dict[str, Any]) -> None:
        data = meta_block({"role": ROLE, **meta})
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        try:
            size = os.fstat(fd).st_size
            if os.write(fd, data) < len(data):
                os.ftruncate(fd, size)  # nothing behind half a block could be read
                raise OSError("the disk is full")
        finally:
            os.close(fd)


def _columns(rows: list[Row]) -> dict[str, Any]:
    kinds: dict[str, int] = {}
    names: dict[str, int] = {}
    args: dict[int, int] = {}  # by identity: events of a layer share one
    contents: list[dict[str, Any]] = []
    table = []
    for kind, name, ts_ns, dur_ns, tid, given, number in rows:
        place = args.get(id(given))
        if place is None:
            place = args[id(given)] = len(contents)
            contents.append(given)
        which = kinds.setdefault(kind, len(kinds)), names.setdefault(name, len(names))
        table.append((ts_ns, dur_ns, tid, *which, place, number))
    columns = dict(zip(COLUMNS, zip(*table, strict=True), strict=True))
    return {"kinds": list(kinds), "names": list(names), "contents": contents, "columns": columns}


def cleaned(args: dict[str, Any]) -> dict[str, Any]:
    """Return args that JSON has: the dict itself if it is such a one."""
    for name, value in args.items():
        if type(name) is not str:
            break
        kind = type(value)
        if kind is str:
            if len(value) > LONGEST_TEXT:
                break
        elif kind is int:
            if value not in _INT64:
                break
        elif kind is float:
            if not math.isfinite(value):
                break
        elif value is not None and kind is not bool:
            break
    else:
        return args
    left = [_MOST_VALUES]
    return {str(x)[:LONGEST_TEXT]: _clean(y, left) for x, y in args.items()}


def _clean(value: object, left: list[int]) -> Any:
    """Make a value that JSON has; `left` counts how many more there may be."""
    left[0] -= 1
    if left[0] < 0:
        return "..."
    room = range(left[0] + 1)
    if isinstance(value, dict):
        pairs = zip(value, value.values(), room, strict=False)
        return {str(x)[:LONGEST_TEXT]: _clean(y, left) for x, y, _ in pairs}
    if isinstance(value, list | tuple):
        return [_clean(x, left) for x, _ in zip(value, room, strict=False)]
    return _scalar(value)


def _scalar(value: object) -> bool | int | float | str | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        if int(value) in _INT64:
            return int(value)
    elif isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    return _text(value)[:LONGEST_TEXT]


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - another's repr must not break what is only looked at
        return object.__repr__(value)
