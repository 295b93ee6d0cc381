from __future__ import annotations

import numpy as np
import pytest

from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import PERIOD_NS, PID, START_NS, frame, make_recording

from pystack_nb.views.threads import threads
from pystack_nb.views.timeline import layout, slices


HZ = {"asked": 1000, "reached": 1000}


def drawn(table):
    """Turn slices into (tid, depth, function, first period, periods, samples)."""
    return [
        (tid, depth, function, (ts - START_NS) / PERIOD_NS, dur / PERIOD_NS, samples)
        for tid, depth, function, ts, dur, samples in zip(
            *(table[x] for x in ("tid", "depth", "function", "ts_ns", "dur_ns", "samples")),
            strict=True,
        )
    ]


def record(samples, **info):
    return make_recording(samples, **({"hz": HZ} | info))


def test_frames_that_consecutive_samples_share_become_one_slice():
    recording = record([(0, PID, "ab"), (1, PID, "abc"), (2, PID, "ad")])
    assert drawn(slices(recording)) == [
        (PID, 0, "a", 0, 3, 3),
        (PID, 1, "b", 0, 2, 2),
        (PID, 1, "d", 2, 1, 1),
        (PID, 2, "c", 1, 1, 1),
    ]


def test_a_function_that_is_called_again_from_another_one_is_a_new_slice():
    recording = record([(0, PID, "abx"), (1, PID, "acx")])
    table = slices(recording)
    assert [x[:5] for x in drawn(table[table["function"] == "x"])] == [
        (PID, 2, "x", 0, 1),
        (PID, 2, "x", 1, 1),
    ]


def test_a_gap_of_more_than_two_and_a_half_periods_breaks_the_slices():
    recording = record([(0, PID, "a"), (2, PID, "a"), (5, PID, "a")])
    assert drawn(slices(recording)) == [(PID, 0, "a", 0, 3, 2), (PID, 0, "a", 5, 1, 1)]


def test_the_executing_line_does_not_break_a_slice():
    one, other = ("python", "f", "/a.py", 10, 3), ("python", "f", "/a.py", 11, 3)
    table = slices(record([(0, PID, [one]), (1, PID, [other])]))
    assert drawn(table) == [(PID, 0, "f", 0, 2, 2)]
    assert table["line_number"].tolist() == [3]


def test_functions_of_equal_names_in_other_files_are_told_apart():
    recording = record([(0, PID, ["f /a.py"]), (1, PID, ["f /b.py"])])
    assert slices(recording)["filename"].tolist() == ["/a.py", "/b.py"]


def test_threads_whose_samples_alternate_are_joined_each_for_itself():
    recording = record([(0, PID, "a"), (0, 102, "b"), (1, PID, "a"), (1, 102, "b")])
    assert drawn(slices(recording)) == [(PID, 0, "a", 0, 2, 2), (102, 0, "b", 0, 2, 2)]


def test_samples_without_frames_end_what_ran_before():
    recording = record([(0, PID, "a"), (1, PID, ""), (2, PID, "a")])
    assert drawn(slices(recording)) == [(PID, 0, "a", 0, 1, 1), (PID, 0, "a", 2, 1, 1)]


@settings(max_examples=40, deadline=None)  # a Recording takes milliseconds
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from([PID, 101]), st.text("ab", max_size=4)),
        max_size=25,
        unique_by=lambda x: x[:2],
    )
)
def test_slices_are_what_a_loop_over_the_samples_makes(samples):
    # GIVEN the slices of a plain loop, thread by thread
    expected = []
    for tid in (PID, 101):
        own = sorted(x for x in samples if x[1] == tid)
        open_ = []
        for number, (period, _, stack) in enumerate(own):
            before = own[number - 1] if number and period - own[number - 1][0] <= 2 else None
            common = 0
            while before and stack[common : common + 1] == before[2][common : common + 1] != "":
                common += 1
            for entry in open_[common:]:
                entry[4] += period if before else own[number - 1][0] + 1
            del open_[common:]
            for depth in range(common, len(stack)):
                open_.append([tid, depth, stack[depth], period, -period, 0])
                expected.append(open_[-1])
            for entry in open_:
                entry[5] += 1
        for entry in open_:
            entry[4] += own[-1][0] + 1
    # THEN they are equal to the vectorised ones
    table = slices(record(sorted(samples)))
    assert sorted(drawn(table)) == sorted(tuple(x) for x in expected)


def test_what_is_shorter_than_a_pixel_is_merged_into_what_most_samples_share():
    # GIVEN 1,000 samples, of which each pixel's ten are seven times in "a" and three in "b"
    recording = record([(i, PID, ["m", "a" if i % 10 < 7 else "b"]) for i in range(1000)])
    # WHEN they are drawn over 100 pixels
    table = slices(recording, columns=100)
    # THEN there is one stretch of "a", and no sample is missing
    assert drawn(table) == [(PID, 0, "m", 0, 1000, 1000), (PID, 1, "a", 0, 1000, 1000)]


def test_idle_stretches_stay_visible_when_pixels_are_merged():
    recording = record([(i, PID, "m") for i in range(1000) if not 300 <= i < 600])
    assert drawn(slices(recording, columns=100)) == [
        (PID, 0, "m", 0, 300, 300),
        (PID, 0, "m", 600, 400, 400),
    ]


def test_only_the_outermost_frames_are_kept_when_a_depth_is_given():
    recording = record([(0, PID, "abcd"), (1, PID, "abce")])
    assert slices(recording, max_depth=2)["function"].tolist() == ["a", "b"]


def test_the_main_thread_comes_first_then_the_busiest():
    recording = record(
        [(0, 101, "a"), (0, 102, "a"), (1, 102, "a"), (0, PID, "a")],
        thread_names={"102": "ThreadPoolExecutor-0_0"},
    )
    assert threads(recording) == [
        (PID, "main", 1, "sample"),
        (102, "ThreadPoolExecutor-0_0", 2, "sample"),
        (101, "worker-101", 1, "sample"),
    ]


def test_rows_lie_below_each_other_and_hold_their_slices():
    recording = record([(0, PID, "abc"), (0, 102, ""), (0, 103, "xy"), (1, 103, "xy")])
    picture = layout(recording)
    assert [(row.tid, row.top, row.levels) for row in picture.rows] == [
        (PID, 0, 3),
        (103, 3, 2),
        (102, 5, 1),
    ]
    levels = dict(zip(picture.slices["function"], picture.slices["level"], strict=True))
    assert levels == {"a": 0, "b": 1, "c": 2, "x": 3, "y": 4}


def test_a_layout_keeps_its_bounds_and_counts_what_it_leaves_out():
    # GIVEN many threads, deep stacks and a new function in each sample
    recording = record([(i, PID + i % 30, [f"f{i + d}" for d in range(40)]) for i in range(3000)])
    # WHEN it is laid out
    picture = layout(recording, max_depth=10, max_threads=5, max_slices=200)
    # THEN the bounds hold
    assert len(picture.rows) == 5
    assert picture.hidden_threads == 25
    assert len(picture.slices) == 200
    assert picture.hidden_slices > 0
    assert picture.slices["depth"].max() < 10
    assert picture.levels <= 50


def test_the_axis_spans_the_recording_even_where_it_was_idle():
    recording = record([(5, PID, "a")], end_ns=START_NS + 20 * PERIOD_NS)
    picture = layout(recording)
    assert (picture.start_ns, picture.end_ns) == (START_NS, START_NS + 20 * PERIOD_NS)


@pytest.mark.parametrize("columns", [None, 100])
def test_nothing_recorded_gives_no_slices_with_the_right_columns(columns):
    table = slices(record([]), columns=columns)
    assert len(table) == 0
    assert set(table) >= {"tid", "depth", "ts_ns", "dur_ns", "function", "filename", "samples"}
    assert layout(record([])).rows == []


def test_native_and_kernel_frames_are_slices_too():
    stack = ["f", frame("dot", kind="native"), frame("do_futex", kind="kernel")]
    table = slices(record([(0, PID, stack)]))
    assert table["kind"].tolist() == ["python", "native", "kernel"]
    assert table["dur_ns"].dtype == np.int64


def test_levels_that_are_not_drawn_are_counted_in_the_threads_that_are():
    samples = [(i, PID, "ab" * 12) for i in range(9)] + [(9, 102, "ab" * 30)]
    assert layout(record(samples), max_threads=1).hidden_levels == 4
    assert layout(record(samples), max_depth=24, max_threads=1).hidden_levels == 0
    assert layout(record(samples)).hidden_levels == 40
    assert layout(record([])).hidden_levels == 0
