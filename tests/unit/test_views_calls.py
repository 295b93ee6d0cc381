from __future__ import annotations

import re

from itertools import pairwise
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from call_trees import PID, call, make_calls, threads_of_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import PERIOD_NS, START_NS, frame, make_recording

from pystack_nb.recording import Recording
from pystack_nb.views.call_slices import CallSlices
from pystack_nb.views.result import mimebundle
from pystack_nb.views.svg import timeline_svg
from pystack_nb.views.text import facts, summary, top_functions, warnings
from pystack_nb.views.threads import Thread, calling_threads
from pystack_nb.views.timeline import layout


LEAF = {"function": "leaf", "filename": "/src/cell.py", "line_number": 2}


def recording_of(threads, *, samples=(), counted=0, unit_ns=1, **info):
    base = make_recording(samples, **({"mode": "sample,calls"} | info))
    counts = pd.DataFrame([LEAF | {"ncalls": counted, "total_ns": counted}] if counted else [])
    calls = make_calls(threads, START_NS, unit_ns)
    return Recording(base.samples, base.frames, None, base.info, calls, counts if counted else None)


def drawn(table):
    """Turn slices into (tid, depth, function, start, length, number of calls)."""
    columns = ("tid", "depth", "function", "ts_ns", "dur_ns", "count")
    rows = zip(*(table[x].tolist() for x in columns), strict=True)
    return [(tid, depth, name, ts - START_NS, dur, n) for tid, depth, name, ts, dur, n in rows]


def merged(threads, *pixels, max_depth=20):
    recording = recording_of(threads)
    slices = CallSlices(recording, calling_threads(recording), max_depth)
    for pixel in pixels:
        table = slices.merge(START_NS, pixel)
    return drawn(table)


def test_calls_wider_than_a_pixel_are_drawn_exactly():
    work = call("main", 0, 100, call("a", 10, 40, call("b", 15, 30)), call("a", 40, 60))
    assert merged({PID: [work], 102: [call("run", 5, 25)]}, 10) == [
        (PID, 0, "main", 0, 100, 1),
        (102, 0, "run", 5, 20, 1),
        (PID, 1, "a", 10, 30, 1),
        (PID, 1, "a", 40, 20, 1),
        (PID, 2, "b", 15, 15, 1),
    ]


def test_narrower_ones_become_a_stretch_of_what_takes_the_most_time():
    # GIVEN in each pixel two calls of "a", with one of "x" in each, and a shorter one of "b"
    calls = [
        call(name, pixel * 100 + start, pixel * 100 + start + length, *inner)
        for pixel in range(3)
        for name, start, length, inner in [
            ("a", 0, 30, [call("x", pixel * 100 + 5, pixel * 100 + 15)]),
            ("b", 30, 20, [call("y", pixel * 100 + 31, pixel * 100 + 49)]),
            ("a", 60, 30, [call("x", pixel * 100 + 65, pixel * 100 + 75)]),
        ]
    ]
    # WHEN they are drawn
    slices = merged({PID: [call("main", 0, 300, *calls)]}, 100)
    # THEN what is called by the one that is drawn lies below it
    assert slices == [
        (PID, 0, "main", 0, 300, 1),
        (PID, 1, "a", 0, 290, 9),
        (PID, 2, "x", 5, 270, 6),
    ]


def test_a_gap_wider_than_a_pixel_stays_one():
    calls = [call("a", x, x + 5) for x in (0, 8, 60, 66)]
    assert merged({PID: calls}, 10) == [(PID, 0, "a", 0, 13, 2), (PID, 0, "a", 60, 11, 2)]


def test_calls_of_different_callers_are_not_merged():
    calls = [call("f", x, x + 10, call("g", x, x + 8)) for x in (0, 10)]
    assert merged({PID: calls}, 10)[2:] == [(PID, 1, "g", 0, 8, 1), (PID, 1, "g", 10, 8, 1)]


@settings(max_examples=60, deadline=None)  # a Recording takes milliseconds
@given(threads_of_calls("abc", most=60), st.lists(st.integers(1, 30), min_size=1, max_size=3))
def test_slices_nest_count_and_name_what_was_called_there(threads, pixels):
    calls = recording_of(threads).calls
    slices = merged(threads, *sorted(pixels))
    assert sum(x[5] for x in slices if x[1] == 0) == (calls["depth"] == 0).sum()
    began = {}
    columns = (calls[x].tolist() for x in ("tid", "depth", "function", "ts_ns"))
    for tid, depth, name, ts_ns in zip(*columns, strict=True):
        began.setdefault((tid, depth, name), []).append(ts_ns - START_NS)
    for tid, depth, name, start, length, _ in slices:
        assert any(start <= x <= start + length for x in began[tid, depth, name])
    for one, following in pairwise(slices):
        assert one[:2] != following[:2] or one[3] + one[4] <= following[3]


def test_without_pixels_to_spare_every_call_of_positive_length_is_a_slice():
    threads = {PID: [call("f", x, x + 3, call("g", x + 1, x + 2)) for x in range(0, 40, 4)]}
    assert len(merged(threads, 1)) == 20


def test_the_main_thread_comes_first_then_the_busiest():
    recording = recording_of(
        {101: [call("f", 0, 5), call("f", 5, 6)], 102: [call("f", 0, 9)], PID: [call("f", 0, 1)]},
        thread_names={"102": "ThreadPoolExecutor-0_0"},
    )
    assert calling_threads(recording) == [
        Thread(PID, "main", 1, "call"),
        Thread(102, "ThreadPoolExecutor-0_0", 1, "call"),
        Thread(101, "thread", 2, "call"),
    ]


def test_threads_without_calls_are_drawn_by_their_samples():
    # GIVEN a thread with calls and samples, and one with samples alone
    recording = recording_of(
        {PID: [call("fit", 0, 5)]},
        samples=[(0, PID, "m"), (0, 102, [frame("dgemm", kind="native")])],
        unit_ns=PERIOD_NS,
    )
    # THEN each is drawn once, by the best that is known of it
    picture = layout(recording)
    assert [(row.tid, row.unit, row.size) for row in picture.rows] == [
        (PID, "call", 1),
        (102, "sample", 1),
    ]
    assert picture.slices["function"].tolist() == ["fit", "dgemm"]
    assert picture.slices["unit"].tolist() == ["call", "sample"]


def test_a_layout_keeps_its_bounds_and_counts_what_it_leaves_out():
    # GIVEN many threads with deep recursion and functions that change at every pixel
    def chain(start, depth):
        inner = [chain(start, depth - 1)] if depth else []
        return call(f"f{start % 7}_{depth}", start, start + 10, *inner)

    threads = {PID + n: [chain(x * 10 + n, 30) for x in range(40)] for n in range(20)}
    recording = recording_of(threads, end_ns=START_NS + 500)
    # WHEN it is laid out
    picture = layout(recording, max_depth=10, max_threads=5, max_slices=200)
    # THEN the bounds hold
    assert len(picture.rows) == 5
    assert picture.hidden_threads == 15
    assert picture.hidden_levels == 21
    assert len(picture.slices) == 200
    assert picture.hidden_slices > 0
    assert picture.slices["level"].max() < 50


@pytest.fixture
def recording():
    leaves = [call("leaf", 100 * x, 100 * x + 10) for x in range(6)]
    main = call("<module>", 0, 1000, call("fit /src/model.py", 0, 600, *leaves))
    worker = call("run /lib/pool.py", 500, 750, call("len", 500, 600, kind="c-call"))
    return recording_of(
        {PID: [main], 102: [worker]}, unit_ns=1_000_000, samples=[(0, PID, ["<module>"])]
    )


def test_the_facts_say_how_many_calls_and_samples(recording):
    assert facts(recording).startswith("1.50 s · 10 calls, 1 sample of 2 threads · ")
    calls_only = recording_of({PID: [call("f", 0, 1)]}, mode="calls", counted=3000)
    assert facts(calls_only) == "1.50 s · 1 call, 3,000 only counted of 1 thread"


def test_the_functions_have_their_number_of_calls(recording):
    lines = summary(recording).splitlines()
    assert re.fullmatch(r"      self +total +calls  function", lines[2])
    assert re.fullmatch(r"  1 +540 ms +43% +600 ms +48% +1  fit +src/model.py:1", lines[3])
    assert re.fullmatch(r"  5 +60.0 ms +5% +60.0 ms +5% +6  leaf +src/cell.py:1", lines[7])
    words = re.findall(r">([^<>]+)<", mimebundle(recording)["text/html"])
    assert {"calls", "540 ms", "6"} <= set(words)


def test_the_text_timeline_shows_which_call_was_innermost_when(recording):
    recording.info["mode"] = "calls"  # its one sample says nothing of when it ran
    rows = [x.partition("|")[2][:-1] for x in summary(recording).splitlines() if x.endswith("|")]
    main, worker = rows
    # Of 1 s, "fit" has 0.6, with what it calls, and the module 0.4; "run" follows on "len".
    assert re.fullmatch("(5?1{3,7}){6}2{28,30}", main)
    assert re.fullmatch(" {36}4{7,8}3{10,11} {18}", worker)


def test_the_svg_tells_calls_from_samples_and_says_what_was_merged():
    short = [call("leaf", 1000 * x, 1000 * x + 500) for x in range(1500)]
    recording = recording_of({PID: [call("main", 0, 1_500_000, *short)]}, unit_ns=1000)
    titles = [
        x.text
        for x in ET.fromstring(timeline_svg(recording)).iter("{http://www.w3.org/2000/svg}title")
    ]
    assert titles[:2] == ["main, thread 100: 1,501 calls", "main\nsrc/cell.py:1\n1.50 s, 1 call"]
    assert "1,500 calls that are too short to draw" in titles[2]


def test_the_svg_is_bounded_whatever_was_called():
    calls = [
        call(f"{'é' * 100}{x} /a/{'b' * 100}{x % 50}.py", 3 * x, 3 * x + 2) for x in range(20_000)
    ]
    picture = timeline_svg(recording_of({PID: calls}, end_ns=START_NS + 60_000))
    assert len(picture.encode()) < 300_000


def test_reduced_modes_are_said_in_words():
    often = LEAF | {"since_ns": START_NS + 20_000_000, "until_ns": None, "counted": 1_200_000}
    demoted = [*(often | {"function": f"f{x}", "counted": 1} for x in range(7)), often]
    recording = recording_of({PID: [call("f", 0, 1)]}, source="inprocess", demoted=demoted)
    found = warnings(recording)
    assert len(found) == 2
    assert "source inprocess" in found[0]
    assert "leaf (src/cell.py:2) 1,200,000 calls from 20.0 ms on; " in found[1]
    assert "; and 3 more. What they took since then stands at their callers" in found[1]
    for view in mimebundle(recording).values():
        assert "1,200,000 calls from 20.0 ms on" in view


def test_demoted_functions_are_marked_where_only_calls_say_what_they_took():
    demoted = [LEAF | {"since_ns": START_NS, "until_ns": None, "counted": 9}]
    work = call("main", 0, 90, call("leaf", 10, 20))
    recording = recording_of({PID: [work]}, demoted=demoted)
    recording.info["demoted"][0] |= {"line_number": 1}  # as calls have it here
    assert [x.mark for x in top_functions(recording)] == ["", "*"]
    assert re.search(r"10 ns +11% +10 ns +11% +1  leaf\* ", summary(recording))
    assert "leaf*" in mimebundle(recording)["text/html"]


@pytest.mark.parametrize(("ticks", "total"), [(9, "9 ns +10%"), (0, "-")])
def test_the_own_time_of_functions_that_were_only_counted_is_not_said_to_be_0(ticks, total):
    recording = recording_of({PID: [call("main", 0, 90)]}, mode="calls", counted=9)
    recording.counts["total_ns"] = ticks
    _, leaf = top_functions(recording)
    assert (leaf.self_ns, leaf.self_share) == (None, None)
    assert (leaf.total_ns, leaf.ncalls) == (ticks or None, 9)
    views = mimebundle(recording)
    assert re.search(rf" -  +{total} +9  leaf ", views["text/plain"])
    assert all("0 ns" not in view.split("leaf")[0].split("main")[-1] for view in views.values())
    assert ">-</td>" in views["text/html"]
    # In the table, rows still sum to what was recorded.
    assert recording.functions()["self_ns"].sum() == 90


def test_demoted_functions_are_ranked_by_samples_and_the_reader_is_told():
    # GIVEN calls that say "main", and samples that say "leaf"
    demoted = [LEAF | {"since_ns": START_NS, "until_ns": None, "counted": 9}]
    stacks = [["main", "leaf"]] * 3 + [["main"]]
    samples = [(n, PID, stack) for n, stack in enumerate(stacks)]
    calls = {PID: [call("main", 0, 90, call("leaf", 10, 20), call("other", 30, 31))]}
    recording = recording_of(calls, samples=samples, demoted=demoted, counted=9)
    # THEN the table is the samples', without what they don't know, and says so
    assert [(x.function, x.self_share, x.mark) for x in top_functions(recording)] == [
        ("leaf", 0.75, ""),
        ("main", 0.25, ""),
    ]
    for view in mimebundle(recording).values():
        assert "times of functions are of samples" in view


def test_threads_whose_calls_ended_early_are_drawn_by_their_samples():
    # GIVEN calls that were recorded for the first of four periods only
    samples = [(n, PID, ["main"]) for n in range(4)]
    calls = {PID: [call("main", 0, PERIOD_NS)], 102: [call("run", 0, 9)]}
    recording = recording_of(calls, samples=samples, calls_stopped="budget")
    # THEN what came later is shown
    assert [(x.tid, x.unit) for x in layout(recording).rows] == [(PID, "sample"), (102, "call")]
    of_main = drawn(layout(recording).slices)[-1]
    assert (*of_main[:4], of_main[5]) == (PID, 0, "main", 0, 4)
    assert of_main[4] >= 4 * PERIOD_NS
    # but where nothing was sampled
    alone = recording_of(calls, calls_stopped="budget")
    assert [x.unit for x in layout(alone).rows] == ["call", "call"]


def sleeping(**info):
    """30 periods asleep, 40 in which it runs, 30 asleep, within one call."""
    samples = [(n, PID, ["main"]) for n in range(30, 70)]
    end_ns = START_NS + 100 * PERIOD_NS
    calls = {PID: [call("main", 0, 100 * PERIOD_NS)]}
    return recording_of(calls, samples=samples, end_ns=end_ns, **info)


def test_where_both_modes_ran_a_call_that_waits_is_pale_for_that_time():
    recording = sleeping()
    first, last = sorted(layout(recording).pauses[["ts_ns", "dur_ns"]].to_numpy().tolist())
    assert first == [START_NS, 30 * PERIOD_NS]
    assert last[0] == pytest.approx(START_NS + 70 * PERIOD_NS, abs=PERIOD_NS / 100)
    picture = timeline_svg(recording)
    ET.fromstring(picture)
    assert picture.count('fill="#fff"') == 2
    assert "pale: the thread was not running" in picture
    figure = recording.plot_timeline()
    assert len(figure.axes[0].collections[1].get_paths()) == 2
    assert "pale: the thread was not running" in [x.get_text() for x in figure.axes[0].texts]
    text = summary(recording)
    assert re.search(r"\|-{21,22}1{28,30}-{21,22}\|", text)
    assert "- in a call, and not running" in text


@pytest.mark.parametrize("info", [{"mode": "calls"}, {"lost": 3}])
def test_nothing_is_pale_where_it_is_not_known_when_a_call_waits(info):
    recording = sleeping(**info)
    assert len(layout(recording).pauses) == 0
    assert "a call that waits is drawn as if it ran" in summary(recording)
    assert "pale" not in timeline_svg(recording)


def test_calls_shorter_than_a_gap_are_not_taken_for_waiting():
    calls = [call("f", n * PERIOD_NS, n * PERIOD_NS + 9) for n in range(0, 50, 5)]
    assert len(layout(recording_of({PID: calls})).pauses) == 0


def test_a_cell_too_short_for_samples_is_shown_by_its_calls():
    recording = recording_of({PID: [call("f", 0, 1)]})
    assert warnings(recording) == []
    assert "f  " in summary(recording)


def test_no_calls_say_what_to_look_at():
    assert "Check the filters" in summary(recording_of({}, mode="calls"))


def test_many_calls_are_drawn_in_numpy_alone(monkeypatch):
    # GIVEN a million calls, so many that a Python loop over them would be felt
    count = 1_000_000
    one = make_calls({PID: [call("main", 0, 1), call("leaf", 0, 1)]}, START_NS)
    rows = np.r_[0, np.ones(count, np.int64)]
    ts_ns = START_NS + np.r_[0, np.arange(count) * 1000]
    calls = one.take(rows).assign(
        ts_ns=ts_ns,
        dur_ns=np.r_[count * 1000, np.full(count, 900)],
        depth=np.minimum(np.arange(count + 1), 1),
        parent=np.r_[-1, np.zeros(count, np.int64)],
    )
    base = make_recording([], end_ns=START_NS + count * 1000)
    recording = Recording(base.samples, base.frames, None, base.info, calls)
    # WHEN it is laid out THEN it is two slices
    assert drawn(layout(recording).slices) == [
        (PID, 0, "main", 0, count * 1000, 1),
        (PID, 1, "leaf", 0, count * 1000 - 100, count),
    ]


def test_the_own_time_of_what_went_on_on_another_stack_is_shown():
    went_on = make_calls({PID: [call("leaf", 0, 90)]}, START_NS, 1).assign(
        kind="continued", filename=LEAF["filename"], line_number=LEAF["line_number"]
    )
    whole = recording_of({PID: [call("main", 0, 90)]}, mode="calls", counted=9)
    recording = Recording(whole.samples, whole.frames, None, whole.info, went_on, whole.counts)
    (leaf,) = top_functions(recording)
    assert (leaf.function, leaf.self_ns, leaf.ncalls) == ("leaf", 90, 9)


def test_a_function_whose_file_is_not_known_is_shown_without():
    recording = recording_of({PID: [call("main", 0, 90)]}, mode="calls")
    nameless = Recording(
        recording.samples,
        recording.frames,
        None,
        recording.info,
        recording.calls.assign(filename=pd.Series([None], dtype="str")),
    )
    assert all("[unknown]" in view for view in mimebundle(nameless).values())
