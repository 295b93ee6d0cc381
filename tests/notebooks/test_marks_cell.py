"""What a cell tells of itself is in its recording, of its own time and cut to it."""

from __future__ import annotations

import pytest


TABLE = """
_e = pystack_nb.last().events
_i = pystack_nb.last().info
"""


@pytest.fixture(autouse=True)
def no_recording_is_another_test_s(kernel):
    yield
    kernel.forget_recordings()


def events(kernel):
    kernel.run(TABLE, silent=True)
    return kernel.evaluate("list(zip(_e['kind'], _e['name'], _e['args']))")


MARKED = """
%%pystack {options}
import threading, time, pystack_nb
def work():
    with pystack_nb.mark("of a thread"):
        time.sleep(0.01)
with pystack_nb.mark("load", rows=10):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    pystack_nb.marks.emit("layer", "conv1", time.perf_counter_ns())
left = pystack_nb.mark("left open").__enter__()
"done"
"""

ALL = [
    ("mark", "cell", {}),
    ("mark", "load", {"rows": 10}),
    ("mark", "of a thread", {}),
    ("layer", "conv1", {}),
    ("mark", "left open", {"complete": False}),
]


@pytest.mark.parametrize("source", [pytest.param("ebpf", marks=pytest.mark.bpf), "inprocess"])
def test_marks_of_a_cell_are_events_of_its_recording(kernel, source):
    options = "--source inprocess" if source == "inprocess" else ""
    outcome = kernel.run(MARKED.strip().format(options=options))
    assert (outcome.status, outcome.value) == ("ok", "'done'")
    assert events(kernel) == ALL
    assert kernel.evaluate("_e['tid'].nunique()") == 2
    assert kernel.evaluate("bool((_e['ts_ns'] >= _i['start_ns']).all())")
    assert kernel.evaluate("bool((_e['ts_ns'] + _e['dur_ns'] <= _i['end_ns']).all())")
    assert kernel.run("left.__exit__(None, None, None)").status == "ok"


def test_a_cell_that_fails_has_the_marks_that_the_exception_passed(kernel):
    outcome = kernel.run(
        "%%pystack --source inprocess\nimport pystack_nb\nwith pystack_nb.mark('half'):\n    1 / 0"
    )
    assert outcome.error == "ZeroDivisionError"
    assert events(kernel)[1:] == [("mark", "half", {"raised": "ZeroDivisionError"})]


def test_a_later_cell_without_the_magic_marks_nothing(kernel):
    kernel.run("%%pystack --source inprocess\n1")
    assert kernel.run("with pystack_nb.mark('later'):\n    pass").status == "ok"
    assert events(kernel) == [("mark", "cell", {})]
