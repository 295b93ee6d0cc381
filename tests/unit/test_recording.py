"""Recording: its tables, their sums, and what is saved and loaded."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import spools

import pystack_nb

from pystack_nb import tables
from pystack_nb.decode import decode
from pystack_nb.errors import ExportPathError, RecordingFormatError
from pystack_nb.recording import Recording, from_traces, load


def frames_of(*stacks):
    """Frames of stacks 0, 1...: (kind, function, filename, line, first line), outermost first."""
    rows = [(n, depth, *x) for n, stack in enumerate(stacks) for depth, x in enumerate(stack)]
    return pd.DataFrame(rows, columns=list(tables.FRAMES))


def samples_of(*rows):
    """Samples of (time, thread, stack, function), each of weight 10."""
    table = pd.DataFrame(rows, columns=["ts_ns", "tid", "stack_id", "function"])
    return table.assign(
        pid=7, comm="python", cpu=0, state="on-cpu", weight_ns=10, filename="a.py", line_number=1
    )


OUTER = ("python", "outer", "a.py", 12, 10)
INNER = ("python", "inner", "a.py", 21, 20)
NATIVE = ("native", "dgemm", "/lib/blas.so", 0, 0)
KERNEL = ("kernel", "vfs_read", "[kernel]", 0, 0)


@pytest.fixture
def recording():
    """A recording with all kinds of frames, an event and odd names."""
    info = {"lost": 0, "wall_ns": 2_500_000_000, "hz": {"asked": 100, "reached": 99.5}}
    odd = ("python", 'say "hi"\n\u2028\x00<b>', "naïve/関数\U0001d453.py", 3, 1)
    events = pd.DataFrame(
        [(5, 20, 7, 1, "mark", "cell", {"number": 3, "nested": {"a": [1, None]}})],
        columns=list(tables.EVENTS),
    )
    samples = samples_of(
        (10, 1, 0, "inner"), (30, 2, 1, None), (20, 1, 2, odd[1]), (40, 1, 3, None)
    )
    samples.loc[samples["function"].isna(), ["filename", "line_number"]] = [None, 0]
    calls = pd.DataFrame(
        [
            (10, 50, 30, 0, -1, odd[1], True, "call"),
            (20, 20, 20, 1, 0, "inner", False, "resume"),
            (2**62, 0, 0, 0, -1, "inner", True, "c-call"),
        ],
        columns=[
            *("ts_ns", "dur_ns", "self_ns", "depth", "parent", "function", "complete", "kind")
        ],
    ).assign(pid=7, tid=1, filename=odd[2], line_number=20)
    counts = pd.DataFrame([("inner", "a.py", 20, 2**40, 2**60)], columns=list(tables.COUNTS))
    frames = frames_of([OUTER, INNER, NATIVE, KERNEL], [NATIVE], [odd])
    return Recording(samples, frames, events, info, calls, counts)


def assert_same(a, b):
    for name in ("samples", "frames", "stacks", "events", "calls", "counts"):
        pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name), check_exact=True)
    assert a.info == b.info


# The tables.


def test_samples_are_sorted_by_time_and_frames_by_depth():
    frames = frames_of([OUTER, INNER])[::-1]
    rec = Recording(samples_of((3, 1, 0, "f"), (1, 1, 0, "g"), (2, 1, 0, "h")), frames)
    assert rec.samples["ts_ns"].tolist() == [1, 2, 3]
    assert rec.frames["depth"].tolist() == [0, 1]
    assert rec.samples.index.tolist() == [0, 1, 2]


def test_the_tables_given_are_not_changed():
    samples, frames = samples_of((3, 1, 0, "f"), (1, 1, 0, "g")), frames_of([OUTER])
    before = samples.copy(), frames.copy()
    Recording(samples, frames)
    pd.testing.assert_frame_equal(samples, before[0])
    pd.testing.assert_frame_equal(frames, before[1])


def test_columns_and_dtypes_are_those_of_the_contract(recording):
    assert recording.samples.dtypes.astype(str).to_dict() == tables.SAMPLES
    assert recording.frames.dtypes.astype(str).to_dict() == tables.FRAMES
    assert recording.events.dtypes.astype(str).to_dict() == tables.EVENTS
    assert recording.calls.dtypes.astype(str).to_dict() == tables.CALLS
    assert recording.counts.dtypes.astype(str).to_dict() == tables.COUNTS
    assert list(recording.stacks.columns) == [
        "stack_id",
        "depth",
        "kind",
        "function",
        "filename",
        "line_number",
    ]


def test_categories_are_those_that_occur():
    samples = samples_of((1, 1, 0, "f"), (2, 1, 0, "g"))
    samples["function"] = pd.Categorical(samples["function"], ["z", "g", "f"])
    rec = Recording(samples[samples["function"] == "g"], frames_of([OUTER]))
    assert rec.samples["function"].cat.categories.tolist() == ["g"]


def test_a_recording_without_events_has_an_empty_table_of_them():
    rec = Recording(samples_of(), frames_of())
    pd.testing.assert_frame_equal(rec.events, tables.empty(tables.EVENTS))


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x.drop(columns="tid"),
        lambda x: x.assign(tid=[2**40]),
        lambda x: x.assign(tid=[1.5]),
        lambda x: x.assign(tid=[None]),
        lambda x: x.assign(tid=["many"]),
        lambda x: x.assign(comm=[3]),
    ],
)
def test_a_table_that_is_not_one_of_a_recording_is_refused_with_what_to_do(damage):
    with pytest.raises(RecordingFormatError, match=r"make|give"):
        Recording(damage(samples_of((1, 1, 0, "f"))), frames_of([OUTER]))


def test_its_repr_is_one_line_of_facts(recording):
    bare = Recording(recording.samples, recording.frames, info=recording.info)
    assert repr(bare) == "<Recording: 4 samples of 2 threads over 2.500 s, 0 lost>"
    assert repr(recording).startswith("<Recording: 3 calls and 4 samples of 2 threads over")


def test_the_repr_of_a_recovered_one_tells_whose_it_is():
    info = {"spool_pid": 4711, "spool_written_ns": 1_800_000_000_000_000_000}
    recovered = Recording(tables.empty(tables.SAMPLES), tables.empty(tables.FRAMES), info=info)
    when = r"2027-01-1[45] \d\d:\d\d:00"  # in whatever zone this runs
    assert re.match(rf"<Recording by process 4711 until {when}: 0 samples", repr(recovered))


@pytest.mark.parametrize("suffix", [".pftrace", ".perfetto-trace"])
def test_a_perfetto_trace_is_not_loaded_and_the_error_says_what_is(recording, tmp_path, suffix):
    recording.to_perfetto(tmp_path / f"run{suffix}")
    with pytest.raises(RecordingFormatError, match=r"Perfetto trace.*ui\.perfetto\.dev.*\.json"):
        load(tmp_path / f"run{suffix}")


# Sums per function.


def sums(rec):
    table = rec.functions()
    assert table["ncalls"].isna().all()
    columns = ["function", "line_number", "total_ns", "self_ns", "samples"]
    return table[columns].to_numpy().tolist()


def test_time_counts_for_the_function_and_for_its_callers():
    rec = Recording(
        samples_of((1, 1, 0, "inner"), (2, 1, 0, "inner"), (3, 1, 1, "outer")),
        frames_of([OUTER, INNER], [OUTER]),
    )
    assert sums(rec) == [["inner", 20, 20, 20, 2], ["outer", 10, 30, 10, 3]]


def test_recursion_counts_once_in_the_total():
    rec = Recording(samples_of((1, 1, 0, "outer")), frames_of([OUTER, INNER, OUTER]))
    assert sums(rec) == [["outer", 10, 10, 10, 1], ["inner", 20, 10, 0, 1]]


def test_lines_of_one_function_are_summed_and_functions_of_one_name_are_not():
    other_line = ("python", "outer", "a.py", 13, 10)
    namesake = ("python", "outer", "b.py", 13, 10)
    rec = Recording(
        samples_of((1, 1, 0, "x"), (2, 1, 1, "x"), (3, 1, 2, "x")),
        frames_of([OUTER], [other_line], [namesake]),
    )
    assert rec.functions()[["filename", "self_ns"]].to_numpy().tolist() == [
        ["a.py", 20],
        ["b.py", 10],
    ]


def test_native_time_is_the_python_function_s_that_called_it():
    rec = Recording(samples_of((1, 1, 0, "outer")), frames_of([OUTER, NATIVE, KERNEL]))
    assert sums(rec) == [["outer", 10, 10, 10, 1]]


def test_a_thread_without_python_counts_for_its_native_functions():
    rec = Recording(samples_of((1, 1, 0, None)), frames_of([NATIVE, KERNEL]))
    assert sums(rec) == [["vfs_read", 0, 10, 10, 1], ["dgemm", 0, 10, 0, 1]]


def test_self_times_sum_to_the_recorded_time(recording):
    stackless = 10
    sampled = Recording(recording.samples, recording.frames)
    assert sampled.functions()["self_ns"].sum() == sampled.samples["weight_ns"].sum() - stackless


# Plain lists of dictionaries.


def test_traces_tell_each_sample_with_its_stack(recording):
    traces = recording.to_traces()
    assert traces[0] == {
        "timestamp": 10,
        "pid": 7,
        "tid": 1,
        "function": "inner",
        "filename": "a.py",
        "line_number": 1,
        "stack": [
            {"kind": "python", "function": "outer", "filename": "a.py", "line_number": 12},
            {"kind": "python", "function": "inner", "filename": "a.py", "line_number": 21},
            {"kind": "native", "function": "dgemm", "filename": "/lib/blas.so", "line_number": 0},
            {"kind": "kernel", "function": "vfs_read", "filename": "[kernel]", "line_number": 0},
        ],
    }
    assert [traces[2][x] for x in ("function", "filename", "line_number")] == [None, None, 0]
    assert traces[3]["stack"] == []
    assert json.loads(json.dumps(traces)) == traces


def test_traces_make_a_recording_that_gives_the_same_traces(recording):
    traces = recording.to_traces()
    assert from_traces(traces).to_traces() == traces
    assert from_traces([]).to_traces() == []


@pytest.mark.parametrize("traces", [[{}], [3], [{"timestamp": 1}], None])
def test_a_list_of_something_else_is_refused(traces):
    with pytest.raises(RecordingFormatError, match="give"):
        from_traces(traces)


# Saving and loading.


@pytest.mark.parametrize("name", ["saved", "file.json"])
def test_what_was_written_is_read_back_equal(recording, tmp_path, name):
    path = tmp_path / name
    (recording.to_json if name.endswith("json") else recording.save)(path)
    assert_same(pystack_nb.load(path), recording)
    assert [x.name for x in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["saved", "file.json"])
def test_a_decoded_and_an_empty_recording_are_read_back_equal(tmp_path, name):
    spool = spools.spool(spools.client(), spools.end(), *spools.code(1), spools.sample(1, [(1, 0)]))
    for n, data in enumerate([spool, spools.FILE_HEADER]):
        rec = Recording(*decode(data))
        path = tmp_path / f"{n}{name}"
        (rec.to_json if name.endswith("json") else rec.save)(path)
        assert_same(load(path), rec)


@pytest.mark.parametrize(
    ("name", "begin"),
    [("x.json", b'{"format"'), ("x.pftrace", b"\n"), ("X.Perfetto-Trace", b"\n"), ("x", None)],
)
def test_the_suffix_says_the_format(recording, tmp_path, name, begin):
    path = tmp_path / name
    recording.export(path)
    if begin is None:
        assert (path / "info.json").is_file()
    else:
        assert path.read_bytes().startswith(begin)


def test_an_unknown_suffix_writes_nothing(recording, tmp_path):
    with pytest.raises(ExportPathError, match=r"no format has the suffix '\.csv'"):
        recording.export(tmp_path / "x.csv")
    assert list(tmp_path.iterdir()) == []


def test_the_saved_folder_is_read_by_any_reader_of_parquet(recording, tmp_path):
    recording.save(tmp_path / "saved")
    names = sorted(x.name for x in (tmp_path / "saved").iterdir())
    tables_of = [f"{x}.parquet" for x in ("calls", "counts", "events", "samples", "stacks")]
    assert names == sorted([*tables_of, "info.json"])
    stacks = pd.read_parquet(tmp_path / "saved" / "stacks.parquet")
    assert stacks["function"].tolist() == recording.frames["function"].tolist()
    events = pd.read_parquet(tmp_path / "saved" / "events.parquet")
    assert json.loads(events["args"][0]) == recording.events["args"][0]


def test_a_folder_of_version_1_is_one_without_calls(recording, tmp_path):
    recording.save(tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "info.json").read_text())
    (tmp_path / "saved" / "info.json").write_text(json.dumps(about | {"version": 1}))
    for name in ("calls", "counts"):
        (tmp_path / "saved" / f"{name}.parquet").unlink()
    rec = load(tmp_path / "saved")
    pd.testing.assert_frame_equal(rec.samples, recording.samples)
    assert rec.calls.empty


def test_saving_again_replaces_a_recording(recording, tmp_path):
    Recording(samples_of(), frames_of()).save(tmp_path / "saved")
    recording.save(tmp_path / "saved")
    assert_same(load(tmp_path / "saved"), recording)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_holds_something_else_is_left_alone(recording, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExportPathError, match="name a new folder"):
        recording.save(tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("write", ["save", "to_json"])
def test_a_place_that_does_not_exist_is_an_error_with_what_to_do(recording, tmp_path, write):
    with pytest.raises(ExportPathError, match="name a place"):
        getattr(recording, write)(tmp_path / "nowhere" / "x")


def test_info_that_json_has_no_word_for_is_saved_as_what_is_nearest(tmp_path):
    info = {1: np.int64(5), "nan": float("nan"), "path": tmp_path, "array": np.arange(2)}
    Recording(samples_of(), frames_of(), None, info).save(tmp_path / "saved")
    assert load(tmp_path / "saved").info == {
        "1": 5,
        "nan": None,
        "path": str(tmp_path),
        "array": [0, 1],
    }


@pytest.mark.parametrize(
    "name",
    [f"{x}.parquet" for x in ("samples", "stacks", "events", "calls", "counts")] + ["info.json"],
)
@pytest.mark.parametrize("damage", ["gone", "half", "empty", "garbage"])
def test_a_damaged_folder_is_an_error_with_what_to_do(recording, tmp_path, name, damage):
    recording.save(tmp_path / "saved")
    file = tmp_path / "saved" / name
    data = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {"half": data[: len(data) // 2], "empty": b"", "garbage": b"x" * 99}[damage]
        )
    with pytest.raises(RecordingFormatError, match="save the recording again"):
        load(tmp_path / "saved")


def test_files_of_two_recordings_mixed_are_an_error(recording, tmp_path):
    recording.save(tmp_path / "a")
    Recording(samples_of(), frames_of()).save(tmp_path / "b")
    (tmp_path / "a" / "samples.parquet").replace(tmp_path / "b" / "samples.parquet")
    with pytest.raises(RecordingFormatError, match="another recording"):
        load(tmp_path / "b")


def test_nothing_and_other_folders_are_an_error_with_what_to_do(tmp_path):
    with pytest.raises(RecordingFormatError, match="give the folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(RecordingFormatError, match="give a folder"):
        load(tmp_path)
