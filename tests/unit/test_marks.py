"""Events that a process tells of itself, without a collector: from `mark` to ``rec.events``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import spools

import pystack_nb

from pystack_nb import PyStackProfiler, event_file, load, mark, marks
from pystack_nb.errors import OptionError
from pystack_nb.event_file import EventFile, cleaned
from pystack_nb.spool import MARKS_SUFFIX, meta_block, spool_folder
from pystack_nb.trim_events import trim_events


@pytest.fixture(autouse=True)
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def kept(tmp_path):
    """Make a recording of no more than the events that a function tells."""

    def keep(tell):
        path = tmp_path / f"events{MARKS_SUFFIX}"
        file = marks.begin(path)
        try:
            tell()
        finally:
            marks.end(file)
        blocks = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        head = spools.spool(spools.client(), spools.start(start_ns=1), spools.end(end_ns=2**62))
        return PyStackProfiler.parse_stack_data(head + blocks)

    return keep


def test_a_mark_says_its_name_its_args_when_where_and_how_long(kept):
    before = time.perf_counter_ns()
    with mark("not recorded"):
        pass

    def tell():
        with mark("load data", rows=10, name="x"):
            time.sleep(0.002)

    event = kept(tell).events.iloc[0]
    assert (event["kind"], event["name"], event["args"]) == (
        *("mark", "load data"),
        {"rows": 10, "name": "x"},
    )
    assert before < event["ts_ns"] < event["ts_ns"] + event["dur_ns"] < time.perf_counter_ns()
    assert event["dur_ns"] >= 2_000_000
    assert (event["pid"], event["tid"]) == (os.getpid(), threading.get_native_id())


def test_marks_nest_and_a_passing_exception_ends_and_names_itself(kept):
    def tell():
        with contextlib.suppress(KeyError), mark("outer"):
            with contextlib.suppress(ZeroDivisionError), mark("inner", step=1):
                _ = 1 / 0
            _ = {}["no such key"]

    events = kept(tell).events.set_index("name")
    assert events["args"].to_dict() == {
        "outer": {"raised": "KeyError"},
        "inner": {"step": 1, "raised": "ZeroDivisionError"},
    }
    outer, inner = events.loc["outer"], events.loc["inner"]
    assert outer["ts_ns"] <= inner["ts_ns"]
    assert inner["ts_ns"] + inner["dur_ns"] <= outer["ts_ns"] + outer["dur_ns"]


def test_as_a_decorator_it_marks_each_call_of_a_function_coroutine_or_generator(kept):
    @mark("double", of=2)
    def double(x):
        """Double a number."""
        return 2 * x

    @mark("wait")
    async def wait(x):
        await asyncio.sleep(0.001)
        return x

    @mark("count")
    def count():
        got = yield 1
        return got

    def tell():
        assert [double(1), double(x=2)] == [2, 4]
        assert asyncio.run(wait(5)) == 5
        running = count()
        assert next(running) == 1
        with pytest.raises(StopIteration) as ended:
            running.send(7)
        assert ended.value.value == 7

    events = kept(tell).events
    assert double.__doc__ == "Double a number."
    assert events["name"].tolist() == ["double", "double", "wait", "count"]
    assert (events["dur_ns"][2:3] >= 1_000_000).all()


def test_an_asynchronous_generator_is_refused_with_what_to_do_instead():
    with pytest.raises(OptionError, match=r"use `with mark\(...\)` inside it"):

        @mark("x")
        async def count():
            yield 1


def test_threads_mark_at_the_same_time_and_nothing_is_lost_or_mixed(kept):
    def work(number):
        for step in range(2000):
            with mark(f"thread {number}", step=step):
                marks.emit("layer", f"layer {number}", step, 1)

    def tell():
        threads = [threading.Thread(target=work, args=(x,)) for x in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    rec = kept(tell)
    for number in range(4):
        own = rec.events[rec.events["name"] == f"thread {number}"]
        assert [x["step"] for x in own["args"]] == list(range(2000))
        assert len(set(own["tid"])) == 1
        assert np.count_nonzero(rec.events["name"] == f"layer {number}") == 2000
    assert len(set(rec.events["tid"])) == 4
    assert "events-lost" not in rec.info["lost_by_cause"]


class Broken:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (2**63, str(2**63)),
        (float("nan"), "nan"),
        (-float("inf"), "-inf"),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        ("x" * 2000, "x" * 1000),
        ([1, (2, {3: b"x"})], [1, [2, {"3": "b'x'"}]]),
        (range(3), "range(0, 3)"),
        (list(range(1000)), [*range(199), "..."]),
    ],
)
def test_args_become_what_json_has_or_their_repr_cut(value, expected):
    found = cleaned({"x": value})["x"]
    assert found == expected
    assert type(found) is type(expected)


def test_args_whose_repr_fails_or_that_contain_themselves_break_nothing():
    own: list = []
    own.append(own)
    text = json.dumps(cleaned({"a": Broken(), "b": own, "c": 10**5000}), allow_nan=False)
    assert len(text) < 4000


def test_odd_names_keys_and_times_of_one_event_do_not_spoil_the_others(kept):
    def tell():
        with mark(5):  # type: ignore[arg-type]
            marks.emit("layer", "x" * 2000, np.int64(7), np.int32(3), {4: 1, (1, 2): "pair"})

    events = kept(tell).events
    assert events["name"].tolist() == ["x" * 1000, "5"]
    assert events["args"][0] == {"4": 1, "(1, 2)": "pair"}
    assert events["dur_ns"][0] == 3


def test_events_survive_saving_and_loading_with_odd_names(kept, tmp_path):
    def tell():
        with mark("lone \udcff", text="\udcff", ü="é"):
            marks.emit("fault", "conv1", 5, 0, {"bit": 30})

    rec = kept(tell)
    rec.save(tmp_path / "saved")
    rec.to_json(tmp_path / "saved.json")
    rec.to_perfetto(tmp_path / "saved.pftrace")
    assert rec.events["name"].tolist() == ["conv1", "lone \\udcff"]
    for path in ("saved", "saved.json"):
        columns = ["ts_ns", "dur_ns", "pid", "tid", "kind", "name"]
        pd.testing.assert_frame_equal(load(tmp_path / path).events[columns], rec.events[columns])


def test_a_profiler_s_recording_has_the_marks_and_leaves_no_file(runtime):
    profiler = PyStackProfiler(mode="calls", source="inprocess")
    with profiler, mark("inside"), mark("deeper"):
        pass
    with mark("after"):
        pass
    rec = profiler.recording
    assert rec.events["name"].tolist() == ["inside", "deeper"]
    assert rec.events["ts_ns"].between(rec.info["start_ns"], rec.info["end_ns"]).all()
    assert [x for x in runtime.rglob("*") if x.is_file()] == []


def test_a_mark_that_is_open_at_the_end_lasts_until_it_and_says_so():
    profiler = PyStackProfiler(mode="calls", source="inprocess")
    profiler.start_profiling()
    with mark("open", step=3):
        rec = profiler.stop_profiling()
    event = rec.events.iloc[0]
    assert event["args"] == {"step": 3, "complete": False}
    assert event["ts_ns"] + event["dur_ns"] == rec.info["end_ns"]


def test_a_forked_child_writes_nothing_into_its_parent_s_recording(kept):
    def tell():
        with mark("both"):
            child = os.fork()
            if not child:
                with mark("child"):
                    marks.emit("layer", "child", 1)
            else:
                os.waitpid(child, 0)
        if not child:
            os._exit(0)

    rec = kept(tell)
    assert rec.events["name"].tolist() == ["both"]
    assert rec.events["args"].tolist() == [{}]


KILLED = """
import os, signal
from pystack_nb import PyStackProfiler, mark, marks

PyStackProfiler(mode="calls", source="inprocess").start_profiling()
for number in range(20):
    with mark("step", number=number):
        marks.emit("layer", "conv", 5, 1)
with mark("the last", fatal=True):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("cut", [0, 7])
def test_marks_of_a_killed_process_are_recovered_and_the_file_removed(cut):
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    (path,) = spool_folder().glob(f"*{MARKS_SUFFIX}")
    if cut:  # killed while it wrote
        with path.open("ab") as file:
            file.write(path.read_bytes()[:cut])
    (rec,) = pystack_nb.recover(keep=False)
    assert rec.events["name"].value_counts().to_dict() == {"step": 20, "conv": 20, "the last": 1}
    args = rec.events.set_index("name").loc["the last", "args"]
    assert args == {"fatal": True, "complete": False}
    assert list(spool_folder().iterdir()) == []


def test_what_cannot_be_written_is_counted_and_the_program_not_disturbed(kept, monkeypatch):
    write = os.write

    def tell():
        with mark("before"):
            pass
        with monkeypatch.context() as full:  # the disk
            full.setattr(event_file.os, "write", lambda fd, data: write(fd, data[:20]))
            with mark("lost"):
                pass
        with mark("after"):
            pass

    rec = kept(tell)
    assert rec.events["name"].tolist() == ["before", "after"]
    assert rec.info["lost_by_cause"]["events-lost"] == rec.info["lost"] == 2
    assert any("events of the process itself were not kept" in x for x in rec.info["notes"])


def test_a_bound_holds_for_what_a_recording_takes(kept, monkeypatch):
    monkeypatch.setattr(event_file, "_MOST_EVENTS", 100)

    def tell():
        for number in range(300):
            marks.emit("layer", "conv", number, 1)

    rec = kept(tell)
    assert rec.events["ts_ns"].tolist() == list(range(100))
    assert rec.info["lost_by_cause"]["events-lost"] == 200


def test_a_bound_holds_for_what_waits_to_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file, "_MOST_WAITING", 50)
    file = EventFile(tmp_path / "x.marks")
    with file._lock:  # another thread's write takes long
        thread = threading.Thread(
            target=lambda: [file.add(("layer", "a", 1, 1, 1, {}, 0)) for _ in range(80)]
        )
        thread.start()
        thread.join()
    assert len(file._rows) == 50
    assert file._lost == 30


@pytest.mark.parametrize(
    "block",
    [
        {"pid": 1},
        {"pid": 1, "kinds": ["a"], "names": ["b"], "contents": [{}], "columns": {}},
        {"lost": "many"},
        {
            "pid": 1,
            "kinds": [],
            "names": ["b"],
            "contents": [{}],
            "columns": {x: [0] for x in event_file.COLUMNS},
        },
        {
            "pid": 1,
            "kinds": ["a"],
            "names": [5],
            "contents": [{}],
            "columns": {x: [0] for x in event_file.COLUMNS},
        },
        {
            "pid": 1,
            "kinds": ["a"],
            "names": ["b"],
            "contents": [{}],
            "columns": {x: [2**70] for x in event_file.COLUMNS},
        },
    ],
)
def test_a_damaged_block_is_left_out_and_the_others_are_read(block):
    good = {
        "pid": 1,
        "kinds": ["mark"],
        "names": ["b"],
        "contents": [{}],
        "columns": {x: [0] for x in event_file.COLUMNS},
    }
    data = spools.spool(spools.client()) + b"".join(
        meta_block({"role": "events", **x}) for x in (block, good)
    )
    rec = PyStackProfiler.parse_stack_data(data)
    assert rec.events["name"].tolist() == ["b"]
    assert any("events is damaged" in x for x in rec.info["notes"])


def test_a_cell_s_events_are_those_of_its_time_cut_to_it(kept):
    def tell():
        for ts_ns, dur_ns, name in [
            (0, 5, "before"),
            (5, 10, "into"),
            (12, 3, "inside"),
            (15, 10, "beyond"),
            (25, 1, "after"),
        ]:
            marks.emit("mark", name, ts_ns, dur_ns, {"x": 1})

    cell = {"pid": 1, "tid": 2, "start_ns": 10, "end_ns": 20}
    found = trim_events(kept(tell).events, cell)
    rows = found[["name", "ts_ns", "dur_ns", "args"]].to_numpy().tolist()
    assert rows == [
        ["cell", 10, 10, {}],
        ["into", 10, 5, {"x": 1}],
        ["inside", 12, 3, {"x": 1}],
        ["beyond", 15, 5, {"x": 1, "complete": False}],
    ]
