from __future__ import annotations

import pandas as pd
import pytest

from pystack_nb.recording import Recording
from pystack_nb.trim import Machinery, trim


CELL = "/tmp/ipykernel_1/42.py"
MACHINERY = Machinery(
    carriers=("/lib/asyncio/", "/lib/threading.py", "/site/IPython/core/events.py"),
    others=("/site/IPython/", "/site/ipykernel/", "<frozen runpy>"),
    inside=("/site/IPython/", "/site/ipykernel/"),
    threads=("ZMQbg/",),
    display=("/site/IPython/core/displayhook.py",),
    renderers=("/site/IPython/core/formatters.py",),
    library=("/std/",),
    shell=("/site/IPython/core/interactiveshell.py",),
)
MARK = {"filename": CELL, "pid": 7, "tid": 7, "start_ns": 100, "end_ns": 900}

LAUNCH = [("_run_module", "<frozen runpy>"), ("start", "/site/ipykernel/kernelapp.py")]
LOOP = [*LAUNCH, ("run_forever", "/lib/asyncio/base_events.py"), ("_run", "/lib/asyncio/events.py")]
IN_CELL = [*LOOP, ("run_cell_async", "/site/IPython/core/interactiveshell.py"), ("<module>", CELL)]
THREAD = [("_bootstrap", "/lib/threading.py"), ("run", "/lib/threading.py")]


def recording_of(*stacks):
    """Make a recording with one sample for each stack, which is a list of (function, file).

    A file that ends in ``.so`` makes a native frame.
    """
    frames = [
        {
            "stack_id": 10 * number,
            "depth": depth,
            "kind": "native" if filename.endswith(".so") else "python",
            "function": function,
            "filename": filename,
            "line_number": 3,
            "first_line": 1,
        }
        for number, stack in enumerate(stacks)
        for depth, (function, filename) in enumerate(stack)
    ]
    samples = [
        {
            "ts_ns": 100 + number,
            "pid": 7,
            "tid": 7,
            "comm": "python",
            "cpu": 0,
            "state": "on-cpu",
            "weight_ns": 2_000_000,
            "stack_id": 10 * number,
            **leaf(stack),
        }
        for number, stack in enumerate(stacks)
    ]
    columns = ["stack_id", "depth", "kind", "function", "filename", "line_number", "first_line"]
    return Recording(
        pd.DataFrame(samples), pd.DataFrame(frames, columns=columns), None, {"trimmed": 0}
    )


def leaf(stack):
    python = [frame for frame in stack if not frame[1].endswith(".so")]
    function, filename = python[-1] if python else (None, None)
    return {"function": function, "filename": filename, "line_number": 3 if python else 0}


def trimmed(*stacks):
    return trim(recording_of(*stacks), MACHINERY, MARK)


def stacks_of(recording):
    by_id = {
        number: list(zip(rows["function"], rows["depth"], strict=True))
        for number, rows in recording.stacks.groupby("stack_id")
    }
    return [by_id.get(number, []) for number in recording.samples["stack_id"]]


def test_the_cell_is_the_root_of_its_own_stacks():
    result = trimmed([*IN_CELL, ("work", "/home/user/lib.py")])
    assert stacks_of(result) == [[("<module>", 0), ("work", 1)]]
    assert result.info["trimmed"] == 0


def test_the_outermost_frame_of_the_cell_is_the_root():
    again = [("map", "/home/user/lib.py"), ("<lambda>", CELL)]
    result = trimmed([*IN_CELL, *again])
    assert stacks_of(result) == [[("<module>", 0), ("map", 1), ("<lambda>", 2)]]


THROUGH = [
    ("run_cell_magic", "/site/IPython/core/interactiveshell.py"),
    ("time", "/site/IPython/core/magics/execution.py"),
]


def test_machinery_between_the_cell_and_what_it_called_is_cut():
    recording = recording_of(
        [*IN_CELL, *THROUGH, ("<module>", "<timed exec>"), *THROUGH, ("work", "/home/user/lib.py")],
        [*THREAD, ("task", "/home/user/lib.py"), *THROUGH, ("work", "/home/user/lib.py")],
    )
    result = trim(of_thread(recording, 1, tid=8), MACHINERY, MARK)
    assert stacks_of(result) == [
        [("<module>", 0), ("<module>", 1), ("work", 2)],
        [("task", 0), ("work", 1)],
    ]


SHOW = ("__call__", "/site/IPython/core/displayhook.py")
ASK = ("format", "/site/IPython/core/formatters.py")


def test_of_what_shows_the_cells_value_only_the_values_own_functions_stay():
    result = trimmed(
        [*IN_CELL, SHOW, ("send", "/site/ipykernel/displayhook.py"), ("dumps", "/lib/json.py")],
        [*IN_CELL, SHOW, ASK],
        [*IN_CELL, SHOW, ASK, ("__repr__", "/home/user/lib.py")],
    )
    assert stacks_of(result) == [[("<module>", 0), ("__repr__", 1)]]
    assert result.info["trimmed"] == 2


@pytest.mark.parametrize("native", [[], [("write", "/lib/libc.so")]])
def test_machinery_leaves_its_own_time_to_what_called_it(native):
    # GIVEN two stacks one behind the other, the second of which begins with user code
    work = [*IN_CELL, ("work", "/home/user/lib.py")]
    result = trimmed([*work, *THROUGH, *native], IN_CELL)
    # THEN the user's innermost one stays, and what the sample says is so
    below = [(function, 2 + depth) for depth, (function, _) in enumerate(native)]
    assert stacks_of(result) == [[("<module>", 0), ("work", 1), *below], [("<module>", 0)]]
    assert result.samples["function"].tolist() == ["work", "<module>"]
    assert result.samples["filename"].tolist() == ["/home/user/lib.py", CELL]
    assert result.samples["line_number"].tolist() == [3, 3]
    functions = result.functions()
    assert (functions["self_ns"] > 0).all()


def test_what_the_shell_calls_outside_the_cell_is_not_the_cells_whoever_runs_the_shell():
    shell = ("run_cell_async", "/site/IPython/core/interactiveshell.py")
    driver = [("<module>", "/home/user/driver.py"), shell]
    parse = [("visit", "/site/IPython/core/compilerop.py"), ("iter_fields", "/lib/ast.py")]
    callback = [("trigger", "/site/IPython/core/events.py"), ("told", "/home/user/lib.py")]
    result = trimmed([*driver, *parse], [*driver, *callback], [*driver, *IN_CELL[-1:]])
    assert stacks_of(result) == [[("told", 0)], [("<module>", 0)]]


def test_what_machinery_calls_of_the_library_is_its_own_work():
    write = ("write", "/site/ipykernel/iostream.py")
    wait, work = ("wait", "/std/threading.py"), ("work", "/home/user/lib.py")
    result = trimmed([*IN_CELL, write, wait], [*IN_CELL, write, wait, work, wait])
    assert stacks_of(result) == [[("<module>", 0)], [("<module>", 0), ("work", 1), ("wait", 2)]]
    assert result.samples["function"].tolist() == ["<module>", "wait"]


def test_what_print_asks_the_display_is_the_cells_time():
    asks = ("is_active", "/site/IPython/core/displayhook.py")
    assert stacks_of(trimmed([*IN_CELL, asks])) == [[("<module>", 0)]]


def test_a_task_of_the_event_loop_keeps_its_own_frames():
    result = trimmed([*LOOP, ("consume", "/home/user/lib.py"), ("step", "/home/user/lib.py")])
    assert stacks_of(result) == [[("consume", 0), ("step", 1)]]


def test_a_thread_of_the_user_starts_at_the_users_function():
    result = trimmed([*THREAD, ("work", "/home/user/lib.py")])
    assert stacks_of(result) == [[("work", 0)]]


def test_a_callback_of_a_shell_event_is_kept():
    trigger = [
        *LOOP,
        ("run", "/site/IPython/core/shell.py"),
        ("trigger", "/site/IPython/core/events.py"),
    ]
    result = trimmed([*trigger, ("flush_figures", "/site/inline.py")])
    assert stacks_of(result) == [[("flush_figures", 0)]]


@pytest.mark.parametrize(
    "stack",
    [
        pytest.param(LOOP, id="nothing but machinery"),
        pytest.param([*LOOP, ("epoll_wait", "/lib/libc.so")], id="and native frames under it"),
        pytest.param(
            [*THREAD, ("_thread_main", "/site/ipykernel/iostream.py"), ("dumps", "/lib/json.py")],
            id="a service thread in the standard library",
        ),
    ],
)
def test_samples_of_the_machinery_are_dropped_and_counted(stack):
    result = trimmed(stack, [*IN_CELL])
    assert stacks_of(result) == [[("<module>", 0)]]
    assert result.info["trimmed"] == 1
    assert result.info["samples"] == 1


def test_samples_from_before_and_after_the_cell_are_dropped_and_counted():
    recording = recording_of([("early", CELL)], IN_CELL, IN_CELL, [("late", CELL)])
    result = trim(recording, MACHINERY, {**MARK, "start_ns": 101, "end_ns": 102})
    assert result.samples["ts_ns"].tolist() == [101, 102]
    assert set(result.stacks["function"]) == {"<module>"}
    assert result.info["trimmed"] == 2
    assert (result.info["start_ns"], result.info["end_ns"], result.info["wall_ns"]) == (101, 102, 1)


def test_native_threads_are_kept():
    result = trimmed([("blas_thread_server", "/lib/openblas.so")])
    assert stacks_of(result) == [[("blas_thread_server", 0)]]


def of_thread(recording, row, **changed):
    """Put one sample of a recording on another thread."""
    samples = recording.samples.astype({"comm": object})
    for column, value in changed.items():
        samples.loc[row, column] = value
    return Recording(samples, recording.frames, None, recording.info)


def test_native_threads_of_the_machinery_are_dropped():
    recording = recording_of(IN_CELL, [("send", "/lib/libc.so")])
    result = trim(of_thread(recording, 1, tid=8, comm="ZMQbg/IO/0"), MACHINERY, MARK)
    assert stacks_of(result) == [[("<module>", 0)]]
    assert len(result.frames) == 1


@pytest.mark.parametrize(("tid", "kept"), [(8, 1), (9, 2)])
def test_a_service_thread_is_dropped_while_it_runs_no_python_too(tid, kept):
    service = [*THREAD, ("_thread_main", "/site/ipykernel/iostream.py")]
    recording = recording_of(IN_CELL, service, [("take_gil", "/lib/libpython.so")])
    recording = of_thread(of_thread(recording, 1, tid=8), 2, tid=tid)
    assert len(trim(recording, MACHINERY, MARK).samples) == kept


def test_samples_without_any_frame_are_kept():
    result = trimmed_without_frames()
    assert len(result.samples) == 1
    assert result.info["trimmed"] == 0


def trimmed_without_frames():
    recording = recording_of([("gone", "/lib/gone.so")])
    bare = Recording(recording.samples, recording.frames.iloc[:0], None, {})
    return trim(bare, MACHINERY, MARK)


def test_equal_stacks_get_one_number_and_others_their_own():
    other_way = [*LAUNCH, ("<module>", CELL), ("work", "/home/user/lib.py")]
    result = trimmed(
        [*IN_CELL, ("work", "/home/user/lib.py")],
        [*IN_CELL, ("work", "/home/user/other.py")],
        other_way,
        IN_CELL,
    )
    assert result.samples["stack_id"].tolist() == [0, 1, 0, 2]
    assert sorted(result.frames["stack_id"].unique()) == [0, 1, 2]
    assert len(result.frames) == 5


def test_a_recording_without_samples_stays_empty():
    recording = recording_of([("gone", "/lib/gone.so")])
    empty = Recording(recording.samples.iloc[:0], recording.frames.iloc[:0], None, {})
    result = trim(empty, MACHINERY, MARK)
    assert len(result.samples) == 0
    assert result.info["cell"] == MARK


def test_the_cells_own_stretch_becomes_a_mark():
    result = trimmed(IN_CELL)
    mark = result.events.iloc[-1]
    assert (mark["kind"], mark["name"], mark["ts_ns"], mark["dur_ns"]) == ("mark", "cell", 100, 800)
    assert (mark["pid"], mark["tid"], mark["args"]) == (7, 7, {})


def test_cells_are_called_by_their_numbers():
    other = "/tmp/ipykernel_1/43.py"
    names = {CELL: "In[5]", other: "In[4]"}
    recording = recording_of([*IN_CELL, ("work", other), ("dump", "/lib/json.py")])
    result = trim(recording, MACHINERY, MARK, names)
    assert result.stacks["filename"].tolist() == ["In[5]", "In[4]", "/lib/json.py"]
    assert result.samples["filename"].tolist() == ["/lib/json.py"]
    assert result.info["cell_files"] == names


def test_two_texts_of_one_cell_can_have_one_name():
    names = {CELL: "In[5]", "/tmp/ipykernel_1/43.py": "In[5]"}
    recording = recording_of([*IN_CELL, ("work", "/tmp/ipykernel_1/43.py")])
    result = trim(recording, MACHINERY, MARK, names)
    assert result.stacks["filename"].tolist() == ["In[5]", "In[5]"]


def test_the_recording_that_goes_in_is_not_changed():
    recording = recording_of([*IN_CELL], LOOP)
    before = recording.frames.copy(), recording.samples.copy(), dict(recording.info)
    trim(recording, MACHINERY, MARK)
    pd.testing.assert_frame_equal(recording.frames, before[0])
    pd.testing.assert_frame_equal(recording.samples, before[1])
    assert recording.info == before[2]
