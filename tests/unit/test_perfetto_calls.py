from __future__ import annotations

from functools import partial

import pytest

from call_trees import PID, call, make_calls, threads_of_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import START_NS, make_recording
from trace_processor import TraceProcessor

from pystack_nb import perfetto_calls, perfetto_trace_pb2
from pystack_nb.convert_to_perfetto import convert_to_perfetto
from pystack_nb.nesting import by_thread, steps
from pystack_nb.recording import Recording


MARK = {"kind": "mark", "name": "cell", "dur_ns": 500, "args": {}}
SLICES = """
    select s.ts, s.dur, t.tid, s.depth, s.name, s.category
    from slice s join thread_track k on s.track_id = k.id join thread t using (utid)
    where category in ('call', 'resume', 'continued', 'c-call')
"""


def recording_of(threads, events=(), **info):
    base = make_recording([(0, PID, ["<module>"])], events, **info)
    calls = make_calls(threads, START_NS)
    return Recording(base.samples, base.frames, base.events, base.info, calls)


def in_table(calls):
    columns = ["ts_ns", "dur_ns", "tid", "depth", "function", "kind"]
    return sorted(calls[columns].itertuples(index=False, name=None))


@pytest.fixture(scope="module")
def recording():
    inner = call("step /src/model.py", 20, 30, call("len [builtins]", 22, 23, kind="c-call"))
    outer = call("<module>", 10, 500, inner, call("step /src/model.py", 30, 30, kind="resume"))
    waiting = call("wait /src/model.py", 40, 600, call("get", 50, 600, complete=False))
    waiting["complete"] = False
    return recording_of(
        {PID: [outer, call("<module>", 500, 510, kind="continued")], 102: [waiting]},
        [MARK],
        thread_names={"102": "ThreadPoolExecutor-0_0"},
    )


@pytest.fixture(scope="module")
def trace(recording):
    with TraceProcessor(convert_to_perfetto(recording)) as trace:
        yield trace


def test_every_call_is_a_slice_on_its_thread_at_its_depth(trace, recording):
    assert trace.errors() == []
    assert sorted(trace.rows(SLICES)) == in_table(recording.calls)


def test_slices_lie_inside_those_of_their_callers(trace):
    rows = trace.rows(
        "select s.name, p.name as caller from slice s join slice p on s.parent_id = p.id"
    )
    assert sorted(rows) == [
        ("get", "wait"),
        ("len", "step"),
        ("step", "<module>"),
        ("step", "<module>"),
    ]


def test_calls_that_were_open_at_the_end_are_marked(trace):
    rows = trace.rows(
        "select s.name, a.int_value from slice s join args a using (arg_set_id) "
        "where a.key = 'debug.complete' order by s.name"
    )
    assert rows == [("get", 0), ("wait", 0)]


def test_slices_say_where_their_functions_are(trace):
    rows = trace.rows(
        "select distinct f.string_value as file, l.int_value as line from slice s "
        "join args f on f.arg_set_id = s.arg_set_id and f.key = 'source.file_name' "
        "join args l on l.arg_set_id = s.arg_set_id and l.key = 'source.line_number' "
        "where s.name = 'step'"
    )
    assert rows == [("/src/model.py", 1)]


def test_threads_without_samples_have_their_names(trace):
    rows = trace.rows("select tid, name from thread where tid = 102")
    assert rows == [(102, "ThreadPoolExecutor-0_0")]


def test_events_lie_beside_the_calls_of_their_thread(trace):
    rows = trace.rows(
        "select s.name, s.dur, s.depth, k.name as track from slice s "
        "join track k on s.track_id = k.id where s.category = 'mark'"
    )
    assert rows == [("cell", 500, 0, "events")]


def in_pieces(recording, at_once):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perfetto_calls, "steps", partial(steps, at_once=at_once))
        return convert_to_perfetto(recording)


def read(data):
    """Write the slices' beginnings and ends of each sequence as (time, function or None)."""
    found, names, now = {}, {}, {}
    for packet in perfetto_trace_pb2.Trace.FromString(data).packet:
        sequence = packet.trusted_packet_sequence_id
        for x in packet.interned_data.event_names:
            names[sequence, x.iid] = x.name
        if packet.HasField("track_event"):
            now[sequence] += packet.timestamp
            name = names.get((sequence, packet.track_event.name_iid))
            found.setdefault(sequence, []).append((now[sequence], name))
        elif packet.HasField("timestamp"):
            now[sequence] = packet.timestamp
    return found


@settings(max_examples=40, deadline=None)  # a Recording takes milliseconds
@given(threads_of_calls(["f", "g /a.py", "g /b.py"]), st.integers(1, 10))
def test_steps_are_written_in_their_order_in_pieces_of_any_size(threads, at_once):
    recording = recording_of(threads)
    calls = recording.calls
    expected = [
        [
            (ts_ns, calls["function"].iloc[row] if begins else None)
            for ts_ns, row, begins in zip(
                *(x.tolist() for x in next(steps(calls, rows))), strict=True
            )
        ]
        for _, _, rows in by_thread(calls)
    ]
    assert list(read(in_pieces(recording, at_once)).values()) == expected
    assert list(read(convert_to_perfetto(recording)).values()) == expected


def test_many_calls_of_many_functions_arrive_whole():
    # GIVEN more calls than go into one piece, more functions than fit one byte, long gaps
    starts = [i * 700_000 for i in range(6000)]
    calls = [
        call(f"f{i % 700}", start, start + 20, call(f"g{i % 7}", start, start + 9))
        for i, start in enumerate(starts)
    ]
    recording = recording_of({PID: [call("main", 0, 5 * 10**9, *calls)]})
    # WHEN they are converted
    with TraceProcessor(in_pieces(recording, 1000)) as trace:
        errors, rows = trace.errors(), trace.rows(SLICES)
    # THEN all of them are there
    assert errors == []
    assert sorted(rows) == in_table(recording.calls)


def test_equal_recordings_give_equal_bytes(recording):
    assert convert_to_perfetto(recording) == convert_to_perfetto(recording)
