"""Keep what the package itself calls out of the recordings of calls.

Its own files are never recorded, but what they call of the standard library or of pandas would be.
Nothing but the standard library is imported: a recorded cell may import NumPy itself.
"""

from __future__ import annotations

import functools
import sys

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar


if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

P = ParamSpec("P")
R = TypeVar("R")


def quiet() -> AbstractContextManager[object]:
    """Record nothing of what this thread calls inside the ``with`` block."""
    # Compiled, so that an interrupt can't come between what it does and what undoes it.
    probe = _probe()
    found: AbstractContextManager[object] = probe.Quiet() if probe else nullcontext()
    return found


def quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Record nothing of what a function calls."""

    @functools.wraps(function)
    def wrapper(*given: P.args, **named: P.kwargs) -> R:
        __tracebackhide__ = True
        probe = _probe()
        if probe is None:
            return function(*given, **named)
        result: R = probe.call_quietly(function, *given, **named)
        return result

    return wrapper


def _probe() -> Any:
    # Where it was not loaded yet, nothing is being recorded.
    return sys.modules.get("pystack_nb.probe._probe")
