from __future__ import annotations

import pandas as pd
import pytest

from call_trees import call, make_calls, threads_of_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_recording

from pystack_nb.call_facts import tell_demoted
from pystack_nb.machinery import Machinery
from pystack_nb.recording import Recording
from pystack_nb.trim import trim


CELL = "/tmp/ipykernel_1/42.py"
MACHINERY = Machinery(
    carriers=("/lib/asyncio/", "/lib/threading.py"),
    others=("/site/IPython/", "/site/ipykernel/", "/lib/selectors.py"),
    inside=("/site/IPython/", "/site/ipykernel/"),
    threads=(),
    display=("/site/IPython/core/displayhook.py",),
    shell=("/site/IPython/core/interactiveshell.py",),
    waits=("/lib/selectors.py",),
    renderers=("/site/IPython/core/formatters.py",),
    library=("/std/",),
)
MAIN, WORKER = 100, 101
START, END = 100, 900
MODULE = f"<module> {CELL}"
SHELL = "run_cell /site/IPython/core/interactiveshell.py"
RUNS = "run_code /site/IPython/core/interactiveshell.py"
MAGIC = "time /site/IPython/core/magics/execution.py"
STEP = "_run /lib/asyncio/events.py"
LIBRARY = "dumps /lib/json.py"


def recording_of(threads, counted=(CELL,), **info):
    calls = make_calls(threads)
    leaf = {"function": "leaf", "line_number": 2, "ncalls": 9, "total_ns": 5}
    counts = pd.DataFrame([leaf | {"filename": file} for file in counted])
    empty = make_recording([], **info)
    return Recording(empty.samples, empty.frames, None, empty.info, calls, counts)


def trimmed(threads, names=None, stacks=None, **info):
    mark = {"filename": CELL, "pid": MAIN, "tid": MAIN, "start_ns": START, "end_ns": END}
    return trim(recording_of(threads, **info), MACHINERY, mark, names, stacks)


def tree(recording, *columns):
    """Write a thread's calls as nested tuples of the function's name and other columns."""
    made = {-1: []}
    roots = {}
    for number, row in enumerate(recording.calls.to_dict("records")):
        made[number] = []
        entry = (row["function"], *(row[x] for x in columns), made[number])
        (roots.setdefault(row["tid"], []) if row["parent"] < 0 else made[row["parent"]]).append(
            entry
        )
    return roots


def depths(recording):
    return recording.calls["depth"].tolist()


def test_the_cell_is_the_root_of_its_own_calls():
    inner = call(MODULE, 130, 200, call("work /src/lib.py", 140, 150, call(LIBRARY, 145, 146)))
    result = trimmed({MAIN: [call(SHELL, 120, 210, call("exec_ /lib/any.py", 125, 205, inner))]})
    assert tree(result) == {MAIN: [("<module>", [("work", [("dumps", [])])])]}
    assert depths(result) == [0, 1, 2]
    assert result.info["calls"] == 3
    assert result.info["trimmed_calls"] == 2


def test_calls_from_before_and_after_the_cell_are_dropped():
    before = call("early /src/lib.py", 90, 120, call(LIBRARY, 110, 111))
    result = trimmed({WORKER: [before, call("late /src/lib.py", 901, 902)]})
    assert tree(result) == {WORKER: [("dumps", [])]}
    assert result.info["trimmed_calls"] == 2


def test_a_call_that_goes_on_behind_the_cell_is_cut_there():
    late = call(LIBRARY, 950, 980)
    across = call("inner /src/lib.py", 890, 940, call(LIBRARY, 895, 910))
    result = trimmed({WORKER: [call("work /src/lib.py", 200, 1000, across, late)]})
    columns = ("ts_ns", "dur_ns", "self_ns", "complete")
    assert result.calls[list(columns)].to_numpy().tolist() == [
        [200, 700, 690, False],
        [890, 10, 5, False],
        [895, 5, 5, False],
    ]


def test_a_call_that_was_open_at_the_recording_s_end_stays_so():
    result = trimmed({MAIN: [call(MODULE, 130, 200, complete=False)]})
    assert result.calls["complete"].tolist() == [False]


def test_machinery_that_calls_go_through_makes_way_and_leaves_its_time():
    inside = call(MAGIC, 140, 180, call(SHELL, 150, 170, call(LIBRARY, 155, 160)))
    result = trimmed({MAIN: [call(MODULE, 130, 200, inside)]})
    assert tree(result, "self_ns") == {MAIN: [("<module>", 30 + 20 + 15, [("dumps", 5, [])])]}
    assert depths(result) == [0, 1]


def test_of_what_shows_the_cell_s_value_only_the_value_s_own_functions_stay():
    asked = call("__repr__ /src/lib.py", 150, 160, call(LIBRARY, 152, 155))
    ask = call("format /site/IPython/core/formatters.py", 145, 165, asked)
    send = call("send /site/ipykernel/displayhook.py", 170, 180, call(LIBRARY, 172, 173))
    show = call("__call__ /site/IPython/core/displayhook.py", 140, 190, ask, send)
    result = trimmed({MAIN: [call(MODULE, 130, 200, show)]})
    assert tree(result) == {MAIN: [("<module>", [("__repr__", [("dumps", [])])])]}
    assert depths(result) == [0, 1, 2]


def test_machinery_that_calls_nothing_of_the_user_s_leaves_its_time_to_the_cell():
    made = call("__init__ <string>", 155, 165, call("len [builtins]", 160, 161, kind="c-call"))
    inside = call(SHELL, 140, 180, call("len [builtins]", 150, 155, kind="c-call"), made)
    result = trimmed({MAIN: [call(MODULE, 130, 200, inside)]})
    assert tree(result, "self_ns") == {MAIN: [("<module>", 70, [])]}


def test_what_machinery_calls_of_the_library_is_its_own_work_but_for_the_user_s_code_there():
    work = call("work /src/lib.py", 150, 160, call("wait /std/threading.py", 152, 156))
    runs = call("runcall /std/profile.py", 145, 165, work)
    send = call("send /std/site-packages/zmq.py", 170, 175)
    inside = call(SHELL, 140, 180, call("wait /std/threading.py", 141, 144), runs, send)
    result = trimmed({MAIN: [call(MODULE, 130, 200, inside)]})
    assert tree(result, "self_ns") == {
        MAIN: [("<module>", 55, [("work", 6, [("wait", 4, [])]), ("send", 5, [])])]
    }


def test_what_print_asks_the_display_shows_no_value():
    asks = call("is_active /site/IPython/core/displayhook.py", 140, 150)
    work = call("work /src/lib.py", 170, 180)
    result = trimmed({MAIN: [call(MODULE, 130, 200, asks, work, asks | {"start": 185})]})
    assert tree(result, "dur_ns", "self_ns") == {
        MAIN: [("<module>", 70, 60, [("work", 10, 10, [])])]
    }


def test_a_task_of_the_event_loop_keeps_its_own_calls():
    task = call("consume /src/lib.py", 210, 220, call(LIBRARY, 212, 213))
    result = trimmed({MAIN: [call(STEP, 205, 230, task)]})
    assert tree(result) == {MAIN: [("consume", [("dumps", [])])]}


def test_a_thread_of_the_user_starts_at_the_users_function():
    boot = call(
        "_bootstrap /lib/threading.py",
        200,
        300,
        call("run /lib/threading.py", 210, 290, call("work /src/lib.py", 220, 280)),
    )
    assert tree(trimmed({WORKER: [boot]})) == {WORKER: [("work", [])]}


@pytest.mark.parametrize(
    "outermost",
    [
        pytest.param(call(STEP, 200, 300, call(STEP, 210, 220)), id="nothing but machinery"),
        pytest.param(call(SHELL, 200, 300, call(LIBRARY, 210, 220)), id="called by machinery"),
        pytest.param(
            call(STEP, 200, 300, call("len [builtins]", 210, 220, kind="c-call")),
            id="a C function that an event loop called",
        ),
    ],
)
def test_calls_of_the_machinery_are_dropped(outermost):
    result = trimmed({MAIN: [call(MODULE, 130, 150), outermost], WORKER: [outermost]})
    assert tree(result) == {MAIN: [("<module>", [])]}


def test_what_a_task_calls_counts_where_the_cell_has_only_an_early_row():
    # The cell's later resumes were short, and have none.
    task = call(STEP, 300, 400, call("slow /src/lib.py", 301, 399))
    assert tree(trimmed({MAIN: [call(MODULE, 130, 200), task]})) == {
        MAIN: [("<module>", []), ("slow", [])]
    }


def test_what_the_shell_runs_is_the_cell_s_where_its_own_code_has_no_row():
    busy = call("dump /std/json.py", 140, 150, call(LIBRARY, 145, 146))
    other = call("log /src/other.py", 160, 165)
    chain = call(STEP, 120, 210, call(RUNS, 130, 155, busy), call(SHELL, 158, 170, other))
    assert tree(trimmed({MAIN: [chain]})) == {MAIN: [("dump", [("dumps", [])])]}


def test_other_stacks_of_the_cell_s_thread_are_kept_while_the_cell_runs():
    switched = [
        call(MODULE, 130, 140),
        call("greenlet_run /src/lib.py", 140, 150),
        call(MODULE, 150, 200, kind="continued"),
    ]
    assert tree(trimmed({MAIN: switched})) == {
        MAIN: [("<module>", []), ("greenlet_run", []), ("<module>", [])]
    }


def test_the_cell_ends_where_the_showing_of_its_value_begins():
    show = call("__call__ /site/IPython/core/displayhook.py", 150, 190, call(LIBRARY, 155, 185))
    result = trimmed({MAIN: [call(MODULE, 130, 200, call("work /src/lib.py", 135, 140), show)]})
    assert tree(result, "dur_ns", "self_ns") == {MAIN: [("<module>", 20, 15, [("work", 5, 5, [])])]}


def test_the_cell_goes_on_behind_a_value_that_is_shown_before_its_end():
    show = call("__call__ /site/IPython/core/displayhook.py", 150, 160)
    work = call("work /src/lib.py", 170, 180)
    result = trimmed({MAIN: [call(MODULE, 130, 200, show, work)]})
    assert tree(result, "dur_ns", "self_ns") == {
        MAIN: [("<module>", 70, 60, [("work", 10, 10, [])])]
    }


def test_without_a_call_of_the_cell_s_own_all_of_its_time_counts():
    assert tree(trimmed({MAIN: [call(LIBRARY, 110, 115)]})) == {MAIN: [("dumps", [])]}


def test_calls_without_a_caller_belong_to_whom_most_of_their_thread_s_do():
    shell = [call(SHELL, 10 * x, 10 * x + 5) for x in range(20, 23)]
    work = [call("work /src/lib.py", 10 * x, 10 * x + 5) for x in range(30, 34)]
    assert tree(trimmed({WORKER: [*shell, *work]})) == {WORKER: 4 * [("work", [])]}
    assert tree(trimmed({WORKER: [*shell, *work[:2]]})) == {}


@pytest.mark.parametrize(
    ("stack", "kept"),
    [
        (("/lib/threading.py", "/site/ipykernel/iostream.py", "/lib/asyncio/events.py"), False),
        (("/lib/threading.py", "/site/ipykernel/iostream.py", "/lib/zmq.py"), False),
        (("/lib/threading.py", "/lib/asyncio/events.py", "/src/lib.py", "/site/zmq/a.py"), True),
        (("/lib/threading.py",), True),
        (("/lib/threading.py", "/lib/asyncio/events.py", "/lib/selectors.py"), True),
        (("/site/ipykernel/iostream.py", "/lib/asyncio/a.py", "/lib/selectors.py"), False),
    ],
)
def test_what_a_thread_was_in_when_it_began_tells_whose_the_calls_are(stack, kept):
    calls = [call(LIBRARY, 210, 220), call(LIBRARY, 230, 240)]
    result = trimmed({MAIN: [call(MODULE, 120, 210)], WORKER: calls}, stacks={WORKER: stack})
    assert (WORKER in tree(result)) == kept


def test_files_are_renamed_in_every_table_and_counts_stay():
    names = {CELL: "In[5]", "/src/lib.py": "In[5]"}
    demoted = [{"function": "leaf", "filename": CELL, "line_number": 2, "counted": 9}]
    work = call(MODULE, 130, 200, call("work /src/lib.py", 140, 150), call(LIBRARY, 160, 170))
    result = trimmed({MAIN: [work]}, names, demoted=demoted)
    assert result.calls["filename"].tolist() == ["In[5]", "In[5]", "/lib/json.py"]
    assert result.counts["filename"].tolist() == ["In[5]"]
    assert result.counts["ncalls"].tolist() == [9]
    assert result.info["demoted"] == [demoted[0] | {"filename": "In[5]"}]


def test_of_what_was_demoted_and_counted_only_the_cell_s_is_told():
    leaf = {"function": "leaf", "filename": CELL, "line_number": 2, "counted": 9}
    work = {"function": "work", "filename": "/src/lib.py", "line_number": 1, "counted": 0}
    other = {"function": "parse", "filename": "/lib/ast.py", "line_number": 1, "counted": 0}
    info = {}
    tell_demoted(info, [leaf, work, other])
    assert info["notes"] == [
        "3 functions would have cost more than the budget: 9 calls counted only"
    ]
    info["notes"].insert(0, "another note")
    result = trimmed({MAIN: [call(MODULE, 130, 200, call("work /src/lib.py", 140, 150))]}, **info)
    assert result.info["demoted"] == [leaf, work]
    assert result.info["notes"] == [
        "another note",
        "2 functions would have cost more than the budget: 9 calls counted only",
    ]


def test_a_recording_without_calls_stays_without():
    result = trimmed({})
    assert len(result.calls) == 0
    assert result.info["trimmed_calls"] == 0


NAMES = [MODULE, SHELL, RUNS, STEP, LIBRARY, "work /src/lib.py"]


def walk(threads, mark):
    """Do what `trim` does, call by call."""
    begin, end = mark["start_ns"], mark["end_ns"]
    found = {}

    def visit(node, into, depth, known):
        kept, decided, caller, helped, in_cell = known
        name = node["filename"]
        carrier, other = (name.startswith(x) for x in (MACHINERY.carriers, MACHINERY.others))
        if name == mark["filename"] or (not decided and not carrier and not other and caller):
            kept = True
        decided = decided or not (carrier or other)
        in_time = begin <= node["start"] <= end
        helped = other or (helped and carrier)
        if kept and in_time and not helped:
            entry = (node["function"], node["start"], depth, [])
            into.append(entry)
            into, depth = entry[-1], depth + 1
        runs = tid == MAIN and node["function"] == "run_code"
        into_cell = in_cell or name == mark["filename"]
        stays = helped and (into_cell or not runs)
        for child in node["children"]:
            visit(child, into, depth, (kept, decided, runs or not other, stays, into_cell))

    for tid, outermost in threads.items():
        others = [x["filename"].startswith(MACHINERY.others) for x in outermost]
        carriers = [x["filename"].startswith(MACHINERY.carriers) for x in outermost]
        into = found.setdefault(tid, [])
        most = 2 * sum(others) + sum(carriers) <= len(outermost)
        for node in outermost:
            visit(node, into, 0, (False, False, most or tid == MAIN, False, False))
    return {tid: outermost for tid, outermost in found.items() if outermost}


def flat(nodes):
    for node in nodes:
        yield node
        yield from flat(node["children"])


@settings(max_examples=60, deadline=None)  # a Recording takes milliseconds
@given(threads_of_calls(NAMES, (MAIN, WORKER)), st.integers(0, 5), st.integers(0, 40))
def test_every_chain_is_judged_as_a_walk_over_the_tree_does(threads, start, length):
    mark = {"filename": CELL, "tid": MAIN, "start_ns": start, "end_ns": start + length}
    result = trim(recording_of(threads), MACHINERY, mark | {"pid": MAIN})
    calls = result.calls
    assert tree(result, "ts_ns", "depth") == walk(threads, mark)
    # A call's time is its own and that of the calls below it, and ends with the cell.
    inner = calls.groupby("parent")["dur_ns"].sum().reindex(calls.index, fill_value=0)
    assert (calls["dur_ns"] - calls["self_ns"]).tolist() == inner.tolist()
    assert (calls["ts_ns"] + calls["dur_ns"] <= start + length).all()
    assert (calls["self_ns"] >= 0).all()
