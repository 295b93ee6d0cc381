from __future__ import annotations

import numpy as np
import pytest

from call_trees import PID, call, make_calls, threads_of_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_recording

from pystack_nb.errors import RecordingFormatError
from pystack_nb.nesting import by_thread, steps
from pystack_nb.recording import Recording


def recorded(threads):
    empty = make_recording([])
    return Recording(empty.samples, empty.frames, calls=make_calls(threads)).calls


def walked(calls, at_once=100):
    """Write the steps of each thread as (time, function, whether it begins)."""
    return {
        tid: [
            (ts_ns, calls["function"].iloc[row], begins)
            for piece in steps(calls, rows, at_once)
            for ts_ns, row, begins in zip(*(x.tolist() for x in piece), strict=True)
        ]
        for _, tid, rows in by_thread(calls)
    }


@settings(max_examples=60, deadline=None)  # a Recording takes milliseconds
@given(threads_of_calls("abc"), st.integers(1, 40))
def test_steps_are_those_of_a_walk_over_the_tree_whatever_the_size_of_a_piece(threads, at_once):
    def walk(node):
        yield node["start"], node["function"], True
        for child in node["children"]:
            yield from walk(child)
        yield node["end"], node["function"], False

    expected = {tid: [x for node in nodes for x in walk(node)] for tid, nodes in threads.items()}
    found = walked(recorded(threads), at_once)
    assert found == {tid: steps for tid, steps in expected.items() if steps}


def test_recursion_deeper_than_sixteen_bits_is_walked_to_its_end():
    depth = np.arange(40_000)
    one = recorded({PID: [call("f", 0, 1)]})
    calls = one.take(np.zeros(len(depth), np.int64), axis=0).assign(
        depth=depth, ts_ns=depth, dur_ns=80_000 - 2 * depth
    )
    ((_, _, rows),) = by_thread(calls)
    pieces = list(steps(calls, rows, 10_000))
    assert np.concatenate([x.row for x in pieces]).tolist() == [*depth, *depth[::-1]]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"depth": [1, 2]}, id="no outermost call"),
        pytest.param({"depth": [0, 2]}, id="a level is missing"),
        pytest.param({"dur_ns": [10, 30]}, id="a call ends before one that it made"),
    ],
)
def test_calls_that_do_not_nest_are_refused(changed):
    calls = recorded({PID: [call("a", 0, 20, call("b", 5, 10))]}).assign(**changed)
    with pytest.raises(RecordingFormatError, match="unchanged"):
        walked(calls)


def test_no_calls_are_no_steps():
    assert walked(recorded({})) == {}
