"""Sums per function of calls, of counts, and of calls beside samples."""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading

from collections import Counter

import pandas as pd
import pytest
import spools

from hypothesis import given, settings
from hypothesis import strategies as st

from pystack_nb import tables
from pystack_nb.decode import decode
from pystack_nb.errors import RecordingFormatError
from pystack_nb.recording import Recording


def calls_of(*rows):
    """Calls of (start, duration, own time, parent, function), all of one thread."""
    table = pd.DataFrame(rows, columns=["ts_ns", "dur_ns", "self_ns", "parent", "function"])
    return table.assign(
        pid=7, tid=7, depth=0, filename="a.py", line_number=1, complete=True, kind="call"
    )


def counts_of(*rows):
    """Counts of (function, calls, time)."""
    table = pd.DataFrame(rows, columns=["function", "ncalls", "total_ns"])
    return table.assign(filename="a.py", line_number=1)


def sums(rec):
    table = rec.functions().set_index("function")
    columns = ["ncalls", "total_ns", "self_ns", "samples", "counted"]
    return {x: tuple(row) for x, row in zip(table.index, table[columns].to_numpy(), strict=True)}


def of(calls=None, counts=None, samples=None, frames=None):
    samples = tables.empty(tables.SAMPLES) if samples is None else samples
    frames = tables.empty(tables.FRAMES) if frames is None else frames
    return Recording(samples, frames, calls=calls, counts=counts)


def test_calls_are_counted_and_their_times_summed():
    rec = of(calls_of((0, 100, 50, -1, "f"), (10, 20, 20, 0, "g"), (40, 30, 30, 0, "g")))
    assert sums(rec) == {"f": (1, 100, 50, 0, 0), "g": (2, 50, 50, 0, 0)}


def test_recursion_counts_once_in_the_total_also_when_it_is_indirect():
    rec = of(
        calls_of(
            (0, 100, 20, -1, "f"),
            (10, 80, 20, 0, "g"),
            (20, 60, 20, 1, "f"),
            (30, 40, 40, 2, "g"),
            (200, 10, 10, -1, "f"),
        )
    )
    assert sums(rec) == {"f": (3, 110, 50, 0, 0), "g": (2, 80, 60, 0, 0)}


def test_a_function_that_another_thread_is_in_is_no_recursion():
    calls = calls_of((0, 100, 100, -1, "f"), (10, 20, 20, -1, "f")).assign(tid=[7, 8])
    assert sums(of(calls))["f"] == (2, 120, 120, 0, 0)


def test_a_call_that_went_on_is_the_same_call():
    calls = calls_of((0, 10, 10, -1, "f"), (20, 5, 5, -1, "f")).assign(kind=["call", "continued"])
    assert sums(of(calls))["f"] == (1, 15, 15, 0, 0)


def test_a_resume_is_a_call():
    calls = calls_of((0, 10, 10, -1, "f"), (20, 5, 5, -1, "f")).assign(kind="resume")
    assert sums(of(calls))["f"][0] == 2


def test_functions_of_one_name_in_other_files_or_at_other_lines_are_others():
    calls = calls_of(*[(0, 1, 1, -1, "f")] * 3).assign(
        filename=["a.py", "b.py", "a.py"], line_number=[1, 1, 2**31 - 1]
    )
    table = of(calls).functions()
    assert sorted(zip(table["filename"], table["line_number"], strict=True)) == [
        ("a.py", 1),
        ("a.py", 2**31 - 1),
        ("b.py", 1),
    ]


def test_what_was_only_counted_is_added_and_told():
    rec = of(calls_of((0, 100, 100, -1, "f")), counts_of(("f", 5, 50), ("g", 9, 90)))
    assert sums(rec) == {"f": (6, 150, 100, 0, 5), "g": (9, 90, 0, 0, 9)}


def test_samples_stand_beside_calls_and_make_the_times_of_what_was_not_called():
    spool = spools.spool(
        spools.client(),
        *spools.code(1, "f", "a.py", 1, spools.lines(0)),
        *spools.code(2, "other", "a.py", 1, spools.lines(0)),
        spools.sample(1, [(1, 0)]),
        spools.sample(2, [(2, 0), (1, 0)]),
    )
    samples, frames, *_ = decode(spool)
    found = sums(of(calls_of((0, 100, 100, -1, "f")), None, samples, frames))
    assert found["f"] == (1, 100, 100, 2, 0)
    assert found["other"][1:4] == (1_000_000, 1_000_000, 1)
    assert pd.isna(found["other"][0])
    assert pd.isna(found["other"][4])


def demoted_recording(*spooled):
    """`work` calls `tiny`, most calls of which were only counted; and what samples say."""
    spool = spools.spool(
        spools.client(),
        *spools.code(1, "work", "a.py", 1, spools.lines(0)),
        *spools.code(2, "tiny", "a.py", 1, spools.lines(0)),
        *spooled,
    )
    samples, frames, *_ = decode(spool)
    calls = calls_of((0, 100, 90, -1, "work"), (10, 10, 10, 0, "tiny"))
    rec = of(calls, counts_of(("tiny", 5, 0)), samples, frames)
    rec.info["demoted"] = [
        {"function": "tiny", "filename": "a.py", "line_number": 1, "since_ns": 20, "counted": 5}
    ]
    return rec


def test_where_functions_were_demoted_the_times_are_those_of_samples():
    # GIVEN calls whose time says "work", since those of "tiny" were only counted, and samples
    in_tiny = [(2, 0), (1, 0)]
    rec = demoted_recording(
        spools.sample(1, in_tiny), spools.sample(2, in_tiny), spools.sample(3, [(1, 0)])
    )
    # THEN the samples say what took the time, and the calls how many there were
    assert sums(rec) == {
        "tiny": (6, 2_000_000, 2_000_000, 2, 5),
        "work": (1, 3_000_000, 1_000_000, 3, 0),
    }
    assert rec.functions()["function"].tolist() == ["tiny", "work"]


def test_where_the_recording_of_calls_ended_early_the_times_are_those_of_samples():
    rec = demoted_recording(spools.sample(1, [(2, 0), (1, 0)]))
    rec.info.update(demoted=[], calls_stopped="max-events")
    assert sums(rec)["tiny"] == (6, 1_000_000, 1_000_000, 1, 5)


def test_where_functions_were_demoted_and_nothing_sampled_the_times_are_those_of_calls():
    assert sums(demoted_recording()) == {"work": (1, 100, 90, 0, 0), "tiny": (6, 10, 10, 0, 5)}


def test_the_most_expensive_function_comes_first():
    rec = of(calls_of((0, 9, 1, -1, "f"), (1, 8, 8, 0, "g"), (20, 5, 5, -1, "h")))
    assert rec.functions()["function"].tolist() == ["g", "h", "f"]


def work(depth=0):
    """Nested calls, generators, exceptions and threads."""
    if depth == 6:
        raise KeyError(depth)
    for n in squares(3):
        try:
            work(depth + 1)
        except KeyError:
            helper(n)
    if not depth:
        thread = threading.Thread(target=helper, args=(3,))
        thread.start()
        thread.join()
    return sum(n for n in squares(2))


def squares(count):
    for n in range(count):
        yield helper(n)


def helper(n):
    return n * n


def key_of(code):
    return code.co_filename, code.co_firstlineno, code.co_name


def recorded(function):
    """Record calls of this file's functions, by the hook that Python itself has."""
    codes, words = {}, []

    def hook(frame, event, _):
        if event not in {"call", "return"} or frame.f_code.co_filename != __file__:
            return
        code = codes.setdefault(frame.f_code, len(codes) + 1)
        time = 100 * len(words)
        words.append(spools.enter(code, time) if event == "call" else spools.leave(time))

    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
    names = [
        x
        for code, number in codes.items()
        for x in spools.defined(number, code.co_name, code.co_filename, code.co_firstlineno)
    ]
    batches = [
        spools.batch(words[at : at + 100], sequence=n)
        for n, at in enumerate(range(0, len(words), 100))
    ]
    head = spools.client(), spools.clock(1, 1, 1), spools.batch(names, thread=2)
    return Recording(*decode(spools.spool(*head, *batches)))


def test_calls_are_as_many_as_cprofile_s():
    profile = cProfile.Profile()
    profile.runcall(work)
    expected = {
        key: calls
        for key, (_, calls, *_) in pstats.Stats(profile).stats.items()
        if key[0] == __file__
    }
    table = recorded(work).functions()
    found = zip(
        table["filename"], table["line_number"], table["function"], table["ncalls"], strict=True
    )
    assert {tuple(x): calls for *x, calls in found} == expected
    assert expected[key_of(work.__code__)] > 300


# A tree of calls as nested lists of function numbers, and its sums by recursion.

TREES = st.recursive(
    st.tuples(st.integers(0, 3), st.just([])),
    lambda inner: st.tuples(st.integers(0, 3), st.lists(inner, max_size=4)),
    max_leaves=25,
)


def flatten(tree, parent, rows):
    """Append the rows of a tree, where each call takes 1 ns of its own; its duration."""
    function, inner = tree
    at = len(rows)
    rows.append(None)
    duration = 1 + sum(flatten(x, at, rows) for x in inner)
    rows[at] = (at, duration, 1, parent, f"f{function}")
    return duration


def expected_sums(tree, above, result):
    function, inner = tree
    size = 1 + sum(expected_sums(x, above | {function}, result) for x in inner)
    result["ncalls", f"f{function}"] += 1
    result["total_ns", f"f{function}"] += 0 if function in above else size
    return size


@settings(deadline=None)
@given(TREES, st.integers(1, 3))
def test_any_tree_has_the_sums_of_a_walk_through_it(tree, copies):
    rows, expected = [], Counter()
    for _ in range(copies):
        flatten(tree, -1, rows)
        expected_sums(tree, frozenset(), expected)
    table = of(calls_of(*rows)).functions().set_index("function")
    for name in table.index:
        assert table["ncalls"][name] == table["self_ns"][name] == expected["ncalls", name]
        assert table["total_ns"][name] == expected["total_ns", name]


@pytest.mark.parametrize("parent", [[-2], [0], [1, -1], [5]])
def test_calls_whose_parents_are_not_before_them_are_refused(parent):
    calls = calls_of(*((n, 1, 1, x, "f") for n, x in enumerate(parent)))
    with pytest.raises(RecordingFormatError, match="make the recording or the file again"):
        of(calls)


def test_calls_given_in_another_order_keep_their_parents():
    rec = of(calls_of((30, 5, 5, 2, "h"), (50, 1, 1, -1, "i"), (10, 40, 35, -1, "f")))
    assert rec.calls["function"].tolist() == ["f", "h", "i"]
    assert rec.calls["parent"].tolist() == [-1, 0, -1]
