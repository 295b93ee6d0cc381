"""A cell under ``%%pystack`` in a real kernel has the outcome that it has without."""

from __future__ import annotations

import base64
import re
import threading
import time

import kernels
import pytest

from kernels import BUSY, plain
from nbclient.exceptions import CellExecutionError


pytestmark = pytest.mark.bpf


def roots(kernel):
    """Return the outermost functions and files of the newest recording."""
    kernel.run("_s = pystack_nb.last().stacks; _s = _s[_s['depth'] == 0]", silent=True)
    return kernel.evaluate("sorted(set(zip(_s['function'], _s['filename'], _s['kind'])))")


@pytest.fixture(autouse=True)
def nothing_is_left_on(kernel):
    """Whatever a cell did, no probe and no armed cell is left behind it."""
    yield
    outcome = kernel.run("print('plain')")
    assert (outcome.stdout, outcome.displays) == ("plain\n", [])
    state = "__import__('pystack_nb.cell_hooks').cell_hooks._local.cell"
    assert kernel.evaluate(state) is None
    kernel.forget_recordings()


@pytest.fixture(autouse=True, scope="module")
def functions(kernel):
    assert kernel.run(BUSY).status == "ok"


def test_the_value_of_the_last_expression_is_the_cells(kernel):
    outcome = kernel.run("%%pystack\nspin(0.1)\n6 * 7")
    assert (outcome.status, outcome.value) == ("ok", "42")
    assert kernel.evaluate("_") == 42


def test_a_semicolon_silences_the_value(kernel):
    assert kernel.run("%%pystack\n6 * 7;").value is None


def test_names_go_to_the_users_namespace_and_no_others_do(kernel):
    before = set(kernel.evaluate("list(globals())"))
    kernel.run("%%pystack\nfresh = [1]\ndef double(x): return fresh * x")
    added = set(kernel.evaluate("list(globals())")) - before
    assert {x for x in added if not x.startswith("_")} == {"fresh", "double"}
    assert kernel.evaluate("double(2)") == [1, 1]


def test_the_result_is_displayed_behind_the_value(kernel):
    outcome = kernel.run("%%pystack\nspin(0.2)\n6 * 7")
    kinds = [x["msg_type"] for x in outcome.outputs if x["msg_type"].startswith(("exec", "disp"))]
    assert kinds[-2:] == ["execute_result", "display_data"]
    [bundle] = outcome.displays
    assert "spin" in bundle["text/plain"]
    assert "<svg" in bundle["text/html"]
    assert outcome.stderr == ""


def test_the_figure_of_a_recording_is_a_picture_as_the_last_expression(kernel):
    assert kernel.run("%%pystack --quiet -o drawn\nspin(0.1)").status == "ok"
    [shown] = kernel.run("drawn.plot_timeline()").of("execute_result")
    assert base64.b64decode(shown["data"]["image/png"]).startswith(b"\x89PNG")


def test_quiet_displays_nothing_and_still_records(kernel):
    outcome = kernel.run("%%pystack --quiet -o silent_one\nspin(0.1)")
    assert outcome.displays == []
    assert kernel.evaluate("len(silent_one.samples) > 0")


def test_the_recording_is_kept_under_its_name_and_as_the_last(kernel):
    kernel.run("%%pystack -o kept\nspin(0.1)")
    assert kernel.evaluate("kept is pystack_nb.last()")
    assert kernel.evaluate("[kept.info['lost'], kept.info['complete']]") == [0, True]


def test_the_cell_is_the_root(kernel):
    kernel.run("%%pystack -o rec\nspin(0.3)")
    files = kernel.evaluate("rec.info['cell_files']")
    cell_file = files[kernel.evaluate("rec.info['cell']['filename']")]
    assert re.fullmatch(r"In\[\d+\]", cell_file)
    python = [x for x in roots(kernel) if x[2] == "python"]
    assert python == [("<module>", cell_file, "python")]
    files = kernel.evaluate("list(map(str, rec.stacks['filename'].unique()))")
    machinery = re.compile(r"/(IPython|ipykernel|tornado|zmq|asyncio|pystack_nb)/.*\.py")
    assert [x for x in files if machinery.search(x)] == []


@pytest.mark.parametrize("source", ["ebpf", "inprocess"])
def test_the_calls_of_a_cell_are_its_own_and_no_others(kernel, source):
    code = "def leaf(): pass\ndef work():\n    for _ in range(3): leaf()\nwork()\n6 * 7"
    kernel.run(f"%%pystack --mode calls --source {source}\n{code}")
    kernel.run("_c = pystack_nb.last().calls", silent=True)
    parents = kernel.evaluate(
        "[(f, 'In[' in n, None if p < 0 else _c['function'][p]) "
        "for f, n, p in zip(_c['function'], _c['filename'], _c['parent'])]"
    )
    called = [x for x in parents if x[0] != "<module>"]
    assert called == [("work", True, "<module>"), *[("leaf", True, "work")] * 3]
    assert {x for x in parents if x[0] == "<module>"} == {("<module>", True, None)}
    assert kernel.evaluate("pystack_nb.last().info['source']") == source


def test_what_is_recorded_of_calls_can_be_chosen(kernel):
    code = "import json\ndef outer(): return json.dumps([1])\nouter()"
    kernel.run(f"%%pystack --mode calls --exclude json* --depth 2\n{code}")
    found = kernel.evaluate("pystack_nb.last().calls['function'].unique().tolist()")
    assert "outer" in found
    assert "dumps" not in found


def test_a_cell_over_its_budget_says_which_calls_it_only_counted(kernel):
    code = "def leaf(): pass\nfor _ in range(600_000): leaf()"
    outcome = kernel.run(f"%%pystack --mode calls --budget 0.02\n{code}")
    (display,) = outcome.displays
    assert "leaf" in display["text/plain"]
    demoted = kernel.evaluate("pystack_nb.last().info['demoted']")
    assert [x["function"] for x in demoted] == ["leaf"]
    # Even counting them costs more than that: it ends, and says so.
    assert kernel.evaluate("pystack_nb.last().info['calls_stopped']") == "budget"
    assert "later calls were not recorded" in display["text/plain"]


def test_what_a_budget_hides_of_calls_is_told_by_samples(kernel):
    # GIVEN a function that takes the time, and whose calls are too many to be recorded
    code = (
        "def tiny(x): return x\ndef work(n): return sum(tiny(x) for x in range(n))\nwork(3_000_000)"
    )
    (display,) = kernel.run(f"%%pystack\n{code}").displays
    # THEN it is not its caller that the table names
    assert "times of functions are of samples" in display["text/plain"]
    found = kernel.evaluate("pystack_nb.last().functions()['function'].tolist()")
    assert found[0] == "work.<locals>.<genexpr>"


def test_lines_are_those_of_the_cell_as_it_was_written(kernel):
    kernel.run("%%pystack -o rec\n\n# a comment\nspin(0.2)")
    kernel.run("_r = rec.stacks; _r = _r[_r['function'] == '<module>']", silent=True)
    assert kernel.evaluate("sorted(_r['line_number'].unique().tolist())") == [4]


def test_the_cells_own_stretch_is_marked(kernel):
    kernel.run("%%pystack -o rec\nspin(0.2)")
    kernel.run("_m = rec.events.query(\"kind == 'mark' and name == 'cell'\")", silent=True)
    [(start, duration, tid)] = kernel.evaluate(
        "list(zip(_m['ts_ns'].tolist(), _m['dur_ns'].tolist(), _m['tid'].tolist()))"
    )
    assert duration >= 200_000_000
    assert tid == kernel.evaluate("__import__('threading').get_native_id()")
    inside = f"rec.samples['ts_ns'].between({start}, {start + duration})"
    assert kernel.evaluate(f"int({inside}.sum()) == len(rec.samples)")


def test_an_error_fails_the_cell_with_one_traceback(kernel):
    outcome = kernel.run("%%pystack -o partial\nspin(0.1)\n\n1 / 0")
    assert (outcome.status, outcome.error) == ("error", "ZeroDivisionError")
    text = plain(outcome.traceback)
    assert text.count("Traceback") == 1
    assert re.search(r"Cell In\[\d+\], line 4\n", text)
    assert "pystack_nb" not in text
    assert len(outcome.of("error")) == 1
    assert kernel.evaluate("len(partial.samples) > 0")


ENDED = """
_shell = get_ipython()
def _told(self, *arguments, **options):
    global ended_ns
    ended_ns = time.perf_counter_ns()
    time.sleep(0.2)
    return type(_shell)._showtraceback(self, *arguments, **options)
_shell._showtraceback = types.MethodType(_told, _shell)
"""


@pytest.mark.parametrize("code", ["1 / 0", "await asyncio.sleep(0)\n1 / 0", "raise SystemExit"])
def test_a_cell_that_fails_ends_before_its_traceback_is_rendered(kernel, code):
    kernel.run(f"import asyncio, time, types\n{ENDED}")
    outcome = kernel.run(f"%%pystack -o failed --quiet\nspin(0.1)\n{code}")
    kernel.run("del _shell._showtraceback")
    assert outcome.status == "error"
    assert kernel.evaluate("failed.info['end_ns'] < ended_ns")
    assert kernel.evaluate("len(failed.samples) > 0")


def test_an_error_that_the_cell_itself_shows_does_not_end_it(kernel):
    kernel.run(
        "%%pystack -o shown --quiet\n"
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()\n"
        "get_ipython().run_cell('1 / 0')\n"
        "import time\nafter_ns = time.perf_counter_ns()"
    )
    assert kernel.evaluate("shown.info['end_ns'] > after_ns")


def test_an_error_stops_a_notebook():
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        kernels.run_notebook("%load_ext pystack_nb", "%%pystack\n1 / 0", "print('went on')")


def test_a_syntax_error_is_shown_as_ever_and_nothing_is_recorded(kernel):
    before = kernel.evaluate("id(pystack_nb.last())")
    outcome = kernel.run("%%pystack\nx = 1\nx +* 2")
    assert (outcome.status, outcome.error) == ("error", "SyntaxError")
    assert re.search(r"Cell In\[\d+\], line 3", plain(outcome.traceback))
    assert outcome.displays == []
    assert kernel.evaluate("id(pystack_nb.last())") == before


def test_a_return_outside_a_function_is_a_syntax_error(kernel):
    outcome = kernel.run("%%pystack\nreturn 3")
    assert (outcome.status, outcome.error) == ("error", "SyntaxError")


@pytest.mark.parametrize(
    ("wait", "errors"),
    [
        ("while True: spin(0.05)", {"KeyboardInterrupt"}),
        ("import asyncio\nwhile True:\n    spin(0.05); await asyncio.sleep(0)", {"CancelledError"}),
    ],
)
def test_an_interrupt_stops_the_cell_and_keeps_the_recording(kernel, wait, errors):
    # GIVEN an interrupt on its way
    begun = threading.Timer(1.5, kernel.interrupt)
    begun.start()
    # WHEN it runs
    outcome = kernel.run(f"%%pystack -o interrupted\n{wait}\nprint('went on')")
    # THEN it ends as without the magic, and what was recorded is there
    assert outcome.status == "error"
    assert outcome.error in errors
    assert "went on" not in outcome.stdout
    assert kernel.evaluate("len(interrupted.samples) > 20")
    assert len(outcome.displays) == 1


def test_a_second_interrupt_ends_the_wait_for_a_collector_that_hangs(kernel):
    # GIVEN a cell that stops its own collector
    code = (
        "%%pystack\nimport os, signal\nfrom pystack_nb.collector import client\n"
        "mine = next(x for x in client._pool._clients if x.recording)\n"
        "os.kill(mine._collector.pid, signal.SIGSTOP)"
    )
    # WHEN it is interrupted twice while it waits for the collector
    for seconds in (2, 3):
        threading.Timer(seconds, kernel.interrupt).start()
    outcome = kernel.run(code)
    # THEN the wait is over, and another collector serves the next cell
    assert "KeyboardInterrupt" in outcome.stderr
    assert kernel.run("%%pystack -o served\nspin(0.1)").status == "ok"
    assert kernel.evaluate("len(served.samples) > 0")


def test_system_exit_leaves_the_kernel_running(kernel):
    outcome = kernel.run("%%pystack -o left\nspin(0.1)\nimport sys\nsys.exit(3)")
    assert (outcome.status, outcome.error) == ("error", "SystemExit")
    assert kernel.evaluate("len(left.samples) > 0")


def test_await_runs_on_the_kernels_own_loop(kernel):
    # GIVEN a task of an earlier cell that fills a queue, on the kernel's loop
    kernel.run(
        "import asyncio, sys\n"
        "sys.argv = ['changed']\n"
        "queue = asyncio.Queue(1)\n"
        "async def fill():\n"
        "    for number in range(3):\n"
        "        await queue.put(number)\n"
        "        spin(0.1)\n"
    )
    kernel.run("task = asyncio.get_running_loop().create_task(fill())\nawait asyncio.sleep(0)")
    # WHEN a recorded cell awaits what comes through it
    outcome = kernel.run("%%pystack -o awaited\n[await queue.get() for _ in range(3)]")
    # THEN it gets it, and the task's own frames are in the recording
    assert outcome.value == "[0, 1, 2]"
    assert "fill" in {function for function, _, _ in roots(kernel)}


def test_a_task_that_runs_cells_does_not_end_the_recording(kernel):
    code = (
        "%%pystack -o outer\n"
        "import asyncio\n"
        "async def other():\n"
        "    get_ipython().run_cell('nested = 1')\n"
        "task = asyncio.get_running_loop().create_task(other())\n"
        "await task\n"
        "spin(0.2)\n"
    )
    assert kernel.run(code).status == "ok"
    assert kernel.evaluate("nested") == 1
    assert kernel.evaluate("len(outer.samples) > 20")


def test_a_command_without_percent_works_as_in_any_cell_of_one_line(kernel):
    assert "spin" in kernel.run("%%pystack\nwho").stdout


def test_an_empty_cell_is_no_error(kernel):
    assert kernel.run("%%pystack\n").status == "ok"
    assert kernel.run("%%pystack").status == "ok"


def test_an_indented_cell_runs_as_any_indented_cell(kernel):
    assert kernel.run("%%pystack\n    a = 1\n    a + 1").value == "2"


def test_threads_and_native_pools_of_the_cell_are_recorded(kernel):
    kernel.run(
        "%%pystack -o threaded\n"
        "import threading\n"
        "threads = [threading.Thread(target=spin, args=(0.3,)) for _ in range(2)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads];\n"
    )
    assert "spin" in {function for function, _, _ in roots(kernel)}
    assert kernel.evaluate("threaded.samples['tid'].nunique() >= 2")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_of_the_cell_neither_hang_nor_end_it(kernel, method):
    outcome = kernel.run(
        "%%pystack -o forked\n"
        "import multiprocessing\n"
        f"with multiprocessing.get_context({method!r}).Pool(2) as pool:\n"
        "    total = sum(pool.map(abs, range(-10, 0)))\n"
        "spin(0.2)\n"
        "total"
    )
    assert (outcome.status, outcome.value) == ("ok", "55")
    assert kernel.evaluate("[forked.info['error'], len(forked.samples) > 20]") == [None, True]


def test_threads_that_end_inside_the_cell_keep_their_names(kernel):
    kernel.run(
        "%%pystack -o rec --quiet\n"
        "from concurrent.futures import ThreadPoolExecutor\nimport threading\n"
        "short = threading.Thread(target=spin, args=(0.2,), name='short')\n"
        "short.start(); short.join()\n"
        "with ThreadPoolExecutor(1, thread_name_prefix='pool') as pool:\n"
        "    pool.submit(spin, 0.2)"
    )
    named = "set(rec.info['thread_names'].get(str(x)) for x in rec.samples['tid'])"
    assert {"short", "pool_0"} <= kernel.evaluate(named)


def test_a_forked_copy_of_the_kernel_is_not_in_the_recording(kernel):
    outcome = kernel.run(
        "%%pystack -o parent\n"
        "import os\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    spin(0.05); os._exit(0)\n"
        "spin(0.2)\n"
        "os.waitpid(child, 0)[1]"
    )
    assert outcome.value == "0"
    assert kernel.evaluate("set(parent.samples['pid']) == {__import__('os').getpid()}")


def test_cells_after_each_other_have_recordings_of_their_own(kernel):
    kernel.run("%%pystack -o one\nspin(0.2)")
    kernel.run("def other(): spin(0.2)")
    kernel.run("%%pystack -o two\nother()")
    names = "set(map(str, {}.stacks['function'].unique()))"
    assert "other" in kernel.evaluate(names.format("two"))
    assert "other" not in kernel.evaluate(names.format("one"))
    assert kernel.evaluate("one.info['end_ns'] < two.info['start_ns']")


def test_two_notebooks_record_at_the_same_time(kernel):
    with kernels.kernel() as second:
        second.run("%load_ext pystack_nb\nimport pystack_nb")
        second.run("%%pystack\n" + BUSY)
        for each in (kernel, second):
            each.begin("%%pystack -o rec\nspin(2)")
        for each in (kernel, second):
            assert each.evaluate("set(rec.samples['pid']) == {__import__('os').getpid()}")
            assert each.evaluate("rec.info['lost']") == 0
        spans = [x.evaluate("[rec.info['start_ns'], rec.info['end_ns']]") for x in (kernel, second)]
        assert max(x[0] for x in spans) < min(x[1] for x in spans)


def test_time_passes_in_the_recording_as_on_the_clock(kernel):
    started = time.perf_counter_ns()
    kernel.run("%%pystack -o rec\nspin(0.1)")
    ended = time.perf_counter_ns()
    assert started < kernel.evaluate("rec.info['start_ns']") < ended
