"""The ways of running a program that are compared: traced by someone, or not at all."""

from __future__ import annotations

import cProfile
import os
import time

from collections import Counter
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pystack_nb import Recording

# Of VizTracer's ring buffer: more than there are calls in a repetition, warm-up included.
_ENTRIES = 4_000_000


class Plain:
    """Nobody looks."""

    def start(self) -> None:
        """Begin to look."""

    def stop(self) -> dict[str, Any]:
        """Look no more; tell what was found."""
        return {}


class Calls(Plain):
    """Calls mode, through the public class.

    What `stop` tells has ``counts`` (calls of each function), ``lost``, ``calls`` (rows),
    ``bytes`` (of the raw recording) and ``decode_s`` (until there were tables).
    """

    def __init__(self, **options: Any) -> None:
        from pystack_nb import PyStackProfiler  # noqa: PLC0415 - others run without it

        self._profiler = PyStackProfiler(mode="calls", **options)
        # The first recording starts the collector and imports what decodes.
        self.start()
        self.stop()

    def start(self) -> None:
        """Begin to record."""
        self._profiler.start_profiling()

    def stop(self) -> dict[str, Any]:
        """End the recording, and make its tables."""
        spool = _spool()
        try:
            begin = time.perf_counter()
            recording = self._profiler.stop_profiling()
            calls = recording.calls
            seconds = time.perf_counter() - begin
            return {
                "decode_s": seconds,
                "calls": len(calls),
                "bytes": os.fstat(spool).st_size,
                "lost": recording.info["lost"],
                "lost_by_cause": recording.info["lost_by_cause"],
                "incomplete": recording.info["incomplete"],
                "source": recording.info.get("source"),
                "clock": recording.info.get("clock"),
                "counts": _recorded(recording),
            }
        finally:
            os.close(spool)


class Idle(Plain):
    """Calls mode, loaded and warm, but not recording."""

    def __init__(self) -> None:
        self._warm = Calls()


class VizTracer(Plain):
    """VizTracer, its result neither decoded nor saved."""

    def __init__(self, **options: Any) -> None:
        from viztracer import VizTracer as Tracer  # noqa: PLC0415 - others run without it

        self._tracer = Tracer(tracer_entries=_ENTRIES, verbose=0, **options)

    def start(self) -> None:
        """Begin to trace."""
        self._tracer.start()

    def stop(self) -> dict[str, Any]:
        """End the trace, and forget it."""
        self._tracer.stop()
        self._tracer.clear()
        return {}


class CProfile(Plain):
    """The standard library's cProfile, of Python functions alone."""

    def start(self) -> None:
        """Begin to profile."""
        self._profile = cProfile.Profile(builtins=False)
        self._profile.enable()

    def stop(self) -> dict[str, Any]:
        """End the profile, and tell the calls of each function."""
        self._profile.disable()
        found = [
            (entry.code.co_filename, entry.code.co_firstlineno, entry.code.co_name, entry.callcount)
            for entry in self._profile.getstats()
            if not isinstance(entry.code, str)
        ]
        return {"counts": _counts(found)}


TRACERS: dict[str, Callable[[], Plain]] = {
    "plain": Plain,
    "plain again": Plain,
    "idle": Idle,
    "calls": Calls,
    "inprocess": lambda: Calls(source="inprocess"),
    "viztracer": VizTracer,
    "viztracer, Python only": lambda: VizTracer(ignore_c_function=True),
    "cprofile": CProfile,
}


def _recorded(recording: Recording) -> dict[str, int]:
    table = recording.functions()
    columns = (table[name] for name in ("filename", "line_number", "function", "ncalls"))
    return _counts(zip(*columns, strict=True))


def _counts(found: Iterable[tuple[str, int, str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for filename, line, name, ncalls in found:
        if filename != __file__:  # who switches on and off is not what is measured
            # cProfile knows no qualified names.
            counts[f"{filename}:{line}:{name.rpartition('.')[2]}"] += int(ncalls)
    return counts


def _spool() -> int:
    """Return a descriptor of the file that is recorded to, which stays when its name goes.

    It is called while recording, and therefore calls no function of Python's.
    """
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
        except FileNotFoundError:
            continue  # the descriptor by which the folder was read
        if target.endswith(".pst"):
            return os.dup(int(number))
    raise FileNotFoundError("no file is being recorded to: call start_profiling() before.")
