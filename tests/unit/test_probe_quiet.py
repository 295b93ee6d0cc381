"""What a probe leaves out: what the package calls, and what runs the code that is looked at."""

from __future__ import annotations

import pytest


def names(probed):
    return set(probed.ncalls()) - {"Recording.stop"}


def test_nothing_is_recorded_of_what_is_called_quietly(probed):
    probed.run(
        "import json\nfrom pystack_nb.quiet import quiet, quietly\n"
        "def program():\n"
        "    call(2)\n"
        "    with quiet():\n"
        "        json.dumps({'a': call(5)}, indent=1)\n"
        "        with quiet():\n            call(7)\n"
        "        call(7)\n"
        "    quietly(call)(7)\n"
        "    call(3)\n"
        "keep(record(program, c_calls=True))\n"
    )
    found = probed.ncalls()
    assert found["leaf"] == 5
    assert found["call"] == 2
    assert not {"dumps", "JSONEncoder.encode"} & found.keys()


def test_another_thread_is_recorded_while_one_is_quiet(probed):
    probed.run(
        "import threading\nfrom pystack_nb.quiet import quiet\n"
        "def program():\n"
        "    with quiet():\n"
        "        thread = threading.Thread(target=call, args=(9,))\n"
        "        thread.start()\n        thread.join()\n"
        "        call(4)\n"
        "keep(record(program))\n"
    )
    assert probed.ncalls()["leaf"] == 9


def test_a_block_that_is_quiet_may_raise_and_begin_before_the_recording(probed):
    probed.run(
        "from pystack_nb.probe import load\nfrom pystack_nb.quiet import quiet\n"
        "load()\n"
        "with quiet():\n"
        "    recording = Recording()\n    call(3)\n"
        "try:\n    with quiet():\n        call(5)\n        raise KeyError\n"
        "except KeyError:\n    call(1)\n"
        "recording.stop()\n"
        "keep(recording.data)\n"
    )
    assert probed.ncalls()["leaf"] == 1


INTERRUPTED = """
import signal
import time

from pystack_nb import marks
from pystack_nb.probe import load
from pystack_nb.quiet import quiet, quietly

class Interrupt(Exception):
    pass

def interrupt(*_):
    raise Interrupt

def block():
    while True:
        with quiet():
            pass

@quietly
def nothing():
    pass

def function():
    while True:
        nothing()

def marked():
    while True:
        with marks.mark("x"):
            pass

load()
signal.signal(signal.SIGALRM, interrupt)
recording = Recording()
events = marks.begin(Path("events"))
interrupts, until = 0, time.monotonic() + 1.5
while time.monotonic() < until:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0004)
        LOOP()
    except Interrupt:
        interrupts += 1
marks.end(events)
recording.stop()
assert interrupts > 100, interrupts
try:
    load()[0].Quiet().__exit__(None, None, None)
except RuntimeError:
    pass
else:
    raise AssertionError("the thread was left quiet")
"""


@pytest.mark.parametrize("loop", ["block", "function", "marked"])
def test_an_interrupt_leaves_no_thread_quiet(probed, loop):
    probed.run(f"{INTERRUPTED.replace('LOOP', loop)}\nkeep(record(lambda: call(3)))\n")
    assert probed.ncalls()["leaf"] == 3


CELLS = """
from itertools import islice

def cell(text, flags=0):
    return compile(text, "cell.py", "exec", flags, dont_inherit=True)

def machinery():
    call(3)

def run(*cells):
    for text in cells:
        machinery()
        exec(cell(text), globals())
    machinery()
"""


def test_a_thread_can_be_recorded_only_while_code_of_one_file_runs(probed):
    probed.run(
        f"{CELLS}\n"
        "def program():\n    run('call(2)', 'def f(): call(5)\\nf()')\n    f()\n"
        "keep(record(program, only_in='cell.py', min_us=1e3))\n"
    )
    found = probed.ncalls()
    assert found["leaf"] == 12
    assert found["<module>"] == 2
    assert not {"machinery", "run", "program", "cell"} & found.keys()


def test_other_threads_are_recorded_whatever_one_waits_for(probed):
    probed.run(
        f"{CELLS}\nimport threading\n"
        "def program():\n"
        "    thread = threading.Thread(target=call, args=(9,))\n"
        "    thread.start()\n    thread.join()\n    run('call(2)')\n"
        "keep(record(program, only_in='cell.py'))\n"
    )
    assert probed.ncalls()["leaf"] == 11


def test_the_bound_on_events_counts_from_that_code_on(probed):
    probed.run(
        f"{CELLS}\n"
        "def program():\n    call(100)\n    run('call(2)')\n    call(100)\n"
        "keep(record(program, only_in='cell.py', max_events=9))\n"
    )
    assert probed.ncalls() == {"<module>": 1, "call": 1, "leaf": 2}
    assert probed.recording().info["calls_stopped"] is None


def test_what_the_code_raises_ends_it_as_well(probed):
    probed.run(
        f"{CELLS}\n"
        "def program():\n"
        "    try:\n        run('call(2)', 'call(1); 1 / 0')\n"
        "    except ZeroDivisionError:\n        call(7)\n"
        "keep(record(program, only_in='cell.py'))\n"
    )
    assert probed.ncalls()["leaf"] == 3


def test_a_coroutine_runs_to_its_end_with_what_runs_while_it_waits(probed):
    probed.run(
        f"{CELLS}\nimport ast, asyncio\n"
        "async def task():\n    call(5)\n"
        "code = cell('call(1)\\nawait asyncio.gather(asyncio.sleep(0.01), task())\\ncall(2)',\n"
        "            ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)\n"
        "async def shell():\n    machinery()\n    await eval(code, globals())\n    machinery()\n"
        "def program():\n    asyncio.run(shell())\n"
        "keep(record(program, only_in='cell.py'))\n"
    )
    found = probed.ncalls()
    assert found["leaf"] == 8
    assert found["task"] == 1
    assert not {"machinery", "program"} & found.keys()


COROUTINE = f"""{CELLS}
import ast, asyncio

code = cell('call(1)\\nawait asyncio.sleep(0)\\ncall(2)', ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)

async def shell():
    await eval(code, globals())
    machinery()

def program():
    asyncio.run(shell())
"""


def test_a_coroutine_that_is_not_recorded_itself_ends_as_well(probed):
    probed.run(f"{COROUTINE}\nkeep(record(program, only_in='cell.py', exclude=('cell.py',)))\n")
    found = probed.ncalls()
    assert found["leaf"] == 3
    assert "machinery" not in found


def test_a_generator_that_stops_half_way_is_waited_for_again(probed):
    probed.run(
        f"{CELLS}\n"
        "def program():\n"
        "    run('def f():\\n  yield call(1)\\n  yield call(2)\\ng = f()')\n"
        "    next(g)\n    machinery()\n    next(g)\n    machinery()\n"
        "keep(record(program, only_in='cell.py'))\n"
    )
    found = probed.ncalls()
    assert found["leaf"] == 3
    assert "machinery" not in found


def test_short_calls_of_foreign_threads_are_not_counted(probed):
    probed.run(
        "import threading\n"
        "go, done = threading.Event(), threading.Event()\n"
        "def foreign():\n    go.wait()\n    call(9)\n    done.set()\n"
        "thread = threading.Thread(target=foreign)\nthread.start()\n"
        "def program():\n    call(2)\n    go.set()\n    done.wait()\n"
        "keep(record(program, min_us=1e3, foreign=(thread.native_id,)))\n"
        "thread.join()\n"
    )
    assert probed.ncalls()["leaf"] == 2


RUNS = """
def made(file, text):
    exec(compile(text, file, "exec"), globals())

made("/lib/help.py", "def help(f): leaf2(); return f()\\ndef leaf2(): pass")
made("/lib/site-packages/other.py", "def other(): leaf2()")
made("/run/runs.py", "def runs(f): return help(f)\\n"
     "class Made:\\n    def __init__(self): help(int)\\n"
     "def steps():\\n    help(int)\\n    yield\\n    help(int)\\n"
     "def fails(): help(int); 1 / 0")
made("/user.py", "def mine(): leaf(); help(leaf)")
made("/serve/serves.py", "def serves(f): return help(f)")
made("/carry/carries.py", "def carries(f): return f()")
places = {
    "uncounted": ("/run/*",),
    "serving": ("/serve/*",),
    "library": ("/lib/*",),
    "outside": ("/run/*", "/serve/*", "/carry/*"),
}
"""


def test_short_calls_of_what_runs_the_code_are_not_counted_but_those_of_the_code_are(probed):
    probed.run(
        f"{RUNS}\n"
        "def program():\n"
        "    for _ in range(300):\n        runs(mine)\n        runs(other)\n        Made()\n"
        "        list(steps())\n"
        "        try:\n            fails()\n        except ZeroDivisionError:\n            pass\n"
        "    help(leaf)\n"
        "keep(record(program, min_us=1e6, **places))\n"
    )
    found = probed.ncalls()
    # The helper's own are counted where the code has called it.
    assert {x: found.get(x) for x in ("mine", "leaf", "help", "leaf2", "other")} == {
        "mine": 300,
        "leaf": 601,
        "help": 301,
        "leaf2": 601,
        "other": 300,
    }
    assert not {"runs", "Made.__init__", "steps", "fails"} & found.keys()


@pytest.mark.parametrize(
    ("program", "counted"),
    [
        ("lambda: serves(int)", {}),
        ("lambda: carries(serves_alone)", {}),
        ("lambda: runs(serves_alone)", {}),
        ("lambda: serves(mine)", {"mine": 1, "leaf": 2, "help": 1, "leaf2": 1}),
        ("lambda: users()", {"users": 1, "serves": 1, "carries": 1, "help": 1, "leaf2": 1}),
    ],
    ids=["alone", "carried", "run", "around the code", "called by the code"],
)
def test_short_calls_of_what_serves_are_counted_where_the_code_calls_it(probed, program, counted):
    probed.run(
        f"{RUNS}\n"
        "made('/serve/more.py', 'def serves_alone(): serves(int)')\n"
        "made('/user.py', 'def users(): carries(int); serves(int)')\n"
        f"made('/carry/program.py', 'program = {program}')\n"
        "keep(record(program, min_us=1e6, **places))\n"
    )
    found = probed.ncalls()
    found.pop("Recording.stop")  # the program's own
    assert found == counted


def test_c_functions_that_what_runs_the_code_calls_are_not_counted_when_short(probed):
    probed.run(
        f"{RUNS}\n"
        "made('/run/runs.py', 'def runs(f): [].append(1); f()')\n"
        "made('/user.py', 'def mine(): [].append(1)')\n"
        "def program():\n    for _ in range(50): runs(mine)\n"
        "keep(record(program, min_us=1e6, c_calls=True, **places))\n"
    )
    assert probed.ncalls()["list.append"] == 50


def test_a_backslash_in_a_glob_is_one(probed):
    probed.run(
        "spaces = {'call': call}\n"
        "code = compile('def odd(): call(1)', 'a\\\\b.py', 'exec')\nexec(code, spaces)\n"
        "keep(record(spaces['odd'], include=('a\\\\b.p?',)))\n"
    )
    assert names(probed) == {"odd"}
