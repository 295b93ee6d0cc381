"""Calls as slices of a Perfetto trace.

There can be tens of millions, too many to make a message object for each: here the bytes of
their packets are put together column by column, from what the message classes write for one.

Each thread has a packet sequence of its own, so that the track is said once, and a clock that
counts from packet to packet, so that times are small numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pystack_nb import perfetto_trace_pb2 as pb
from pystack_nb import tables
from pystack_nb.nesting import by_thread, distinct_functions, steps
from pystack_nb.util import printable


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pystack_nb.nesting import Steps
    from pystack_nb.perfetto_tracks import Tracks

    Ints = NDArray[Any]  # of integers
    Bools = NDArray[np.bool_]

CLOCK = 64  # the first of those that belong to one sequence
NEEDS_STATE = pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
WIDEST = 10  # bytes of a 64-bit number


def call_pieces(calls: pd.DataFrame, tracks: Tracks, sequence: int) -> Iterator[bytes]:
    """Encode calls.

    Parameters
    ----------
    calls : pandas.DataFrame
        `Recording.calls`; each is a slice on its thread's track, under the function's name and
        with its place; its kind is the category.
    tracks : Tracks
        With the threads of all of them.
    sequence : int
        The first number that no other packets of the trace have.

    Yields
    ------
    bytes
        Serialised pieces of a ``perfetto.protos.Trace``.

    Raises
    ------
    RecordingFormatError
        If the calls of a thread don't nest.
    """
    functions = _Functions(calls)
    for number, (pid, tid, rows) in enumerate(by_thread(calls), start=sequence):
        thread = _Sequence(number, tracks.thread(pid, tid), functions)
        for piece in steps(calls, rows):
            yield thread.encode(piece)


class _Functions:
    """What packets say of calls by number: numbers of functions, of kinds, and whether whole."""

    def __init__(self, calls: pd.DataFrame) -> None:
        self.of_call, first = distinct_functions(calls)
        named = calls.iloc[first]
        self._rows = [named[x].tolist() for x in ("function", "filename", "line_number")]
        kinds = calls["kind"].cat
        of_kind = [tables.CALL_KINDS.index(x) + 1 for x in kinds.categories]
        self.kind = np.array([*of_kind, 1], np.uint64)[kinds.codes.to_numpy()]
        self.complete = calls["complete"].to_numpy()

    def intern(self, data: Any, numbers: list[int]) -> None:
        """Name some of the functions, by numbers that count from 1."""
        functions, filenames, lines = self._rows
        for number in numbers:
            function, filename = (
                "[unknown]" if pd.isna(x) else printable(x)
                for x in (functions[number], filenames[number])
            )
            data.event_names.add(iid=number + 1, name=function)
            data.source_locations.add(
                iid=number + 1,
                file_name=filename,
                function_name=function,
                line_number=lines[number],
            )

    def __len__(self) -> int:
        return len(self._rows[0])


class _Sequence:
    """The packets of one thread."""

    def __init__(self, number: int, track: int, functions: _Functions) -> None:
        self._number, self._track, self._functions = number, track, functions
        self._interned = np.zeros(len(functions), np.bool_)
        self._last_ns: int | None = None

    def encode(self, piece: Steps) -> bytes:
        head = []
        if self._last_ns is None:
            self._last_ns = int(piece.ts_ns[0])
            head = self._first_packets(self._last_ns)
        function = self._functions.of_call[piece.row]
        new = np.unique(function[~self._interned[function]])
        self._interned[new] = True
        named = pb.TracePacket(sequence_flags=NEEDS_STATE)
        self._functions.intern(named.interned_data, new.tolist())
        trace = pb.Trace(packet=[*head, named])
        for packet in trace.packet:
            packet.trusted_packet_sequence_id = self._number
        elapsed = np.diff(piece.ts_ns, prepend=self._last_ns)
        self._last_ns = int(piece.ts_ns[-1])
        data: bytes = trace.SerializeToString()
        return data + self._events(piece, elapsed, function)

    def _first_packets(self, start_ns: int) -> list[Any]:
        """Say what holds for all packets: the track, and a clock that starts here."""
        defaults = pb.TracePacket(
            first_packet_on_sequence=True,
            sequence_flags=NEEDS_STATE | pb.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED,
        )
        defaults.trace_packet_defaults.timestamp_clock_id = CLOCK
        defaults.trace_packet_defaults.track_event_defaults.track_uuid = self._track
        for number, kind in enumerate(tables.CALL_KINDS, start=1):
            defaults.interned_data.event_categories.add(iid=number, name=kind)
        # It has a time itself, which can't be told by the clock that it is to tie.
        tie = pb.TracePacket(timestamp=start_ns, timestamp_clock_id=pb.BUILTIN_CLOCK_MONOTONIC)
        clocks = tie.clock_snapshot.clocks
        clocks.add(clock_id=pb.BUILTIN_CLOCK_MONOTONIC, timestamp=start_ns)
        clocks.add(clock_id=CLOCK, timestamp=0, is_incremental=True)
        return [defaults, tie]

    def _events(self, piece: Steps, elapsed: Ints, function: Ints) -> bytes:
        begins, incomplete = piece.begins, ~self._functions.complete[piece.row]
        event = pb.TrackEvent
        body = _Columns(len(begins))
        body.same(_bytes(event(type=event.TYPE_SLICE_BEGIN)), begins)
        body.same(_bytes(event(type=event.TYPE_SLICE_END)), ~begins)
        body.number(_tag(event(category_iids=[1])), self._functions.kind[piece.row], begins)
        body.number(_tag(event(name_iid=1)), function + 1, begins)
        body.number(_tag(event(source_location_iid=1)), function + 1, begins)
        marked = event()
        marked.debug_annotations.add(name="complete", bool_value=False)
        body.same(_bytes(marked), begins & incomplete)

        packet = _Columns(len(begins))
        packet.number(_tag(pb.TracePacket(timestamp=1)), elapsed)
        fixed = pb.TracePacket(trusted_packet_sequence_id=self._number, sequence_flags=NEEDS_STATE)
        packet.same(_bytes(fixed))
        packet.message(_bytes(pb.TracePacket(track_event=event()))[:-1], body)
        trace = _Columns(len(begins))
        trace.message(_bytes(pb.Trace(packet=[pb.TracePacket()]))[:-1], packet)
        return trace.joined()


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _tag(message: Any) -> bytes:
    """Tell what stands before a number, given a message of a field that is 1."""
    return _bytes(message)[:-1]


class _Columns:
    """Rows of bytes, not all of the same length, that are made column by column."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._columns: list[tuple[int | Ints, Bools | None]] = []

    def same(self, data: bytes, where: Bools | None = None) -> None:
        """Append the same bytes to all rows, or to some."""
        self._columns += [(byte, where) for byte in data]

    def number(self, tag: bytes, values: Ints, where: Bools | None = None) -> None:
        """Append a field with a number: seven bits a byte, the low ones first."""
        self.same(tag, where)
        rest = values.astype(np.uint64)
        here = np.ones(self._count, np.bool_) if where is None else where
        for _ in range(WIDEST):
            more = rest >= 0x80
            low = (rest & 0x7F).astype(np.uint8)
            self._columns.append((low | (more.view(np.uint8) << 7), here))
            here = here & more
            if not here.any():
                break
            rest >>= 7

    def message(self, tag: bytes, body: _Columns) -> None:
        """Append a field with a message of less than 128 bytes."""
        self.same(tag)
        length = np.zeros(self._count, np.uint8)
        for _, where in body._columns:
            length += 1 if where is None else where
        self._columns.append((length, None))
        self._columns += body._columns

    def joined(self) -> bytes:
        """Put all rows behind each other."""
        table = np.empty((self._count, len(self._columns)), np.uint8)
        there = np.ones(table.shape, np.bool_)
        for number, (column, where) in enumerate(self._columns):
            table[:, number] = column
            if where is not None:
                there[:, number] = where
        return table[there].tobytes()
