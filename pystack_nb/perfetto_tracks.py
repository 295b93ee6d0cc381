"""Perfetto tracks of processes and threads, and the events that lie on them."""

from __future__ import annotations

import hashlib

from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from pystack_nb import perfetto_trace_pb2 as pb
from pystack_nb.util import printable


if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from pystack_nb.recording import Recording

SLICE_KINDS = {"mark"}
INT64 = range(-(2**63), 2**63)


class _Event(NamedTuple):
    ts_ns: int
    dur_ns: int
    pid: int
    tid: int
    kind: str
    name: str
    args: dict[str, Any] | None

    @property
    def end_ns(self) -> int:
        return self.ts_ns + self.dur_ns


class Tracks:
    """The tracks of a trace, by process and thread.

    Their numbers are derived from pid and tid, so that equal recordings give equal files.

    Parameters
    ----------
    threads : pandas.DataFrame
        Columns ``pid`` and ``tid``, repetitions allowed; ``tid`` 0 stands for the process.
    names : mapping of (int, int) to str
        What is known of the threads' names, by pid and tid.
    processes : mapping of int to str
        What is known of the processes' names, by pid.
    """

    def __init__(
        self,
        threads: pd.DataFrame,
        names: Mapping[tuple[int, int], str] | None = None,
        processes: Mapping[int, str] | None = None,
    ) -> None:
        distinct = threads[["pid", "tid"]].drop_duplicates().sort_values(["pid", "tid"])
        self._threads = [
            (int(pid), int(tid)) for pid, tid in zip(distinct["pid"], distinct["tid"], strict=True)
        ]
        self._names = names or {}
        self._processes = processes or {}

    @classmethod
    def of_recording(cls, recording: Recording) -> Self:
        """Collect the tracks that a recording's samples, calls and events lie on."""
        columns = ["pid", "tid"]
        samples = recording.samples[[*columns, "comm"]].drop_duplicates(columns, keep="last")
        given = recording.info.get("thread_names") or {}
        comms = {
            (pid, tid): comm
            for pid, tid, comm in zip(*(samples[x].tolist() for x in samples), strict=True)
        }
        others = [recording.calls[columns].drop_duplicates(), recording.events[columns]]
        threads = pd.concat([samples[columns], *others]).drop_duplicates()
        names = {}
        for pid, tid in zip(threads["pid"].tolist(), threads["tid"].tolist(), strict=True):
            if name := given.get(str(tid)) or given.get(tid) or comms.get((pid, tid)):
                names[pid, tid] = str(name)
        # The kernel's name of the first thread is the program's; threading has another for it.
        processes = {pid: str(comm) for (pid, tid), comm in comms.items() if pid == tid and comm}
        return cls(threads, names, processes)

    @staticmethod
    def of(table: pd.DataFrame) -> set[tuple[int, int]]:
        """List the threads of a table, as pid and tid."""
        distinct = table[["pid", "tid"]].drop_duplicates()
        return set(zip(distinct["pid"].tolist(), distinct["tid"].tolist(), strict=True))

    def process(self, pid: int) -> int:
        """Return the uuid of a process's track."""
        return _uuid("process", pid)

    def thread(self, pid: int, tid: int) -> int:
        """Return the uuid of a thread's track; of its process's for tid 0."""
        return _uuid("thread", pid, tid) if tid else self.process(pid)

    def packets(self) -> Iterator[Any]:
        """Yield the packets that describe the tracks, processes before their threads."""
        for pid in sorted({pid for pid, _ in self._threads}):
            packet = pb.TracePacket()
            packet.track_descriptor.uuid = self.process(pid)
            packet.track_descriptor.process.pid = pid
            name = printable(self._processes.get(pid, "python"))
            packet.track_descriptor.process.process_name = name
            yield packet
        for pid, tid in self._threads:
            if tid:
                packet = pb.TracePacket()
                packet.track_descriptor.uuid = self.thread(pid, tid)
                packet.track_descriptor.parent_uuid = self.process(pid)
                packet.track_descriptor.thread.pid = pid
                packet.track_descriptor.thread.tid = tid
                name = printable(self._names.get((pid, tid), str(tid)))
                packet.track_descriptor.thread.thread_name = name
                yield packet


def event_packets(
    events: pd.DataFrame, tracks: Tracks, *, with_calls: Collection[tuple[int, int]] = ()
) -> Iterator[Any]:
    """Turn a recording's events into slices, for what lasts, and instants.

    Slices that overlap without nesting are laid on tracks of their own, since one track is
    a stack of slices.

    Parameters
    ----------
    events : pandas.DataFrame
        `Recording.events`.
    tracks : Tracks
        With the threads of all of them.
    with_calls : collection of (int, int), optional
        Threads, by pid and tid, whose own tracks are stacks of calls.
    """
    slices: dict[tuple[int, int], list[_Event]] = {}
    for row in zip(*(events[x].tolist() for x in _Event._fields), strict=True):
        event = _Event(*row)
        if event.kind in SLICE_KINDS or event.dur_ns > 0:
            slices.setdefault((event.pid, event.tid), []).append(event)
        else:
            track = tracks.thread(event.pid, event.tid)
            yield _event_packet(event, pb.TrackEvent.TYPE_INSTANT, track)
    for (pid, tid), of_thread in slices.items():
        thread = tracks.thread(pid, tid)
        names = _lane_names(thread_is_free=(pid, tid) not in with_calls)
        for lane, name in zip(_lanes(of_thread), names, strict=False):
            track = thread
            if name is not None:
                track = _uuid("lane", pid, tid, name)
                packet = pb.TracePacket()
                packet.track_descriptor.uuid = track
                packet.track_descriptor.parent_uuid = thread
                packet.track_descriptor.name = name
                yield packet
            yield from _slice_packets(lane, track)


def _lane_names(*, thread_is_free: bool) -> Iterator[str | None]:
    """Name the tracks for a thread's slices; None is the thread's own."""
    yield None if thread_is_free else "events"
    for number in count(1):
        yield f"overlapping {number}"


def annotate(annotation: Any, value: object) -> None:
    """Put a value into a debug annotation: numbers, text, dicts and lists of them."""
    if isinstance(value, bool | np.bool_):
        annotation.bool_value = bool(value)
    elif isinstance(value, int | np.integer) and int(value) in INT64:
        annotation.int_value = int(value)
    elif isinstance(value, float | np.floating):
        annotation.double_value = float(value)
    elif isinstance(value, dict) and value:
        for key, entry in value.items():
            annotate(annotation.dict_entries.add(name=printable(str(key))), entry)
    elif isinstance(value, list | tuple) and value:
        for entry in value:
            annotate(annotation.array_values.add(), entry)
    else:
        annotation.string_value = printable(str(value))


def _lanes(slices: list[_Event]) -> list[list[_Event]]:
    """Share out slices, so that within a lane each one nests in those before it or follows."""
    lanes: list[tuple[list[_Event], list[int]]] = []
    for event in sorted(slices, key=lambda x: (x.ts_ns, -x.dur_ns)):
        for _, ends in lanes:
            while ends and ends[-1] <= event.ts_ns:
                ends.pop()
        fitting = (x for x in lanes if not x[1] or event.end_ns <= x[1][-1])
        lane = next(fitting, None)
        if lane is None:
            lane = ([], [])
            lanes.append(lane)
        lane[0].append(event)
        lane[1].append(event.end_ns)
    return [events for events, _ in lanes]


def _slice_packets(lane: list[_Event], track: int) -> Iterator[Any]:
    ends: list[int] = []
    for event in lane:
        while ends and ends[-1] <= event.ts_ns:
            yield _end_packet(ends.pop(), track)
        yield _event_packet(event, pb.TrackEvent.TYPE_SLICE_BEGIN, track)
        ends.append(event.end_ns)
    while ends:
        yield _end_packet(ends.pop(), track)


def _event_packet(event: _Event, kind: int, track: int) -> Any:
    packet = pb.TracePacket(timestamp=event.ts_ns)
    packet.track_event.type = kind
    packet.track_event.track_uuid = track
    packet.track_event.categories.append(printable(event.kind))
    packet.track_event.name = printable(event.name)
    for key, value in (event.args or {}).items():
        annotate(packet.track_event.debug_annotations.add(name=printable(str(key))), value)
    return packet


def _end_packet(ts_ns: int, track: int) -> Any:
    packet = pb.TracePacket(timestamp=ts_ns)
    packet.track_event.type = pb.TrackEvent.TYPE_SLICE_END
    packet.track_event.track_uuid = track
    return packet


def _uuid(*parts: object) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") | 1  # 0 is no track
