"""The threads of a recording, in the order in which every view shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np


if TYPE_CHECKING:
    from pystack_nb.recording import Recording


class Thread(NamedTuple):
    """A thread that has `size` calls, or else samples."""

    tid: int
    name: str
    size: int
    unit: str = "sample"


def threads(recording: Recording) -> list[Thread]:
    """List the threads that have samples: the main one, then the others, busiest first."""
    samples = recording.samples
    tid = samples["tid"].to_numpy()
    tids, last, counts = np.unique(tid[::-1], return_index=True, return_counts=True)
    newest = len(tid) - 1 - last
    given = recording.info.get("thread_names") or {}
    found = [
        (number != pid, Thread(number, str(given.get(str(number)) or comm), count))
        for number, pid, comm, count in zip(
            tids.tolist(),
            samples["pid"].to_numpy()[newest].tolist(),
            samples["comm"].array[newest].tolist(),
            counts.tolist(),
            strict=True,
        )
    ]
    return [x for _, x in sorted(found, key=lambda x: (x[0], -x[1].size))]


def calling_threads(recording: Recording) -> list[Thread]:
    """List the threads that have calls, in that order; the busiest spend the most time in them."""
    calls = recording.calls
    names = {x.tid: x.name for x in threads(recording)}
    given = recording.info.get("thread_names") or {}
    tids, first, inverse, counts = np.unique(
        calls["tid"].to_numpy(), return_index=True, return_inverse=True, return_counts=True
    )
    pids = calls["pid"].to_numpy()[first]
    spent = np.zeros(len(tids), np.int64)
    np.add.at(spent, inverse, calls["self_ns"].to_numpy())
    found: list[tuple[Any, Thread]] = []
    for tid, pid, busy, count in zip(
        tids.tolist(), pids.tolist(), spent.tolist(), counts.tolist(), strict=True
    ):
        name = str(given.get(str(tid)) or names.get(tid) or ("main" if tid == pid else "thread"))
        found.append(((tid != pid, -busy), Thread(tid, name, count, "call")))
    return [x for _, x in sorted(found)]
