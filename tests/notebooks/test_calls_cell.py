"""The calls of a cell's recording are the cell's own, whatever was asked for."""

from __future__ import annotations

import pytest


pytestmark = pytest.mark.bpf

FUNCTIONS = "pystack_nb.last().functions().dropna(subset='ncalls')[:200]"
LEAF = "def leaf(): pass\nfor _ in range(100): leaf()"
MODES = {"samples, too": "", "calls": "--mode calls", "inprocess": "--source inprocess"}


@pytest.fixture(autouse=True)
def no_recording_is_left(kernel):
    yield
    kernel.forget_recordings()


def functions(kernel, line, cell):
    """Record a cell; calls by function, where they are known."""
    outcome = kernel.run(f"%%pystack {line}\n{cell}")
    assert outcome.status == "ok", outcome.message
    kernel.run(f"_f = {FUNCTIONS}", silent=True)
    return kernel.evaluate("dict(zip(_f['function'], _f['ncalls'].astype(int)))")


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("options", ["--min-us 50", "--min-us 50 --c-calls", "--min-us 1e6"])
def test_short_calls_that_are_counted_are_the_cell_s(kernel, mode, options):
    assert functions(kernel, f"{mode} {options}", LEAF) == {"<module>": 2, "leaf": 100}


SQUARE = "def sq(x): return x * x\n"
SHOWN = {"a value": "sq(2)", "a print": "print(sq(2))", "both": "print(sq(2))\nsq(3)"}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("cell", SHOWN.values(), ids=SHOWN)
def test_short_calls_that_show_or_print_a_value_are_not_counted(kernel, mode, cell):
    found = functions(kernel, f"{mode} --min-us 1", SQUARE + cell)
    assert found.keys() <= {"<module>", "sq"}
    assert found["sq"] == cell.count("sq")


def test_short_calls_of_what_jupyter_is_made_of_are_counted_where_the_cell_makes_them(kernel):
    cell = (
        "import selectors, zmq.utils.jsonapi\n"
        "def both():\n    selector.get_map(); zmq.utils.jsonapi.dumps([])\n"
        "with selectors.SelectSelector() as selector:\n    for _ in range(50): both()"
    )
    found = functions(kernel, "--mode calls --min-us 100000", cell)
    wanted = ("both", "_BaseSelectorImpl.get_map", "dumps", "JSONEncoder.encode")
    assert {x: found.get(x) for x in wanted} == dict.fromkeys(wanted, 50)


@pytest.mark.parametrize("events", [50, 120, 190])
def test_the_bound_on_events_counts_from_the_cell_s_code_on(kernel, events):
    found = functions(kernel, f"--mode calls --max-events {events}", LEAF)
    assert found.keys() == {"<module>", "leaf"}
    # The code of the first statement is a call, too; one that is open at the end may be there.
    assert found["leaf"] in {events // 2 - 2, events // 2 - 1, events // 2}
    assert kernel.evaluate("pystack_nb.last().info['calls_stopped']") == "max-events"


def test_what_was_demoted_was_the_cell_s(kernel):
    functions(kernel, "--budget 0.0001", "def leaf(): pass\nfor _ in range(300_000): leaf()")
    demoted = kernel.evaluate("[x['function'] for x in pystack_nb.last().info['demoted']]")
    assert demoted == ["leaf"]
    notes = kernel.evaluate("pystack_nb.last().info['notes']")
    assert [x for x in notes if x.startswith("1 function would have cost more")]
    assert not [x for x in notes if "functions would have cost more" in x]


def test_calls_of_a_cell_that_awaits_are_counted_from_its_beginning_to_its_end(kernel):
    cell = (
        "import asyncio\ndef leaf(): pass\n"
        "async def task():\n    for _ in range(7): leaf()\n"
        "await asyncio.gather(task(), asyncio.sleep(0.05))\nleaf()"
    )
    found = functions(kernel, "--mode calls", cell)
    assert (found["task"], found["leaf"]) == (1, 8)
    found = functions(kernel, "--mode calls --min-us 1e5", cell)
    assert (found["task"], found["leaf"]) == (1, 8)


WORK = {
    "a value": "sum(range(1000))",
    "one print": "print('hi'); 7",
    "many": "for _ in range(100): print('hi')\nsorted([3, 1], key=lambda x: x)",
    "another magic": "%timeit -n 10 -r 2 sum(range(10))",
}


@pytest.mark.parametrize("line", ["", "%%capture\n"], ids=["", "captured"])
@pytest.mark.parametrize("cell", WORK.values(), ids=WORK)
def test_no_time_of_a_cell_is_lost_and_no_machinery_shown(kernel, line, cell):
    assert kernel.run(f"{line}%%pystack --mode calls\n{cell}").status == "ok"
    kernel.run("_c = pystack_nb.last().calls; _r = _c[_c['parent'] < 0]", silent=True)
    assert kernel.evaluate("int(_c['self_ns'].sum() - _r['dur_ns'].sum())") == 0
    assert kernel.evaluate("sorted(set(_r['function']))") == ["<module>"]
    files = kernel.evaluate("sorted(set(_c['filename']))")
    assert not [x for x in files if "IPython" in x or "traitlets" in x or "threading" in x]


def test_a_recording_inside_a_recording_shows_nothing_of_the_package(kernel):
    inner = "def leaf(): pass\nleaf()\n%pystack --mode sample sum(x * x for x in range(200_000))"
    assert functions(kernel, "", inner)["leaf"] == 1
    kernel.run("_c = set(pystack_nb.last().calls['filename'])", silent=True)
    # Not what the package calls of the library, either.
    assert not kernel.evaluate("[x for x in _c if '/' in x]")
    kernel.run("_f = pystack_nb.last().functions()['filename'].dropna()", silent=True)
    assert not kernel.evaluate("[x for x in _f if '/pystack_nb/' in x or '/IPython/' in x]")


def test_marks_and_what_asks_for_a_recording_are_not_in_it(kernel):
    marked = "def leaf(): pass\nwith pystack_nb.mark('x', a=1): leaf()"
    assert functions(kernel, "--mode calls", marked) == {"<module>": 2, "leaf": 1}


@pytest.mark.parametrize("name", ["In[{}]", "In[*]"])
def test_cells_can_be_chosen_by_the_names_that_tables_show(kernel, name):
    cell = "import json\njson.dumps(1)\ndef here(): pass\nhere()\nearlier()"
    kernel.run("def earlier(): pass")
    number = kernel.evaluate("get_ipython().execution_count") - 1
    found = functions(kernel, f"--mode calls --include {name.format(number)}", cell)
    assert found.pop("<module>", 0) == (5 if "*" in name else 0)
    assert found == ({"here": 1, "earlier": 1} if "*" in name else {"earlier": 1})


def test_a_cell_that_is_not_there_is_no_filter(kernel):
    outcome = kernel.run("%%pystack --include In[9999]\n1")
    assert (outcome.status, outcome.error) == ("error", "OptionError")
    assert "In[9999]" in outcome.message


def test_filters_that_nothing_was_like_are_told(kernel):
    assert functions(kernel, "--mode calls --include nothing", LEAF) == {}
    notes = kernel.evaluate("pystack_nb.last().info['notes']")
    assert [x for x in notes if "like what was asked for" in x]


SLOW = """
import asyncio, sys, time, types
lib_slow = types.ModuleType("lib_slow")
exec(compile('''
import time
def busy():
    end = time.perf_counter() + 0.01
    while time.perf_counter() < end: pass
def small(): pass
async def slow():
    for _ in range(50): small()
    busy()
''', "/nowhere/lib_slow.py", "exec"), lib_slow.__dict__)
"""


@pytest.fixture
def slow(kernel):
    assert kernel.run(SLOW).status == "ok"


@pytest.mark.usefixtures("slow")
def test_long_calls_of_a_task_have_rows_where_the_cell_s_resumes_have_none(kernel):
    cell = "def mine(): lib_slow.busy()\nmine()\nawait asyncio.create_task(lib_slow.slow())"
    found = functions(kernel, "--mode calls --min-us 1000", cell)
    assert (found["mine"], found["busy"], found["slow"], found["small"]) == (1, 2, 1, 50)


@pytest.mark.usefixtures("slow")
def test_an_event_loop_of_the_user_s_own_is_no_machinery(kernel):
    kernel.run(
        "import threading\nloop = asyncio.new_event_loop()\n"
        "threading.Thread(target=loop.run_forever, daemon=True).start()\ntime.sleep(0.2)"
    )
    cell = "asyncio.run_coroutine_threadsafe(lib_slow.slow(), loop).result()"
    found = functions(kernel, "--mode calls --min-us 1000", cell)
    assert (found["slow"], found["busy"], found["small"]) == (1, 1, 50)
    found = functions(kernel, "--mode calls --include */lib_slow.py", cell)
    assert found == {"slow": 1, "busy": 1, "small": 50}
    kernel.run("loop.call_soon_threadsafe(loop.stop)")


@pytest.mark.usefixtures("slow")
def test_a_cell_that_awaits_and_is_left_out_itself_shows_what_it_calls(kernel):
    kernel.run("get_ipython().events.register('post_execute', lib_slow.small)")
    cell = "import json\nawait asyncio.sleep(0)\nlib_slow.busy()\njson.dumps([1])"
    try:
        found = functions(kernel, "--mode calls --exclude In[*]", cell)
    finally:
        kernel.run("get_ipython().events.unregister('post_execute', lib_slow.small)")
    assert (found["busy"], found["dumps"]) == (1, 1)
    assert "small" not in found


@pytest.mark.usefixtures("slow")
def test_the_thread_that_a_statement_awaits_in_shows_nothing_of_the_package(kernel):
    outcome = kernel.run("%pystack --mode calls --quiet await lib_slow.slow()")
    assert outcome.status == "ok", outcome.message
    found = kernel.evaluate("set(pystack_nb.last().calls['function'])")
    assert {"slow", "busy", "small"} <= found
    assert not {"Future.set_result", "Condition.notify", "Condition.notify_all"} & found
