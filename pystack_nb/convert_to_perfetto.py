"""Write a recording as a Perfetto trace, for ui.perfetto.dev and the trace processor.

Processes and threads are tracks, samples are ``PerfSample`` packets with interned call stacks,
calls are slices on their threads' tracks, other events are slices and instants.  Times are
those of the recording, on CLOCK_MONOTONIC, and one clock snapshot ties that clock to the others.

Run as a program: ``python -m pystack_nb.convert_to_perfetto IN OUT``.
"""

from __future__ import annotations

import sys

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import perfetto_trace_pb2 as pb
from pystack_nb.conversion import run
from pystack_nb.errors import RecordingFormatError
from pystack_nb.perfetto_calls import call_pieces
from pystack_nb.perfetto_tracks import Tracks, annotate, event_packets
from pystack_nb.recording import Recording, load, trace_list
from pystack_nb.util import atomic_file, printable


if TYPE_CHECKING:
    import os

    from collections.abc import Iterable, Iterator, Mapping

# All packets but those of calls are of one sequence, within which names and stacks are interned.
SEQUENCE = 1
PACKETS_AT_ONCE = 4096
STACKS_AT_ONCE = 512

# What a frame without a shared object claims to be mapped from: the trace processor drops
# frames that have no mapping.
MAPPING_OF_KIND = {"python": "[python]", "kernel": "[kernel]"}
BUILD_ID = b"pystack_nb"  # symbols are of mappings that have one
FRAME_KEY = ["kind", "function", "filename", "line_number", "first_line"]


def convert_to_perfetto(x: Recording | Iterable[Mapping[str, Any]]) -> bytes:
    """Make a Perfetto trace.

    Parameters
    ----------
    x : Recording, or iterable of dict
        The dicts are those of `PyStackProfiler.get_stack_traces`: each becomes an instant
        event on its thread's track.

    Returns
    -------
    bytes
        A serialised ``perfetto.protos.Trace``.

    Raises
    ------
    RecordingFormatError
        If `x` is neither.
    """
    return b"".join(_pieces(x))


def write_perfetto(
    x: Recording | Iterable[Mapping[str, Any]], path: str | os.PathLike[str]
) -> None:
    """Write a Perfetto trace to a file, piece by piece.

    Parameters
    ----------
    x : Recording, or iterable of dict
        As for `convert_to_perfetto`.
    path : path-like
        The file, ``.pftrace`` by custom; it appears when it is whole.

    Raises
    ------
    ExportPathError
        If it can't be written.
    """
    with atomic_file(path) as file:
        for piece in _pieces(x):
            file.write(piece)


def _pieces(x: Recording | Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    yield from _encoded(_packets(x))
    if isinstance(x, Recording):
        yield from call_pieces(x.calls, Tracks.of_recording(x), SEQUENCE + 1)


def _encoded(packets: Iterator[Any]) -> Iterator[bytes]:
    first = True
    while some := list(islice(packets, PACKETS_AT_ONCE)):
        for packet in some:
            packet.trusted_packet_sequence_id = SEQUENCE
            packet.sequence_flags |= pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        if first:
            some[0].first_packet_on_sequence = True
            some[0].sequence_flags |= pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
            first = False
        # Serialised traces that follow each other are one trace.
        yield pb.Trace(packet=some).SerializeToString()


def _packets(x: Recording | Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    if isinstance(x, Recording):
        yield from _recording_packets(x)
        return
    entries = trace_list(x)
    try:
        yield from _stack_trace_packets(entries)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingFormatError(
            f"an entry is not one of get_stack_traces(): {error!r}; give its list unchanged"
        ) from error


def _recording_packets(recording: Recording) -> Iterator[Any]:
    info, samples = recording.info, recording.samples
    frames = recording.frames[recording.frames["stack_id"].isin(samples["stack_id"])]
    asked = (info.get("hz") or {}).get("asked") or 0
    yield _defaults(round(asked))
    yield _clock_snapshot(info.get("clock_snapshot") or {}, int(info.get("start_ns") or 0))
    tracks = Tracks.of_recording(recording)
    yield from tracks.packets()
    yield from _interned_packets(frames)
    yield from _sample_packets(samples, _modes(frames))
    if info.get("lost"):
        packet = pb.TracePacket(timestamp=int(info.get("end_ns") or 0))
        packet.perf_sample.cpu = 0
        packet.perf_sample.kernel_records_lost = int(info["lost"])
        yield packet
    yield from event_packets(recording.events, tracks, with_calls=tracks.of(recording.calls))
    yield from _line_packets(frames, int(samples["ts_ns"].max()) if len(samples) else 0)


def _stack_trace_packets(entries: list[Mapping[str, Any]]) -> Iterator[Any]:
    yield _defaults(0)
    yield _clock_snapshot({}, min((int(x["timestamp"]) for x in entries), default=0))
    tracks = Tracks(pd.DataFrame(entries, columns=["pid", "tid"]))
    yield from tracks.packets()
    for entry in entries:
        packet = pb.TracePacket(timestamp=int(entry["timestamp"]))
        event = packet.track_event
        event.type = pb.TrackEvent.TYPE_INSTANT
        event.track_uuid = tracks.thread(int(entry["pid"]), int(entry["tid"]))
        event.categories.append("sample")
        event.name = printable(entry["function"] or "[no Python]")
        for key in ("filename", "line_number", "stack"):
            if entry[key] is not None:
                annotate(event.debug_annotations.add(name=key), entry[key])
        yield packet


def _defaults(hz: int) -> Any:
    packet = pb.TracePacket()
    defaults = packet.trace_packet_defaults
    defaults.timestamp_clock_id = pb.BUILTIN_CLOCK_MONOTONIC
    if hz:
        timebase = defaults.perf_sample_defaults.timebase
        timebase.frequency = hz
        timebase.counter = pb.PerfEvents.SW_CPU_CLOCK
    return packet


def _clock_snapshot(clocks: Mapping[str, int], start_ns: int) -> Any:
    packet = pb.TracePacket()
    snapshot = packet.clock_snapshot
    snapshot.primary_trace_clock = pb.BUILTIN_CLOCK_MONOTONIC
    for clock, name in (
        (pb.BUILTIN_CLOCK_MONOTONIC, "monotonic_ns"),
        (pb.BUILTIN_CLOCK_BOOTTIME, "boottime_ns"),
        (pb.BUILTIN_CLOCK_REALTIME, "realtime_ns"),
    ):
        if name in clocks:
            snapshot.clocks.add(clock_id=clock, timestamp=int(clocks[name]))
    if "monotonic_ns" not in clocks:
        snapshot.clocks.add(clock_id=pb.BUILTIN_CLOCK_MONOTONIC, timestamp=start_ns)
    return packet


def _interned_packets(frames: pd.DataFrame) -> Iterator[Any]:
    """Name every string, frame and stack once, by numbers that count from 1."""
    number = frames.groupby(FRAME_KEY, observed=True, sort=False, dropna=False).ngroup().to_numpy()
    paths, functions, mappings = _Numbers(), _Numbers(), _Numbers()
    packet = pb.TracePacket()
    data = packet.interned_data
    for iid, (kind, function, filename, _, first_line) in enumerate(_rows(frames), start=1):
        path = MAPPING_OF_KIND.get(kind) or filename or "[unknown]"
        name = _python_name(function, filename, first_line) if kind == "python" else function
        data.frames.add(
            iid=iid,
            function_name_id=functions[name],
            mapping_id=mappings[path],
            rel_pc=iid,  # what _line_packets tells frames apart by
        )
    for path, iid in mappings.items():
        # The trace processor puts a slash before each component.
        data.mappings.add(iid=iid, path_string_ids=[paths[path.removeprefix("/")]], build_id=1)
    data.build_ids.add(iid=1, str=BUILD_ID)
    data.mapping_paths.extend(paths.interned())
    data.function_names.extend(functions.interned())
    yield packet
    yield from _callstack_packets(frames["stack_id"].to_numpy(), number + 1)


def _line_packets(frames: pd.DataFrame, end_ns: int) -> Iterator[Any]:
    """Say which line each Python frame was executing, as the symbols of "[python]".

    Such symbols are looked up among frames that samples have used, so they come at the end.
    """
    if not (frames["kind"] == "python").any():
        return
    packet = pb.TracePacket(timestamp=end_ns)
    symbols = packet.module_symbols
    symbols.path = "/" + MAPPING_OF_KIND["python"]
    symbols.build_id = BUILD_ID.decode()
    for iid, (kind, function, filename, line, first_line) in enumerate(_rows(frames), start=1):
        if kind == "python":
            symbols.address_symbols.add(address=iid).lines.add(
                function_name=_python_name(function, filename, first_line),
                source_file_name=printable(filename),
                line_number=line,
            )
    yield packet


def _rows(frames: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    distinct = frames.drop_duplicates(FRAME_KEY)
    return zip(*(distinct[x].tolist() for x in FRAME_KEY), strict=True)


def _python_name(function: str, filename: str, first_line: int) -> str:
    return printable(f"{function} ({filename.rpartition('/')[2]}:{first_line})")


def _callstack_packets(stack_ids: np.ndarray, frame_iids: np.ndarray) -> Iterator[Any]:
    ids, starts = np.unique(stack_ids, return_index=True)
    stacks = zip(ids.tolist(), np.split(frame_iids, starts[1:]), strict=True)
    while some := list(islice(stacks, STACKS_AT_ONCE)) if len(ids) else []:
        packet = pb.TracePacket()
        for stack_id, iids in some:
            packet.interned_data.callstacks.add(iid=stack_id + 1, frame_ids=iids.tolist())
        yield packet


def _sample_packets(samples: pd.DataFrame, modes: Mapping[int, int]) -> Iterator[Any]:
    columns = [samples[x].tolist() for x in ("ts_ns", "pid", "tid", "cpu", "stack_id")]
    for ts, pid, tid, cpu, stack_id in zip(*columns, strict=True):
        packet = pb.TracePacket(timestamp=ts)
        sample = packet.perf_sample
        sample.pid, sample.tid = pid, tid
        if cpu >= 0:  # else not known
            sample.cpu = cpu
        if stack_id in modes:  # else it has no frames: a thread of which nothing could be read
            sample.callstack_iid = stack_id + 1
            sample.cpu_mode = modes[stack_id]
        yield packet


def _modes(frames: pd.DataFrame) -> dict[int, int]:
    modes = dict.fromkeys(frames["stack_id"].unique().tolist(), pb.Profiling.MODE_USER)
    in_kernel = frames["stack_id"][frames["kind"] == "kernel"].unique().tolist()
    return modes | dict.fromkeys(in_kernel, pb.Profiling.MODE_KERNEL)


class _Numbers(dict[str, int]):
    """Numbers that distinct texts are interned under: 1, 2, 3..."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self) + 1
        return self[text]

    def interned(self) -> Iterator[Any]:
        for text, iid in self.items():
            yield pb.InternedString(iid=iid, str=printable(text).encode())


def main(arguments: list[str] | None = None) -> int:
    """Convert the recording IN, a folder or a JSON file, to the trace OUT; return the status."""
    return run(
        "pystack_nb.convert_to_perfetto",
        lambda source, out: load(source).to_perfetto(out),
        arguments,
    )


if __name__ == "__main__":
    sys.exit(main())
