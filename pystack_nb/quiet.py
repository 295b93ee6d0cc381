"""Keep what the package itself calls out of the recordings of calls.

Its own files are never recorded, but what they call of the standard library or of pandas would be.
Nothing but the standard library is imported: a recorded cell may import NumPy itself.
"""

from __future__ import annotations

import functools
import sys

from typing import TYPE_CHECKING, ParamSpec, TypeVar


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType, TracebackType

P = ParamSpec("P")
R = TypeVar("R")


class quiet:  # noqa: N801 - used as a function
    """Record nothing of what this thread calls inside the ``with`` block."""

    __slots__ = ("_probe",)

    def __enter__(self) -> None:
        # Where the probe was not loaded yet, nothing is being recorded.
        self._probe: ModuleType | None = sys.modules.get("pystack_nb.probe._probe")
        if self._probe:
            self._probe.quiet()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._probe:
            self._probe.loud()


def quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Record nothing of what a function calls."""

    @functools.wraps(function)
    def wrapper(*given: P.args, **named: P.kwargs) -> R:
        __tracebackhide__ = True
        with quiet():
            return function(*given, **named)

    return wrapper
