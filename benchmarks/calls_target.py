"""The measured process of ``calls.py``: one program, under one tracer or none.

Its arguments name both. Requests come as lines of JSON on the standard input, answers go to the
standard output. It ends with its input.
"""

from __future__ import annotations

import functools
import gc
import sys
import time

from typing import TYPE_CHECKING, Any

from calls_programs import program
from calls_tracers import TRACERS
from serving import serve


if TYPE_CHECKING:
    from collections.abc import Callable

    from calls_programs import Program
    from calls_tracers import Plain


def repeat(work: Program, tracer: Plain, units: int, warm_up: int) -> dict[str, Any]:
    """Time some units of the work, after others that are traced, too, but not timed."""
    gc.collect()
    before = time.perf_counter_ns()
    tracer.start()
    work.work(warm_up)
    begin = time.perf_counter_ns()
    work.work(units)
    end = time.perf_counter_ns()
    told = tracer.stop()
    return {"before_ns": before, "begin_ns": begin, "end_ns": end, **told}


def told(answer: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Have what goes wrong told, so that the others of a measurement go on."""

    @functools.wraps(answer)
    def answered(**arguments: Any) -> dict[str, Any]:
        try:
            return answer(**arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the table
            return {"error": f"{type(error).__name__}: {error}"}

    return answered


def main() -> None:
    """Answer requests until there are no more."""
    name, tracer_name = sys.argv[1:]
    answers: dict[str, Callable[..., dict[str, Any]]] = {}

    @told
    def prepare() -> dict[str, Any]:
        work = program(name)
        tracer = TRACERS[tracer_name]()
        answers["repeat"] = told(functools.partial(repeat, work, tracer))
        work.work(1)
        return {"units": work.units}

    answers["prepare"] = prepare
    serve(answers)


if __name__ == "__main__":
    main()
