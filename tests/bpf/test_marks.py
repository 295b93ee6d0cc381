"""Marks beside what the kernel's probes see, and when a process does not live to end them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pystack_nb

from pystack_nb import PyStackProfiler, mark


KILLED = """
import os, signal, time
from pystack_nb import PyStackProfiler, mark

PyStackProfiler(hz=499).start_profiling()
with mark("load", rows=10):
    end = time.thread_time() + 0.3
    while time.thread_time() < end:
        sum(range(500))
with mark("fatal"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(500))


def test_samples_fall_into_the_mark_around_what_they_show():
    with PyStackProfiler(hz=499) as profiler:
        burn(0.1)
        with mark("burning", seconds=0.3):
            burn(0.3)
        burn(0.1)
    rec = profiler.recording
    event = rec.events.iloc[0]
    inside = rec.samples["ts_ns"].between(event["ts_ns"], event["ts_ns"] + event["dur_ns"])
    assert 0.3 < inside.mean() < 0.95
    assert (rec.samples.loc[inside, "tid"] == event["tid"]).any()
    assert set(rec.samples["pid"]) == {event["pid"]}


def test_marks_and_samples_of_a_killed_process_are_recovered_together(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    (rec,) = pystack_nb.recover(keep=False)
    assert len(rec.samples)
    assert rec.events["name"].tolist() == ["load", "fatal"]
    assert rec.events["args"].tolist() == [{"rows": 10}, {"complete": False}]
    assert [x for x in tmp_path.rglob("*") if x.is_file()] == []


def test_a_recording_of_another_process_has_no_marks_of_this_one():
    child = os.fork()
    if not child:
        burn(60)
        os._exit(0)
    try:
        profiler = PyStackProfiler(hz=499)
        profiler.start_profiling(child)
        with mark("here"):
            time.sleep(0.2)
        rec = profiler.stop_profiling()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(rec.samples)
    assert not len(rec.events)
