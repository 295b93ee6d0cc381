"""What the package calls for itself is in no recording of calls."""

from __future__ import annotations

import threading

import pytest

import pystack_nb

from pystack_nb import PyStackProfiler
from pystack_nb.errors import ProfilerStateError
from pystack_nb.marks import emit


def leaf():
    pass


def marks_a_stretch(_):
    with pystack_nb.mark("x", a=1, b=object()):
        leaf()
    emit("layer", "y", 1, 2, {"a": [1]})


def asks_for_traces(profiler):
    profiler.get_stack_traces()
    leaf()


def starts_another_one(_):
    try:
        PyStackProfiler("calls", source="inprocess").start_profiling()
    except ProfilerStateError:
        leaf()


def stops_another_one(_):
    try:
        PyStackProfiler().stop_profiling()
    except ProfilerStateError:
        leaf()


def recovers(_):
    pystack_nb.recover()
    leaf()


@pytest.mark.parametrize(
    "program",
    [marks_a_stretch, asks_for_traces, starts_another_one, stops_another_one, recovers],
)
def test_what_the_package_calls_itself_is_not_recorded(program):
    # GIVEN a recording of the calls of this process
    profiler = PyStackProfiler("calls", source="inprocess")
    profiler.start_profiling()
    # WHEN a program asks the package for something
    try:
        program(profiler)
    finally:
        recording = profiler.stop_profiling()
    # THEN this thread has the program's own calls; others may live, such as a progress bar's
    calls = recording.calls
    mine = calls[calls["tid"] == threading.get_native_id()]
    assert mine["function"].tolist() == [program.__name__, "leaf"]
    found = recording.functions().set_index("function")["ncalls"]
    assert found[program.__name__] == found["leaf"] == 1
