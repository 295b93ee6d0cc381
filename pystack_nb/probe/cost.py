"""What recording a call costs on this machine, for a budget: measured once, in about 2 ms."""

from __future__ import annotations

import contextlib
import glob
import time

from typing import TYPE_CHECKING, NamedTuple

from pystack_nb.probe.check import memory, not_recorded


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

_CALLS, _TRIES = 200, 4
_OWN = glob.escape((lambda: None).__code__.co_filename)
_FEWEST_NS, _MOST_NS = 5.0, 1000.0
_NO_DEPTH = 2**31  # a limit, so that what keeps to limits is measured


class Cost(NamedTuple):
    """Nanoseconds that a call takes longer.

    Attributes
    ----------
    call_ns
        When it is recorded.
    pass_ns
        When it is not, or only counted, but goes through the evaluator.
    c_call_ns
        When it is one of a C function, and recorded.
    """

    call_ns: float = 50.0
    pass_ns: float = 25.0
    c_call_ns: float = 150.0


def measure(module: ModuleType, *, c_calls: bool) -> Cost:
    """Record some calls, and compare.

    Parameters
    ----------
    module
        The C extension; nothing is being recorded.
    c_calls
        Whether C functions are to be recorded.

    Returns
    -------
    Cost
        What is usual, where something else in this process is in the probe's place.
    """
    plain, plain_pass, plain_c = (_fastest(each) for each in (_call, _pass, _call_c))
    try:
        with _recording(module, c_calls=c_calls):
            recorded, passed, recorded_c = (_fastest(each) for each in (_call, _pass, _call_c))
    except (OSError, RuntimeError, ValueError):
        return Cost()
    costs = (recorded - plain, passed - plain_pass, recorded_c - plain_c)
    return Cost(*(min(max(cost, _FEWEST_NS), _MOST_NS) for cost in costs))


@contextlib.contextmanager
def _recording(module: ModuleType, *, c_calls: bool) -> Iterator[None]:
    with memory(module.SHARED_SIZE) as fd, memory() as spool:
        module.prepare(fd, False)
        module.start(fd, spool, c_calls=c_calls, depth=_NO_DEPTH, include=(_OWN,))
        try:
            yield
        finally:
            module.stop()
            module.close()


def _fastest(function: Callable[[int], None]) -> float:
    """Tell the nanoseconds of a call, without what came in between."""
    tries = []
    for _ in range(_TRIES):
        begin = time.perf_counter_ns()
        function(_CALLS)
        tries.append(time.perf_counter_ns() - begin)
    return min(tries) / _CALLS


def _leaf() -> None:
    pass


def _call(times: int) -> None:
    for _ in range(times):
        _leaf()


def _pass(times: int) -> None:
    for _ in range(times):
        not_recorded()


def _call_c(times: int) -> None:
    for _ in range(times):
        len(())
