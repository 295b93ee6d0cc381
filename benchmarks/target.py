"""The measured process: does pieces of work on request, and times itself.

Requests come as lines of JSON on the standard input, answers go to the standard output. It ends
with its input.
"""

from __future__ import annotations

import gc
import threading
import time

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from serving import serve
from shares import NAMES, OTHER, burn_shares, calibrate
from workloads import WORKLOADS, richards

from pystack_nb import PyStackProfiler


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pystack_nb import Recording


@dataclass
class _Recorded:
    """What the profiler made of the block that it was on for."""

    recording: Recording | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@contextmanager
def profiled(hz: int | None) -> Iterator[_Recorded]:
    """Sample this process as the magic does; None: do not."""
    result = _Recorded()
    if hz is None:
        yield result
        return
    profiler = PyStackProfiler(hz=hz)
    profiler.start_profiling()
    yield result
    recording = result.recording = profiler.stop_profiling()
    names = ("samples", "lost", "incomplete", "incomplete_by_cause")
    result.facts = {name: recording.info[name] for name in names}


def block(workload: str, repetitions: int, hz: int | None = None) -> dict[str, Any]:
    """Time repetitions of a workload, after one that is not timed."""
    work = WORKLOADS[workload]
    gc.collect()
    with profiled(hz) as recorded:
        checksums = {work()}
        wall, cpu = [], []
        for _ in range(repetitions):
            wall_begin, cpu_begin = time.perf_counter(), time.process_time()
            checksums.add(work())
            cpu.append(time.process_time() - cpu_begin)
            wall.append(time.perf_counter() - wall_begin)
    (checksum,) = checksums
    return {"wall_s": wall, "cpu_s": cpu, "checksum": checksum, **recorded.facts}


def busy(seconds: float, hz: int) -> dict[str, Any]:
    """Use CPU time on one thread, and count its samples."""
    with profiled(hz) as recorded:
        cpu_begin, begin = time.thread_time(), time.monotonic_ns()
        while time.thread_time() - cpu_begin < seconds:
            richards(200)
        cpu, end = time.thread_time() - cpu_begin, time.monotonic_ns()
    samples = recorded.recording.samples if recorded.recording else None
    if samples is None:
        raise ValueError("a rate can't be measured without a profiler: give hz")
    mine = samples[samples["tid"] == threading.get_native_id()]
    inside = mine["ts_ns"].between(begin, end)
    return {"cpu_s": cpu, "counted": int(inside.sum()), **recorded.facts}


def known(seconds: float, hz: int | None = None) -> dict[str, Any]:
    """Burn known shares of CPU time; with `hz`, tell what the samples say, too."""
    rates = calibrate()
    with profiled(hz) as recorded:
        true = burn_shares(seconds, rates)
    answer: dict[str, Any] = {"true_ns": true, **recorded.facts}
    if recorded.recording:
        answer["counts"] = _counts(recorded.recording)
    return answer


def _counts(recording: Recording) -> dict[str, int]:
    stacks = recording.stacks
    inside = stacks.loc[stacks["function"] == burn_shares.__name__, "stack_id"]
    samples = recording.samples[recording.samples["stack_id"].isin(inside)]
    counts = samples["function"].astype(str).value_counts().to_dict()
    result = {name: int(counts.pop(name, 0)) for name in NAMES}
    return result | {OTHER: int(sum(counts.values()))}


def main() -> None:
    """Answer requests until there are no more."""
    answers: dict[str, Callable[..., dict[str, Any]]] = {
        "block": block,
        "busy": busy,
        "known": known,
    }
    # Everything is imported, compiled and loaded before anything is timed.
    with profiled(999):
        pass
    serve(answers)


if __name__ == "__main__":
    main()
