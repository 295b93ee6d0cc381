"""Events that the recorded process tells of itself: what it is doing, from when to when.

Nothing here is written unless a recording of this process is under way, and nothing but the
standard library is imported: a recorded cell may import NumPy itself.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import threading
import time

from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast

from pystack_nb.errors import OptionError
from pystack_nb.event_file import BEGUN, LONGEST_TEXT, EventFile, cleaned
from pystack_nb.quiet import quiet


if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")

MARK = "mark"

# Replaced as a whole, so that no lock is needed to read it.
_files: tuple[EventFile, ...] = ()
_numbers = itertools.count(1)
_changing = threading.Lock()


class _Open(NamedTuple):
    """Where and when a mark was begun: the recordings, the thread and the time."""

    files: tuple[EventFile, ...]
    thread: int
    ns: int


class mark:  # noqa: N801 - used as a function
    """Mark a stretch of this thread's time in the recordings of this process.

    Used as a context manager, or as a decorator of a function, a coroutine function or a
    generator function, each call of which is marked then.  Without a recording it does nothing.
    One object may be used again while it is open, and by several threads.

    Parameters
    ----------
    name
        What ``rec.events`` shows as the event's ``name``; its ``kind`` is ``mark``.
    **args
        What else to keep: values that JSON has, and of others their `repr`, cut at 1,000
        characters.

    Notes
    -----
    The event belongs to the recordings that were under way when it began.  An exception that
    passes ends it as well, and is named in its ``args`` as ``raised``.  A mark that is still
    open when the recording ends, or when the process is killed, lasts until that end and has
    ``complete`` False in its ``args``.

    Examples
    --------
    >>> with mark("load data", rows=10):
    ...     data = list(range(10))
    >>> @mark("step")
    ... def step():
    ...     pass
    """

    __slots__ = ("_args", "_name", "_open")

    def __init__(self, name: str, /, **args: Any) -> None:
        self._name = name
        self._args = args
        self._open: dict[int, _Open] = {}

    def __enter__(self) -> Self:
        if _files:
            with quiet():
                self._args = cleaned(self._args)
                number = next(_numbers)
                begun = _Open(_files, threading.get_ident(), time.perf_counter_ns())
                self._open[number] = begun
                self._write(number, begun, BEGUN, self._args)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._open:
            now_ns = time.perf_counter_ns()
            number = self._innermost()
            begun = self._open.pop(number, None)
            if begun is not None:
                args = self._args if kind is None else {**self._args, "raised": kind.__name__}
                with quiet():
                    self._write(number, begun, now_ns - begun.ns, args)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Mark each call of a function.

        Raises
        ------
        OptionError
            For an asynchronous generator function.
        """
        name, args = self._name, self._args
        if inspect.isasyncgenfunction(function):
            raise OptionError(
                f"{function.__name__} is an asynchronous generator, whose callers decide when it "
                "runs: use `with mark(...)` inside it."
            )
        wrapper: Any
        if inspect.iscoroutinefunction(function):

            async def wrapper(*given: Any, **named: Any) -> Any:
                with mark(name, **args):
                    return await function(*given, **named)

        elif inspect.isgeneratorfunction(function):

            def wrapper(*given: Any, **named: Any) -> Any:
                with mark(name, **args):
                    return (yield from function(*given, **named))

        else:

            def wrapper(*given: Any, **named: Any) -> Any:
                with mark(name, **args):
                    return function(*given, **named)

        return cast("Callable[P, R]", functools.wraps(function)(wrapper))

    def _innermost(self) -> int:
        """Find what this thread began last; if nothing, another one began what ends here."""
        own, last = threading.get_ident(), 0
        for number, begun in [*self._open.items()]:
            if begun.thread == own:
                last = number
        return last or max([*self._open], default=0)

    def _write(self, number: int, begun: _Open, duration_ns: int, args: dict[str, Any]) -> None:
        tid = threading.get_native_id()
        name = str(self._name)[:LONGEST_TEXT]
        row = (MARK, name, begun.ns, duration_ns, tid, args, number)
        active = _files
        for file in begun.files:
            if file in active:  # not ended meanwhile, nor left behind by a fork
                file.add(row)


def emit(
    kind: str, name: str, ts_ns: int, dur_ns: int = 0, args: dict[str, Any] | None = None
) -> None:
    """Put an event of this thread that has ended into each recording that is under way.

    Parameters
    ----------
    kind
        Such as ``"layer"`` or ``"fault"``.
    name
        Of the event.
    ts_ns, dur_ns
        When it began, on the clock of `time.perf_counter_ns`, and how long it lasted.
    args
        As for `mark`; not to be changed afterwards, so that many events can share one.
    """
    if not _files:
        return
    # Whole numbers of NumPy are none of JSON's.
    tid, ts_ns, dur_ns = threading.get_native_id(), int(ts_ns), int(dur_ns)
    with quiet():
        row = (kind, name[:LONGEST_TEXT], ts_ns, dur_ns, tid, cleaned(args or {}), 0)
        for file in _files:
            file.add(row)


def recording() -> bool:
    """Tell whether a recording of this process is under way, so that events are kept."""
    return bool(_files)


def begin(path: Path) -> EventFile:
    """Keep the events of this process in a file, from now on.

    Parameters
    ----------
    path
        Made when the first event comes.
    """
    global _files  # noqa: PLW0603 - one for each process
    file = EventFile(path)
    with _changing:
        _files = (*_files, file)
    return file


def end(file: EventFile) -> None:
    """Write what is left, and keep no more events in this file."""
    global _files  # noqa: PLW0603 - one for each process
    with _changing:
        _files = tuple(x for x in _files if x is not file)
    file.close()


def _forget() -> None:
    """Leave the recordings to the parent: this is a forked child."""
    global _files, _changing  # noqa: PLW0603 - one for each process
    _files = ()
    _changing = threading.Lock()


os.register_at_fork(after_in_child=_forget)
