"""From the words of calls mode to the table of calls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import spools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystack_nb import tables, wire
from pystack_nb.decode import decode
from pystack_nb.recording import Recording


END = 1 << 50
NAMES = [*spools.defined(1, "outer", "a.py", 10), *spools.defined(2, "Class.inner", "b.py", 20)]


def recording(*records, end_ns=END, **client):
    """A Recording of these records, whose counter is CLOCK_MONOTONIC itself."""
    facts = spools.client(**client), spools.clock(1, 1, 1), spools.end(start_ns=1, end_ns=end_ns)
    return Recording(*decode(spools.spool(*facts, *records)))


def of_words(*words, **options):
    """A Recording of one thread's only batch."""
    return recording(spools.batch([*NAMES, *words]), **options)


def rows(rec, *columns):
    return list(rec.calls[list(columns)].itertuples(index=False, name=None))


def split(words, size=2):
    return [
        spools.batch(words[at : at + size], sequence=n)
        for n, at in enumerate(range(0, len(words), size))
    ]


NESTED = [
    spools.enter(1, 100),
    spools.enter(2, 110),
    spools.leave(130),
    spools.enter(2, 140),
    spools.leave(170, 1),
    spools.leave(200),
]


def test_a_call_has_its_times_its_place_and_its_names():
    rec = of_words(*NESTED)
    assert rows(rec, "ts_ns", "dur_ns", "self_ns", "depth", "parent", "function") == [
        (100, 100, 50, 0, -1, "outer"),
        (110, 20, 20, 1, 0, "Class.inner"),
        (140, 30, 30, 1, 0, "Class.inner"),
    ]
    assert rec.calls.iloc[1].to_dict() == {
        "ts_ns": 110,
        "dur_ns": 20,
        "self_ns": 20,
        "pid": 7,
        "tid": 7,
        "depth": 1,
        "parent": 0,
        "function": "Class.inner",
        "filename": "b.py",
        "line_number": 20,
        "complete": True,
        "kind": "call",
    }
    assert rec.info["calls"] == 3
    assert rec.info["lost"] == rec.info["incomplete"] == 0
    assert rec.info["notes"] == []


def test_the_table_has_the_columns_of_the_contract_also_without_calls():
    for rec in (of_words(*NESTED), recording(), recording(spools.batch([]))):
        assert rec.calls.dtypes.astype(str).to_dict() == tables.CALLS
        assert rec.counts.dtypes.astype(str).to_dict() == tables.COUNTS


def test_calls_of_several_threads_stand_in_the_order_in_which_they_began():
    rec = recording(
        spools.batch([spools.enter(2, 105), spools.leave(107)], thread=2, tid=8, comm=b"worker"),
        spools.batch([*NAMES, *NESTED]),
    )
    assert rows(rec, "ts_ns", "tid", "parent", "function") == [
        (100, 7, -1, "outer"),
        (105, 8, -1, "Class.inner"),
        (110, 7, 0, "Class.inner"),
        (140, 7, 0, "Class.inner"),
    ]
    assert rec.info["thread_names"] == {"7": "py", "8": "worker"}
    assert rec.info["pids"] == [7]


def test_a_call_still_open_ends_with_the_recording_and_is_not_complete():
    rec = of_words(spools.enter(1, 100), spools.enter(2, 150), end_ns=200)
    assert rows(rec, "dur_ns", "self_ns", "complete") == [(100, 50, False), (50, 50, False)]
    assert rec.info["incomplete"] == 0


def test_a_call_that_began_after_the_recording_s_end_has_no_duration_rather_than_a_negative_one():
    assert rows(of_words(spools.enter(1, 300), end_ns=200), "ts_ns", "dur_ns") == [(300, 0)]


def test_resumes_and_c_functions_are_told_by_their_kind():
    rec = recording(
        spools.batch(
            [
                *NAMES,
                *spools.defined(3, "sleep", "<time>", 0, is_c=True),
                spools.resume(1, 100),
                spools.enter(3, 101),
                spools.leave(102),
                spools.leave(103),
            ]
        )
    )
    assert rows(rec, "function", "line_number", "kind") == [
        ("outer", 10, "resume"),
        ("sleep", 0, "c-call"),
    ]


def test_names_may_come_from_another_thread_and_after_the_calls():
    rec = recording(
        spools.batch([spools.enter(1, 100), spools.leave(101)], thread=1),
        spools.batch(NAMES, thread=2, tid=8),
    )
    assert rec.calls["function"].tolist() == ["outer"]


def test_a_function_that_nobody_named_keeps_its_calls_and_is_counted():
    rec = of_words(spools.enter(9, 100), spools.leave(101))
    assert rows(rec, "function", "filename", "line_number") == [("[not named]", "", 0)]
    assert rec.info["incomplete_by_cause"]["calls-not-named"] == 1


@pytest.mark.parametrize("name", ["", "naïve\u95a2\U0001d453", "x" * 5000, "<lambda>"])
def test_any_name_arrives(name):
    words = spools.defined(1, name, name, 2**31 - 1)
    rec = recording(spools.batch([*words, spools.enter(1, 1), spools.leave(2)]))
    assert rows(rec, "function", "filename", "line_number") == [(name, name, 2**31 - 1)]


# Time.


def test_a_time_that_is_less_than_the_one_before_is_taken_as_equal():
    rec = of_words(spools.enter(1, 100), spools.enter(2, 90), spools.leave(95), spools.leave(120))
    assert rows(rec, "ts_ns", "dur_ns") == [(100, 20), (100, 0)]


def test_times_go_on_where_their_low_bits_begin_anew():
    late = (1 << 40) - 5
    rec = recording(
        spools.batch([*NAMES, spools.enter(1, late), spools.leave(late + 20)], pair=(late,) * 3)
    )
    assert rows(rec, "ts_ns", "dur_ns") == [(late, 20)]


def test_a_long_time_between_words_is_told_by_a_whole_one():
    much = 3 << 41
    rec = of_words(spools.enter(1, 100), *spools.whole_time(much), spools.leave(much))
    assert rows(rec, "ts_ns", "dur_ns") == [(100, much - 100)]


def test_a_batch_begins_at_its_own_pair():
    much = 5 << 41
    rec = recording(
        spools.batch([*NAMES, spools.enter(1, 100)]),
        spools.batch([spools.leave(much + 7)], sequence=1, pair=(much,) * 3),
    )
    assert rows(rec, "ts_ns", "dur_ns") == [(100, much - 93)]


def test_ticks_of_the_processor_become_nanoseconds():
    start, ns = 10**12, 5 * 10**9
    ticks = [spools.enter(1, start + 3000), spools.leave(start + 9000)]
    rec = Recording(
        *decode(
            spools.spool(
                spools.client(),
                spools.clock(start - 30, ns, start + 30, tsc=True),
                spools.batch([*NAMES, *ticks], pair=(start, ns + 10, start + 60)),
                spools.clock(start - 30 + 3 * 10**9, ns + 10**9, start + 30 + 3 * 10**9, tsc=True),
            )
        )
    )
    assert rows(rec, "ts_ns", "dur_ns") == [(ns + 1000, 2000)]
    assert rec.info["clock"] == {
        "name": "CLOCK_MONOTONIC",
        "source": "tsc",
        "hz": 3e9,
        "error_ns": 0,
    }


# Batches.


def test_calls_go_on_from_batch_to_batch_in_whatever_order_these_came():
    whole = of_words(*NESTED)
    names, *batches = [spools.batch(NAMES, thread=2), *split(NESTED)]
    for order in (batches, batches[::-1]):
        rec = recording(names, *order)
        pd.testing.assert_frame_equal(rec.calls, whole.calls)
        assert rec.info["lost"] == 0


def test_what_came_through_the_ring_and_is_found_again_at_the_end_counts_once():
    again = spools.batch([*NAMES, *NESTED], rest=True)
    rec = recording(again, spools.batch([*NAMES, *NESTED]))
    assert len(rec.calls) == 3
    assert rec.info["notes"] == []


def test_the_rest_of_a_killed_thread_may_end_in_the_middle():
    for words in ([spools.other(0)], spools.defined(3, "long" * 9)[:-2], [spools.other(3, 9)]):
        rec = recording(spools.batch([*NAMES, *NESTED, *words], rest=True))
        assert len(rec.calls) == 3
        assert rec.info["notes"] == []


def test_a_batch_lost_ends_what_was_open_and_is_counted():
    rec = recording(
        spools.batch([*NAMES, spools.enter(1, 100), spools.enter(2, 110)]),
        spools.batch([spools.leave(140), spools.enter(2, 150), spools.leave(160)], sequence=3),
    )
    assert rows(rec, "ts_ns", "dur_ns", "depth", "complete") == [
        (100, 10, 0, False),
        (110, 0, 1, False),
        (150, 10, 0, True),
    ]
    assert rec.info["lost_by_cause"]["calls-lost"] == rec.info["lost"] == 2
    assert rec.info["incomplete_by_cause"]["calls-unpaired"] == 1
    assert any("2 batches of calls did not arrive" in x for x in rec.info["notes"])


def test_a_batch_that_the_kernel_counted_as_lost_is_not_counted_again():
    rec = recording(
        spools.batch(NAMES),
        spools.batch([], sequence=2),
        spools.stats(10, calls_lost=1),
    )
    assert rec.info["lost"] == 1


# Stacks.


def test_a_call_whose_thread_went_to_another_stack_goes_on_as_another_row():
    rec = of_words(
        spools.enter(1, 100),
        spools.switch(5, 110),
        spools.enter(2, 120),
        spools.switch(0, 130),
        spools.leave(150),
        spools.switch(5, 160),
        spools.leave(180),
    )
    assert rows(rec, "ts_ns", "dur_ns", "function", "kind", "complete") == [
        (100, 10, "outer", "call", True),
        (120, 10, "Class.inner", "call", True),
        (130, 20, "outer", "continued", True),
        (160, 20, "Class.inner", "continued", True),
    ]
    functions = rec.functions().set_index("function")
    assert functions["ncalls"].to_dict() == {"Class.inner": 1, "outer": 1}
    assert functions["total_ns"].to_dict() == {"Class.inner": 30, "outer": 30}


def test_a_call_on_a_stack_that_was_never_gone_on_with_is_not_complete():
    rec = of_words(spools.enter(1, 100), spools.switch(1, 110))
    assert rows(rec, "dur_ns", "complete") == [(10, False)]


def test_more_switches_than_anybody_needs_are_cut_and_counted():
    deep = [spools.enter(1, n) for n in range(1000)]
    switches = [spools.switch(n % 2, 1000) for n in range(1, 1001)]
    words = [*NAMES, *deep, *switches, *[spools.leave(2000)] * 1000]
    rec = recording(*split(words, 1000))
    assert len(rec.calls) < 100_000
    assert rec.info["incomplete_by_cause"]["calls-not-continued"] > 0
    assert rec.info["incomplete_by_cause"]["calls-unpaired"] == 0


# Short calls.

SHORT = wire.Leave.SHORT


def test_a_short_call_leaves_no_row_and_its_time_is_its_caller_s_own():
    rec = of_words(
        spools.enter(1, 100),
        spools.enter(2, 110),
        spools.leave(120, SHORT),
        spools.enter(2, 130),
        spools.leave(150),
        spools.leave(200),
    )
    assert rows(rec, "ts_ns", "dur_ns", "self_ns", "parent") == [
        (100, 100, 80, -1),
        (130, 20, 20, 0),
    ]


def test_what_a_short_call_called_belongs_to_its_caller():
    rec = of_words(
        spools.enter(1, 100),
        spools.enter(1, 110),
        spools.enter(2, 120),
        spools.enter(1, 130),
        spools.leave(140),
        spools.leave(150),
        spools.leave(160, SHORT),
        spools.leave(200),
    )
    columns = "ts_ns", "dur_ns", "self_ns", "depth", "parent", "function"
    assert rows(rec, *columns) == [
        (100, 100, 70, 0, -1, "outer"),
        (120, 30, 20, 1, 0, "Class.inner"),
        (130, 10, 10, 2, 1, "outer"),
    ]


def test_a_short_call_that_was_already_shown_in_part_stays_and_is_told():
    words = [spools.enter(1, 100), spools.switch(1, 110), spools.switch(0, 120)]
    rec = of_words(*words, spools.leave(130, SHORT))
    assert rows(rec, "ts_ns", "dur_ns", "kind") == [(100, 10, "call"), (120, 10, "continued")]
    assert any("1 short call could not" in x for x in rec.info["notes"])


def test_each_of_many_short_calls_around_many_others_leaves_no_row():
    short = [spools.enter(1, 100)] * 1900
    inner = [word for n in range(1000) for word in (spools.enter(2, 110), spools.leave(111 + n))]
    words = [*NAMES, spools.enter(1, 90), *short, *inner, *[spools.leave(5000, SHORT)] * 1900]
    rec = recording(*split([*words, spools.leave(6000)], 1000))
    assert len(rec.calls) == 1001
    assert set(rows(rec, "depth", "parent")[1:]) == {(1, 0)}
    assert rec.calls["self_ns"].sum() == rec.calls["dur_ns"][0] == 6000 - 90
    assert rec.info["notes"] == []


# What is told about the calls.


def test_calls_without_rows_are_summed_per_function():
    rec = recording(
        spools.batch([*NAMES, *spools.defined(3, "outer", "a.py", 10)]),
        spools.counts([(1, (10, 1000)), (3, (5, 500)), (9, (1, 1))]),
    )
    assert rec.counts.to_numpy().tolist() == [
        ["outer", "a.py", 10, 15, 1500],
        ["[not named]", "", 0, 1, 1],
    ]


def test_a_demoted_function_is_told_with_its_counts():
    rec = recording(
        spools.batch([*NAMES, spools.other(3, 400), 2, spools.other(4, 900), 1]),
        spools.batch([spools.other(3, 300), 1], thread=2, tid=8),
        spools.counts([(2, (10, 1000))]),
    )
    common = {"since_ns": 300, "until_ns": 900, "counted": 0}
    assert rec.info["demoted"] == [
        {"function": "outer", "filename": "a.py", "line_number": 10, **common},
        {
            "function": "Class.inner",
            "filename": "b.py",
            "line_number": 20,
            "since_ns": 400,
            "until_ns": None,
            "counted": 10,
        },
    ]
    assert any("2 functions would have cost more" in x for x in rec.info["notes"])


def test_a_gap_leaves_what_is_open_and_is_told():
    rec = of_words(
        spools.enter(1, 100), spools.other(5, 110), spools.other(6, 150), spools.leave(200)
    )
    assert rows(rec, "ts_ns", "dur_ns", "complete") == [(100, 100, True)]
    assert rec.info["incomplete_by_cause"]["deep-recursion"] == 1


@pytest.mark.parametrize(
    ("counter", "cause", "note"),
    [
        ("no_batch", "threads-without-buffer", "no room for 2 threads"),
        ("deep", "deep-recursion", "2 times"),
        ("interpreters", "sub-interpreters", "2 sub-interpreters"),
        ("forks", "forked-children", "2 forked children"),
        ("hook_taken", "hook-taken", "the probe's place 2 times"),
        ("init_unseen", "init-unseen", "2 functions became"),
        ("no_id", "calls-without-id", "2 calls of code objects"),
        ("gave_up", None, "2 batches"),
    ],
)
def test_what_the_probe_did_without_is_in_the_causes_and_in_words(counter, cause, note):
    rec = recording(spools.counts(**{counter: 2}))
    causes = rec.info["incomplete_by_cause"]
    assert {x for x, n in causes.items() if n} == ({cause} if cause else set())
    assert any(note in x for x in rec.info["notes"])


@pytest.mark.parametrize(
    ("counter", "reason"), [("max_events", "max-events"), ("stopped", "budget")]
)
def test_why_recording_stopped_is_told(counter, reason):
    rec = recording(spools.counts(**{counter: 1}))
    assert rec.info["calls_stopped"] == reason
    assert any("later calls were not recorded" in x for x in rec.info["notes"])


@pytest.mark.parametrize(("counters", "end"), [({}, 1000), ({"stopped": 1}, 60)])
def test_calls_that_are_open_end_with_what_was_recorded(counters, end):
    words = [
        *NAMES,
        spools.enter(1, 10),
        spools.enter(2, 20),
        spools.leave(30),
        spools.enter(2, 40),
        spools.enter(3, 60),
    ]
    rec = recording(spools.batch(words), spools.counts(**counters), end_ns=1000)
    calls = rec.calls
    assert rec.info["calls_stopped_ns"] == (end if counters else None)
    assert (calls["ts_ns"] + calls["dur_ns"]).tolist() == [end, 30, end, end]
    assert calls["self_ns"].tolist() == [20, 10, 20, end - 60]


def test_a_recording_without_calls_says_nothing_about_them():
    info = Recording(*decode(spools.spool(spools.client()))).info
    assert (info["calls"], info["demoted"], info["calls_stopped"]) == (0, [], None)
    assert "calls-lost" not in info["lost_by_cause"]
    assert "calls-unpaired" not in info["incomplete_by_cause"]


def test_a_client_that_records_itself_says_so_and_ends_it_itself():
    rec = recording(spools.batch(NAMES), source="inprocess")
    assert rec.info["source"] == "inprocess"
    assert rec.info["loader"] is None
    end = spools.meta(role="inprocess", event="end", end_ns=5)
    info = Recording(*decode(spools.spool(spools.client(), end))).info
    assert (info["complete"], info["end_ns"]) == (True, 5)


# Random trees, against a simple reference.

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "enter", "leave", "short", "resume", "switch", "lost"]),
        st.integers(0, 3),
        st.one_of(st.integers(0, 50), st.integers(0, 1 << 44)),
    ),
    max_size=60,
)


class Reference:
    """What the words of one thread mean, one object an open call."""

    def __init__(self):
        self.rows, self.stacks, self.current, self.last = [], {}, 0, 1

    def open(self, code, kind):
        stack = self.stacks.setdefault(self.current, [])
        parent = stack[-1] if stack else None
        row = {"start": self.last, "code": code, "kind": kind, "parent": parent, "n": len(stack)}
        stack.append(row)
        self.rows.append(row)

    def close(self, row, time, *, complete):
        row.update(end=time, complete=complete)

    def drop(self, row):
        inside = self.rows[[id(x) for x in self.rows].index(id(row)) + 1 :]
        for each in inside:
            each["n"] -= 1
            if each["parent"] is row:
                each["parent"] = row["parent"]
        self.rows = [x for x in self.rows if x is not row]

    def abandon(self, time):
        for number, stack in self.stacks.items():
            for row in stack:
                if number == self.current:
                    self.close(row, time, complete=False)
                row["complete"] = False
        self.stacks = {}

    def add(self, kind, argument, ahead):
        stack = self.stacks.get(self.current, [])
        if kind == "lost":
            self.abandon(self.last)
            return
        self.last += ahead
        if kind in {"enter", "resume"}:
            self.open(argument + 1, "call" if kind == "enter" else "resume")
        elif kind == "leave" and stack:
            self.close(stack.pop(), self.last, complete=True)
        elif kind == "short" and stack:
            row = stack.pop()
            if row["kind"] == "continued":
                self.close(row, self.last, complete=True)
            else:
                self.drop(row)
        elif kind == "switch" and argument != self.current:
            for row in stack:
                self.close(row, self.last, complete=True)
            self.current = argument
            for row in self.stacks.pop(argument, []):
                self.open(row["code"], "continued")

    def table(self):
        numbers = {id(row): n for n, row in enumerate(self.rows)}
        inside = dict.fromkeys(numbers, 0)
        for row in self.rows:
            if row["parent"]:
                inside[id(row["parent"])] += row["end"] - row["start"]
        return [
            (
                row["start"],
                row["end"] - row["start"],
                row["end"] - row["start"] - inside[id(row)],
                row["n"],
                numbers[id(row["parent"])] if row["parent"] else -1,
                f"f{row['code']}",
                row["kind"],
                row["complete"],
            )
            for row in self.rows
        ]


def words_of(events):
    """The batches of a thread, each a list of words; None stands for a lost one."""
    batches, time = [[]], 1
    for kind, argument, ahead in events:
        if kind == "lost":
            batches += [None, []]
            continue
        time += ahead
        make = {"enter": spools.enter, "resume": spools.resume, "switch": spools.switch}
        code = argument if kind == "switch" else argument + 1
        ends = {"leave": 0, "short": SHORT}
        word = spools.leave(time, ends[kind]) if kind in ends else make[kind](code, time)
        batches[-1] += [*spools.whole_time(time), word] if ahead > 1 << 30 else [word]
    return batches


FOUR = [x for n in range(1, 5) for x in spools.defined(n, f"f{n}")]


@settings(deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=3))
def test_any_calls_are_those_of_a_simple_reference(threads):
    records = [spools.batch(FOUR, thread=99, tid=99)]
    expected = []
    for number, events in enumerate(threads, 1):
        reference = Reference()
        for event in events:
            reference.add(*event)
        reference.abandon(max(END, reference.last))
        expected.append(reference.table())
        records += [
            spools.batch(words, thread=number, tid=number, sequence=n)
            for n, words in enumerate(words_of(events))
            if words is not None
        ]
    rec = recording(*records)

    calls = rec.calls.assign(row=np.arange(len(rec.calls)))
    assert calls["ts_ns"].is_monotonic_increasing
    for number, table in enumerate(expected, 1):
        of_thread = calls[calls["tid"] == number]
        places = {row: n for n, row in enumerate(of_thread["row"])} | {-1: -1}
        found = of_thread.assign(parent=of_thread["parent"].map(places))
        columns = ["ts_ns", "dur_ns", "self_ns", "depth", "parent", "function", "kind", "complete"]
        assert list(found[columns].itertuples(index=False, name=None)) == table


# Damage.

WORDS = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(
        spools.word,
        st.integers(0, 3),
        st.one_of(st.integers(0, 127), st.integers(0, 2**22 - 1)),
        st.integers(0, 2**40 - 1),
    ),
)
TIMES = st.one_of(st.integers(0, 1000), st.integers(0, 2**64 - 1))
BATCHES = st.lists(
    st.builds(
        spools.batch,
        st.lists(WORDS, max_size=40),
        thread=st.integers(0, 4),
        sequence=st.one_of(st.integers(0, 5), TIMES),
        pair=st.tuples(TIMES, TIMES, TIMES),
        rest=st.booleans(),
    ),
    max_size=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    BATCHES, st.lists(st.builds(spools.clock, TIMES, TIMES, TIMES, tsc=st.booleans()), max_size=3)
)
def test_any_words_make_calls_that_nest(batches, clocks):
    rec = Recording(*decode(spools.spool(spools.client(), *clocks, *batches)))
    calls = rec.calls
    assert (calls["dur_ns"] >= 0).all()
    assert (calls["self_ns"] >= 0).all()
    inner = calls[calls["parent"] >= 0]
    outer = calls.iloc[inner["parent"]]
    assert (inner["ts_ns"].to_numpy() >= outer["ts_ns"].to_numpy()).all()
    ends = [(x["ts_ns"] + x["dur_ns"]).to_numpy() for x in (inner, outer)]
    assert (ends[0] <= ends[1]).all()
    assert (inner["depth"].to_numpy() == outer["depth"].to_numpy() + 1).all()
    assert rec.functions()["ncalls"].sum() == (calls["kind"] != "continued").sum()


def test_words_that_mean_nothing_are_counted():
    rec = of_words(*NESTED, spools.other(9), spools.other(1, 3, 100))
    assert len(rec.calls) == 3
    assert rec.info["complete"] is False
    assert any("2 events of calls are damaged" in x for x in rec.info["notes"])


def test_a_batch_with_impossible_numbers_is_left_out_and_noted():
    too_many = bytearray(spools.batch([]))
    too_many[56:60] = (wire.BATCH_WORDS + 1).to_bytes(4, "little")
    beyond = bytearray(spools.batch([]))
    beyond[56:60] = (5).to_bytes(4, "little")
    for bad in (bytes(too_many), bytes(beyond), spools.batch([], thread=0)):
        rec = recording(bad, spools.batch([*NAMES, *NESTED]))
        assert len(rec.calls) == 3
        assert any("damaged" in x for x in rec.info["notes"])


def test_counts_that_say_more_than_there_is_are_left_out():
    damaged = bytearray(spools.counts([(1, (1, 1))]))
    damaged[8:12] = (1 << 20).to_bytes(4, "little")
    rec = recording(bytes(damaged), spools.batch(NAMES))
    assert rec.counts.empty
    assert any("damaged" in x for x in rec.info["notes"])
