"""Recorded programs recurse as deep as unrecorded ones, and what is left out near the end."""

from __future__ import annotations

import pytest


DOWN = """
sys.setrecursionlimit(1_000_000)

def down(depth):
    return down(depth - 1) + 1 if depth else 0
"""
OPTIONS = {
    "everything": "",
    "a depth": "depth=3",
    "short calls": "min_us=1",
    "nothing": "include=('none',)",
    "C functions": "c_calls=True",
    "few events": "max_events=5000",
    "a budget": "budget=0.01",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_recorded_program_recurses_as_deep_as_any(probed, options):
    probed.run(
        f"{DOWN}\n"
        "def program():\n"
        "    assert down(60_000) == 60_000\n"
        "    call(100)\n"
        f"keep(record(program, {options}))\n"
    )
    probed.recording()


KINDS = """
sys.setrecursionlimit(1_000_000)

class Thing:
    def __getitem__(self, depth): return self[depth - 1] if depth else 0
    def __call__(self, depth): return self(depth - 1) if depth else 0
    def method(self, depth): return self.method(depth - 1) if depth else 0

def keyword(*, depth): return keyword(depth=depth - 1) if depth else 0

def generator(depth):
    if depth: yield from generator(depth - 1)
    yield depth

async def coroutine(depth):
    if depth: await coroutine(depth - 1)

def awaits(depth):
    try: coroutine(depth).send(None)
    except StopIteration: pass
"""


def test_each_kind_of_call_recurses_as_deep_as_unrecorded(probed):
    probed.run(
        f"{KINDS}\n"
        "def program():\n"
        "    Thing()[5000]; Thing().method(5000); keyword(depth=5000)\n"
        "    next(generator(5000)); awaits(5000)\n"
        "program()\nkeep(record(program))\n"
    )
    found = probed.ncalls()
    assert found["Thing.method"] == found["keyword"] == 5001


def test_recursion_in_c_is_an_error_and_no_crash(probed):
    limit = 900 if probed.minor == 11 else 1_000_000  # later ones count it by itself
    probed.run(
        f"{KINDS}\nsys.setrecursionlimit({limit})\n"
        "def program():\n"
        "    try:\n        Thing()(60_000)\n"
        "    except RecursionError:\n        call(100)\n"
        "    else:\n        raise SystemExit('no error')\n"
        "keep(record(program))\n"
    )
    assert probed.ncalls()["leaf"] == 100


# Whoever has greenlets must stay on the thread's own stack, which comes to its end.
ON_ONE_STACK = "sys.modules['greenlet'] = sys\n"


def test_every_call_of_a_recursion_is_recorded_whatever_the_stack(probed):
    probed.run(
        f"{DOWN}\n"
        "def program():\n"
        "    down(60_000)\n"
        "    threading.stack_size(64 * 1024)\n"
        "    thread = threading.Thread(target=down, args=(20_000,))\n"
        "    thread.start(); thread.join()\n"
        "    call(10)\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["down"] == 60_001 + 20_001
    assert recording.info["incomplete"] == 0
    assert recording.calls["depth"].max() > 60_000


def test_code_that_runs_for_the_first_time_recurses_as_deep_as_unrecorded(probed):
    depth = 10_000 if probed.minor == 11 else 30_000  # 3.11 itself ends with a fault beyond
    probed.run(
        "sys.setrecursionlimit(100_000)\n"
        "class Thing:\n"
        "    left = 0\n"
        "    @property\n"
        "    def cold(self):\n"
        "        if not self.left: return 0\n"
        "        self.left -= 1\n"
        "        return self.cold\n"
        "    def __getitem__(self, depth): return self[depth - 1] if depth else 0\n"
        "def program():\n"
        f"    thing = Thing(); thing.left = {depth}; thing.cold; thing[{depth}]\n"
        "keep(record(program))\n"
    )
    found = probed.ncalls()
    assert found["Thing.cold"] == found["Thing.__getitem__"] == depth + 1


@pytest.mark.parametrize("size", [32, 64, 256])
def test_a_thread_with_a_small_stack_can_be_recorded_with_all_options(probed, size):
    probed.run(
        "sys.setrecursionlimit(10_000)\n"
        "def star(*depth): return star(*(depth[0] - 1,)) if depth[0] else 0\n"
        "def generator(depth):\n"
        "    if depth: yield from generator(depth - 1)\n"
        "    yield depth\n"
        "class Thing:\n"
        "    def __getitem__(self, depth): return self[depth - 1] if depth else 0\n"
        "new = {}\n"
        "exec('\\n'.join(f'def f{n}(): return f{n + 1}() if {n} < 200 else 0' for n in range(201)),"
        " new)\n"
        "def deep(): star(900); list(generator(100)); Thing()[900]; new['f0']()\n"
        "def program():\n"
        f"    threading.stack_size({size} * 1024)\n"
        "    thread = threading.Thread(target=deep)\n"
        "    thread.start(); thread.join()\n"
        "keep(record(program), 'whole')\n"
        "keep(record(program, c_calls=True, min_us=0.001, budget=1.0), 'limited')\n"
    )
    found = probed.ncalls("whole")
    assert found["star"] == found["Thing.__getitem__"] == 901
    assert found["f200"] == 1
    limited = probed.recording("limited")
    if limited.info["calls_stopped"] is None:
        assert probed.ncalls("limited")["star"] == 901


def test_recursion_near_the_end_of_the_stack_is_counted_and_recording_goes_on(probed):
    probed.run(
        f"{DOWN}{ON_ONE_STACK}\n"
        "def program():\n"
        "    for _ in range(3): down(60_000)\n"
        "    call(1000)\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    found = probed.ncalls()
    assert recording.info["incomplete_by_cause"]["deep-recursion"] == 3
    assert any("end of the C stack 3 times" in note for note in recording.info["notes"])
    assert found["leaf"] == 1000
    assert 5_000 < found["down"] / 3 < 60_001
    down = recording.calls[recording.calls["function"] == "down"]
    assert down["complete"].all()
    assert (down.groupby("depth").size() == 3).all()


def test_a_thread_with_a_small_stack_recurses_and_other_threads_say_what_they_miss(probed):
    probed.run(
        f"{DOWN}{ON_ONE_STACK}\n"
        "deep, go_on = threading.Semaphore(0), threading.Semaphore(0)\n"
        "def bottom(depth):\n"
        "    if depth: return bottom(depth - 1)\n"
        "    deep.release(); go_on.acquire()\n"
        "def program():\n"
        "    threading.stack_size(256 * 1024)\n"
        "    thread = threading.Thread(target=bottom, args=(20_000,))\n"
        "    thread.start()\n"
        "    deep.acquire()\n"
        "    call(50)\n"
        "    go_on.release()\n"
        "    thread.join()\n"
        "    call(100)\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["leaf"] == 100
    assert recording.info["incomplete_by_cause"]["deep-recursion"] == 2  # seen by both threads
    assert recording.calls.query("function == 'bottom'")["complete"].all()


def test_what_ran_before_recurses_near_the_end_of_a_small_stack_as_deep_as_unrecorded(probed):
    probed.run(
        f"{ON_ONE_STACK}\nsys.setrecursionlimit(10_000)\n"
        "class Thing:\n"
        "    def __getitem__(self, depth): return self[depth - 1] if depth else 0\n"
        # Before 3.11.4 it runs inside of its caller no more: see getitem.h.
        "depth = 900 if sys.version_info >= (3, 11, 4) else 200\n"
        "def program():\n"
        "    thread = threading.Thread(target=Thing().__getitem__, args=(depth,))\n"
        "    thread.start(); thread.join()\n"
        "    call(10)\n"
        "threading.stack_size(256 * 1024)\n"
        "program()\n"
        "keep(record(program, c_calls=True))\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["leaf"] == 10
    assert (recording.calls["kind"] == "c-call").any()
    assert recording.info["call_counters"]["hook_taken"] == 0


def test_a_recording_may_be_stopped_and_begun_anew_near_the_end_of_the_stack(probed):
    probed.build_evaluator()
    probed.run(
        f"{DOWN}{ON_ONE_STACK}\n"
        "def dives(depth):\n"
        "    global recording\n"
        "    if depth: return dives(depth - 1)\n"
        "    recording.stop(); keep(recording.data, 'first')\n"
        "    recording = Recording()\n"
        "    call(10)\n"
        "recording = Recording()\ndives(60_000)\ncall(10)\ndown(60_000)\ncall(10)\n"
        "recording.stop(); keep(recording.data, 'second')\n"
        "import evaluator\nassert evaluator.installed() == 'default'\n"
    )
    assert probed.recording("first").info["incomplete_by_cause"]["deep-recursion"] == 1
    assert probed.ncalls("second")["leaf"] >= 20
