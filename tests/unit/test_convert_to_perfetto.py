from __future__ import annotations

import pytest

from synthetic import PID, START_NS, frame, make_recording
from trace_processor import TraceProcessor

from pystack_nb import perfetto_trace_pb2
from pystack_nb.convert_to_json import convert_to_json
from pystack_nb.convert_to_perfetto import convert_to_perfetto, write_perfetto
from pystack_nb.errors import ExportPathError, RecordingFormatError


MARK = {"kind": "mark", "name": "cell", "dur_ns": 9_000_000, "args": {"number": 3}}
STACKS = """
    with recursive up(sample, callsite, parent, frame) as (
        select p.id, c.id, c.parent_id, c.frame_id
        from perf_sample p join stack_profile_callsite c on c.id = p.callsite_id
        union all
        select up.sample, c.id, c.parent_id, c.frame_id
        from up join stack_profile_callsite c on c.id = up.parent
    )
    select up.sample, f.name, m.name as mapping
    from up join stack_profile_frame f on f.id = up.frame
    join stack_profile_mapping m on m.id = f.mapping order by up.sample, up.callsite
"""


@pytest.fixture(scope="module")
def recording():
    inner = [frame("<module>", 9), frame("fit /src/model.py", 41)]
    return make_recording(
        [
            (0, PID, ["<module>"]),
            (1, PID, inner),
            (2, PID, [*inner, frame("dot /lib/libblas.so", kind="native")]),
            (2, 102, [frame("clone", kind="native"), frame("do_futex", kind="kernel")]),
            (3, 103, []),
        ],
        [
            MARK,
            {"kind": "process", "name": "exited", "ts_ns": START_NS + 5, "tid": 0},
        ],
        thread_names={"102": "ThreadPoolExecutor-0_0"},
    )


@pytest.fixture(scope="module")
def trace(recording):
    with TraceProcessor(convert_to_perfetto(recording)) as trace:
        yield trace


def test_the_trace_processor_finds_nothing_wrong(trace):
    assert trace.errors() == []


def test_every_sample_arrives_at_its_time_on_its_thread(trace, recording):
    rows = trace.rows("select s.ts, t.tid, s.cpu from perf_sample s join thread t using (utid)")
    samples = recording.samples[["ts_ns", "tid", "cpu"]]
    assert sorted(rows) == sorted(samples.itertuples(index=False, name=None))


def test_stacks_run_from_the_outermost_frame_to_the_innermost(trace):
    stacks = {}
    for sample, function, mapping in trace.rows(STACKS):
        stacks.setdefault(sample, []).append((function, mapping))
    module = ("<module> (cell.py:6)", "/[python]")
    fit = ("fit (model.py:38)", "/[python]")
    assert list(stacks.values()) == [
        [("<module> (cell.py:1)", "/[python]")],
        [module, fit],
        [module, fit, ("dot", "/lib/libblas.so")],
        [("clone", "/lib/libm.so"), ("do_futex", "/[kernel]")],
    ]


def test_executing_lines_are_those_of_the_samples(trace):
    rows = trace.rows("select name, source_file, line_number from stack_profile_symbol")
    assert ("fit (model.py:38)", "/src/model.py", 41) in rows


def test_threads_and_processes_have_their_names(trace):
    assert trace.rows("select tid, name from thread where tid > 0 order by tid") == [
        (PID, "main"),
        (102, "ThreadPoolExecutor-0_0"),
        (103, "worker-103"),
    ]
    assert trace.rows("select pid, name from process where pid > 0") == [(PID, "main")]


def test_the_clock_snapshot_ties_the_three_clocks(trace):
    rows = trace.rows("select clock_name, clock_value from clock_snapshot")
    assert sorted(rows) == [
        ("BOOTTIME", START_NS + 7),
        ("MONOTONIC", START_NS),
        ("REALTIME", 1_800_000_000_000_000_000),
    ]


def test_marks_are_slices_and_other_events_instants(trace):
    rows = trace.rows("select name, category, ts, dur from slice order by dur")
    assert rows == [("exited", "process", START_NS + 5, 0), ("cell", "mark", START_NS, 9_000_000)]
    assert trace.rows("select int_value from args where key = 'debug.number'") == [(3,)]


def test_slices_that_overlap_without_nesting_keep_their_lengths():
    # GIVEN slices of which two cross and one lies inside another
    events = [
        {"name": name, "ts_ns": START_NS + start, "dur_ns": length}
        for name, start, length in [("a", 0, 10), ("b", 5, 10), ("c", 6, 4), ("d", 6, 0)]
    ]
    # WHEN they are converted
    with TraceProcessor(convert_to_perfetto(make_recording([], events))) as trace:
        rows = trace.rows("select name, ts, dur from slice order by name")
        errors = trace.errors()
    # THEN each has its own extent
    assert rows == [(x["name"], x["ts_ns"], x["dur_ns"]) for x in events]
    assert errors == []


def test_what_was_lost_is_a_data_loss_of_the_trace():
    recording = make_recording([(0, PID, ["f"])], lost=12)
    with TraceProcessor(convert_to_perfetto(recording)) as trace:
        assert trace.errors() == [("perf_cpu_lost_records", 12)]
        assert trace.rows("select count() from perf_sample") == [(1,)]


def test_stack_traces_become_one_instant_each_on_their_threads(recording):
    with TraceProcessor(convert_to_perfetto(recording.to_traces())) as trace:
        rows = trace.rows(
            "select s.ts, t.tid, s.name, s.dur from slice s "
            "join thread_track k on s.track_id = k.id join thread t using (utid)"
        )
        deepest = trace.rows("select max(key) from args where key glob 'debug.stack*function'")
        errors = trace.errors()
    samples = recording.samples
    names = samples["function"].astype(object).fillna("[no Python]")
    assert sorted(rows) == sorted(
        zip(samples["ts_ns"], samples["tid"], names, [0] * len(samples), strict=True)
    )
    assert deepest == [("debug.stack[2].function",)]
    assert errors == []


def test_nothing_recorded_is_still_a_good_trace():
    for nothing in (make_recording([]), []):
        with TraceProcessor(convert_to_perfetto(nothing)) as trace:
            assert trace.errors() == []
            assert trace.rows("select count() from perf_sample") == [(0,)]


def test_thousands_of_stacks_and_packets_arrive_whole(tmp_path):
    # GIVEN more stacks and samples than go into one piece of the file
    recording = make_recording([(i, PID, [f"f{i % 3000}", f"g{i % 7}"]) for i in range(9000)])
    # WHEN it is written to a file
    write_perfetto(recording, tmp_path / "big.pftrace")
    # THEN all of it is there
    with TraceProcessor((tmp_path / "big.pftrace").read_bytes()) as trace:
        assert trace.errors() == []
        assert trace.rows("select count() from perf_sample") == [(9000,)]
        assert trace.rows("select count(distinct name) from stack_profile_frame") == [(3007,)]


def test_equal_recordings_give_equal_bytes(recording):
    assert convert_to_perfetto(recording) == convert_to_perfetto(recording)


def test_text_that_is_no_utf8_is_written_escaped():
    recording = make_recording(
        [(0, PID, ["f"])], [MARK | {"args": {"path": "\udcff"}}], thread_names={PID: "caf\udce9"}
    )
    with TraceProcessor(convert_to_perfetto(recording)) as trace:
        assert trace.rows(f"select name from thread where tid = {PID}") == [(r"caf\udce9",)]
        assert trace.rows("select string_value from args where key = 'debug.path'") == [
            (r"\udcff",)
        ]


def test_a_process_is_called_by_its_program_and_not_as_threading_calls_its_first_thread():
    recording = make_recording([(0, PID, ["f"])], thread_names={PID: "MainThread"})
    with TraceProcessor(convert_to_perfetto(recording)) as trace:
        assert trace.rows(f"select name from thread where tid = {PID}") == [("MainThread",)]
        (comm,) = set(recording.samples["comm"])
        assert trace.rows(f"select name from process where pid = {PID}") == [(comm,)]


@pytest.mark.parametrize("convert", [convert_to_perfetto, convert_to_json])
@pytest.mark.parametrize("given", [None, 5, {}, "run", b"run"])
def test_what_is_neither_a_recording_nor_a_list_is_refused(convert, given):
    with pytest.raises(RecordingFormatError, match=r"get_stack_traces\(\): give one of these"):
        convert(given)


def test_a_list_of_something_else_is_refused():
    with pytest.raises(RecordingFormatError, match="get_stack_traces"):
        convert_to_perfetto([{"timestamp": 1}])


def test_a_path_that_cannot_be_written_is_refused_and_nothing_is_left(recording, tmp_path):
    with pytest.raises(ExportPathError):
        write_perfetto(recording, tmp_path / "missing" / "x.pftrace")
    assert list(tmp_path.iterdir()) == []


def test_the_message_classes_read_what_was_written(recording):
    trace = perfetto_trace_pb2.Trace()
    trace.ParseFromString(convert_to_perfetto(recording))
    timestamps = {x.timestamp for x in trace.packet if x.HasField("perf_sample")}
    assert timestamps == set(recording.samples["ts_ns"])
