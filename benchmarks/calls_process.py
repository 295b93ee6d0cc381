"""Processes of one program each, under one tracer or none."""

from __future__ import annotations

import resource
import threading
import time

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peers import Target


if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the units of a program; what has been called once is called as it will be.
WARM_UP = 1

_EVERY_S = 0.005
_PAGE = resource.getpagesize()


class TracerError(Exception):
    """A tracer can't do what is measured; the message says why."""


class Process(Target):
    """``calls_target.py``, under a given Python.

    Attributes
    ----------
    units : int
        Of the program: how many make about half a million calls.

    Raises
    ------
    TracerError
        When the tracer can't be made ready.
    """

    def __init__(self, python: Path, program: str, tracer: str) -> None:
        super().__init__(python, "calls_target.py", program, tracer)
        self._tracer = tracer
        try:
            self.units: int = self.ask("prepare")["units"]
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Have something done, and return what is told about it."""
        try:
            answer = super().ask(request, **arguments)
        except (RuntimeError, BrokenPipeError):
            raise TracerError(f"the process under {self._tracer} has crashed") from None
        if "error" in answer:
            raise TracerError(answer["error"])
        return answer

    def repeat(self, units: int, warm_up: int = WARM_UP) -> dict[str, Any]:
        """Have some units done."""
        return self.ask("repeat", units=units, warm_up=warm_up)


@contextmanager
def resident(pid: int) -> Iterator[list[tuple[int, int]]]:
    """Look at the memory of a process, again and again.

    Yields
    ------
    list of (int, int)
        Nanoseconds of CLOCK_MONOTONIC, and bytes in the process's resident set.
    """
    found: list[tuple[int, int]] = []
    ended = threading.Event()
    statm = Path(f"/proc/{pid}/statm")

    def look() -> None:
        pages = int(statm.read_text().split()[1])
        found.append((time.perf_counter_ns(), pages * _PAGE))

    def keep_looking() -> None:
        while not ended.wait(_EVERY_S):
            look()

    look()
    thread = threading.Thread(target=keep_looking)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
