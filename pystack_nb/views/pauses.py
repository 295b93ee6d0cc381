"""What time a timeline spans, and when a thread did not run: it had no samples.

A call that waits lasts as long as it waits.  Where its thread was sampled, too, the samples
tell the one from the other, since a thread is sampled by the CPU time that it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd


if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pystack_nb.recording import Recording

    Ints = NDArray[Any]  # of integers

GAP_PERIODS = 2.5  # a thread without samples for longer than this was not running
GAP_COLUMNS = 3.0  # nor is less than this drawn as a gap


def pauses(recording: Recording, slices: pd.DataFrame, columns: int) -> pd.DataFrame:
    """Find the parts of slices of calls in which their thread was not running.

    Parameters
    ----------
    recording : Recording
        With calls and samples; of another one nothing is found.
    slices : pandas.DataFrame
        Columns ``tid level ts_ns dur_ns unit``, those of `Timeline.slices`.
    columns : int
        Pixels that the recording's time is drawn over.

    Returns
    -------
    pandas.DataFrame
        Columns ``tid level ts_ns dur_ns``.
    """
    start_ns, end_ns = extent(recording)
    least = max(GAP_PERIODS * period_ns(recording), GAP_COLUMNS * (end_ns - start_ns) / columns)
    tid, level, start, length = (slices[x].to_numpy() for x in ("tid", "level", "ts_ns", "dur_ns"))
    call = (slices["unit"] == "call").to_numpy() & tells_pauses(recording)
    none = np.zeros(0, np.int64)
    parts: list[tuple[Ints, Ints, Ints]] = [(none, none, none)]
    for thread in pd.unique(tid[call]).tolist():
        begin, end = not_running(recording, thread)
        rows = np.flatnonzero(call & (tid == thread))
        left, right = start[rows], start[rows] + length[rows]
        first = np.searchsorted(end, left, side="right")
        last = np.maximum(np.searchsorted(begin, right, side="left"), first)
        number, pause = spread(first, last)
        ts = np.maximum(left[number], begin[pause])
        dur = np.minimum(right[number], end[pause]) - ts
        long = dur >= least
        parts.append((rows[number[long]], ts[long], dur[long]))
    row, ts, dur = (np.concatenate(x) for x in zip(*parts, strict=True))
    return pd.DataFrame({"tid": tid[row], "level": level[row], "ts_ns": ts, "dur_ns": dur})


def not_running(recording: Recording, tid: int) -> tuple[Ints, Ints]:
    """Return when stretches begin and end in which a thread of a recording did not run, ns.

    There are none where that is not known: if nothing was sampled, or samples were lost.
    """
    none = np.zeros(0, np.int64)
    if not tells_pauses(recording):
        return none, none
    samples, period = recording.samples, period_ns(recording)
    ts = samples["ts_ns"].to_numpy()[samples["tid"].to_numpy() == tid]
    start_ns, end_ns = extent(recording)
    begin, end = np.append(start_ns, ts + period), np.append(ts, end_ns)
    long = end - begin >= GAP_PERIODS * period
    return begin[long], end[long]


def tells_pauses(recording: Recording) -> bool:
    """Tell whether calls that waited can be told from those that ran."""
    info = recording.info
    sampled = "sample" in str(info.get("mode", "sample")).split(",")
    return sampled and len(recording.calls) > 0 and not info.get("lost")


def extent(recording: Recording) -> tuple[int, int]:
    """Return what the time axis spans: from the recording's start to its end, ns."""
    ts = recording.samples["ts_ns"].to_numpy()
    info = recording.info
    bounds = [int(x) for x in (info.get("start_ns"), info.get("end_ns")) if x]
    if len(ts):
        # A sample stands for a period, but nothing lasts longer than the recording.
        period = 0 if info.get("end_ns") else period_ns(recording)
        bounds += [int(ts[0]), int(ts[-1]) + period]
    calls = recording.calls
    if len(calls):
        begun = calls["ts_ns"].to_numpy()
        bounds += [int(begun[0]), int((begun + calls["dur_ns"].to_numpy()).max())]
    start = min(bounds, default=0)
    return start, max([*bounds, start + 1])


def period_ns(recording: Recording) -> int:
    """Return how far apart the samples of a busy thread are, ns."""
    weights = recording.samples["weight_ns"].to_numpy()
    reached = (recording.info.get("hz") or {}).get("reached")
    return max(int(np.median(weights)) if len(weights) else 0, int(1e9 / reached) if reached else 1)


def spread(first: Ints, last: Ints) -> tuple[Ints, Ints]:
    """Write each interval [first, last) as (number of the interval, member), one per member."""
    lengths = last - first
    number = np.repeat(np.arange(len(first)), lengths)
    offset = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return number, first[number] + offset
