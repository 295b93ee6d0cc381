"""What is recorded less than whole: by choice, by a budget, and near the end of the stack."""

from __future__ import annotations

import pytest

from probing import MINORS


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


LEVELS = """
def a():
    b(); b()

def b():
    c(); c(); c()

def c():
    leaf()

class Thing:
    def __init__(self):
        leaf()
"""


def test_calls_deeper_than_asked_are_left_out(probed):
    probed.run(
        f"{LEVELS}\n"
        "def program():\n    for _ in range(50): a()\n"
        "keep(record(program, depth=3))\n"
        "def program():\n    for _ in range(50): b(); Thing()\n"
        "keep(record(program, depth=2), 'init')\n"
    )
    calls = probed.recording().calls
    assert calls["depth"].max() == 2
    found = probed.ncalls()
    assert (found["a"], found["b"]) == (50, 100)
    assert {"c", "leaf"}.isdisjoint(found)
    found = probed.ncalls("init")
    assert (found["b"], found["Thing.__init__"]) == (50, 50)
    assert {"c", "leaf"}.isdisjoint(found)


def test_short_calls_have_no_slice_and_are_counted(probed):
    probed.run(
        f"{LEVELS}\n"
        "def spins():\n"
        "    leaf()\n"
        "    end = time.perf_counter_ns() + 30_000_000\n"
        "    while time.perf_counter_ns() < end: pass\n"
        "    leaf()\n"
        "def program():\n"
        "    for _ in range(500): a(); Thing()\n"
        "    spins()\n"
        "keep(record(program, min_us=20_000))\n"
    )
    recording = probed.recording()
    assert set(recording.calls["function"]) >= {"program", "spins"}
    assert (recording.calls["function"] == "leaf").sum() < 3500
    found = probed.ncalls()
    assert [found[name] for name in ("a", "b", "c", "Thing.__init__", "spins")] == [
        *(500, 1000, 3000, 500, 1)
    ]
    assert found["leaf"] == 3502


def test_files_and_modules_are_chosen_by_globs(probed):
    (probed.folder / "one_of_mine.py").write_text("def mine(f):\n    return f()\n")
    (probed.folder / "another.py").write_text("def theirs():\n    return 1\n")
    probed.run(
        "sys.path.insert(0, '.')\nimport another, one_of_mine\n"
        "def program():\n"
        "    for _ in range(100): one_of_mine.mine(another.theirs); leaf()\n"
        "keep(record(program, include=('one_of_*',)), 'module')\n"
        "keep(record(program, include=('*/one_of_mine.py', '*/ano*')), 'files')\n"
        "keep(record(program, exclude=('*/another.py', 'record_calls', '__main__')), 'without')\n"
        "keep(record(program, include=('an*', 'one*'), exclude=('another',)), 'both')\n"
    )
    for name in ("module", "without", "both"):
        assert probed.ncalls(name) == {"mine": 100}
    assert probed.ncalls("files") == {"mine": 100, "theirs": 100}


def test_a_bound_on_events_ends_the_recording_cleanly(probed):
    probed.run(
        "def threads():\n"
        "    threads = [threading.Thread(target=call, args=(5000,)) for _ in range(4)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "keep(record(lambda: call(100_000), max_events=10_000))\n"
        "keep(record(lambda: call(1000), max_events=101), 'few')\n"
        "keep(record(threads, max_events=9999), 'threads')\n"
        "keep(record(lambda: call(100), max_events=9999), 'all')\n"
    )
    for name, bound in (("out", 10_000), ("few", 101), ("threads", 9999)):
        recording = probed.recording(name)
        assert recording.info["calls_stopped"] == "max-events"
        assert len(recording.calls) + recording.calls["complete"].sum() == bound
        assert recording.info["incomplete_by_cause"]["calls-not-named"] == 0
        assert any("bound on events" in note for note in recording.info["notes"])
    assert probed.recording("all").info["calls_stopped"] is None


def test_the_bound_leaves_out_what_other_threads_stored_before_what_the_ending_one_did(probed):
    probed.run(
        "go_on, done = threading.Event(), threading.Event()\n"
        "def other():\n    go_on.wait(); call(200); done.set(); threading.Event().wait()\n"
        "threading.Thread(target=other, daemon=True).start()\n"
        "def mine(): pass\n"
        "def program():\n"
        "    go_on.set(); done.wait()\n"
        "    for _ in range(20): mine()\n"
        "keep(record(program, max_events=100))\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["mine"] == 20
    assert len(recording.calls) + recording.calls["complete"].sum() == 100
    assert recording.info["calls_stopped"] == "max-events"


def test_a_thread_that_ends_after_the_bound_was_reached_stores_no_more_than_that(probed):
    probed.run(
        "begun, go_on = threading.Event(), threading.Event()\n"
        "def other():\n    call(500); begun.set(); go_on.wait()\n"
        "def program():\n"
        "    thread = threading.Thread(target=other)\n"
        "    thread.start(); begun.wait()\n"
        "    call(50_000)\n"
        "    go_on.set(); thread.join()\n"
        "keep(record(program, max_events=9999))\n"
    )
    calls = probed.recording().calls
    assert len(calls) + calls["complete"].sum() == 9999


def test_what_a_budget_demotes_is_told_and_no_call_is_missing(probed):
    probed.run(
        f"{LEVELS}\n"
        "def generates():\n"
        "    for number in range(1000): yield number\n"
        "def program():\n"
        "    for _ in range(300):\n"
        "        call(1000); sum(generates())\n"
        "        for _ in range(100): Thing()\n"
        "keep(record(program, budget=0.05))\n"
    )
    recording = probed.recording()
    assert recording.info["calls_stopped"] in {None, "budget"}
    demoted = {entry["function"]: entry for entry in recording.info["demoted"]}
    assert "leaf" in demoted
    assert 0 < demoted["leaf"]["counted"] <= 330_000
    assert any("more than the budget" in note for note in recording.info["notes"])
    if recording.info["calls_stopped"] is None:
        found = probed.ncalls()
        assert found["leaf"] == 330_000
        assert found["generates"] == 300 * 1001
        assert found["Thing.__init__"] == 30_000


def test_counted_calls_that_cost_too_much_end_exact_recording(probed):
    probed.build_evaluator()
    probed.run(
        "def program():\n"
        "    deadline = time.monotonic() + 60\n"
        "    while time.monotonic() < deadline:\n"
        "        call(50_000)\n"
        "        if evaluator.installed() == 'default': break\n"
        "    else:\n        raise SystemExit('it goes on')\n"
        "import evaluator\n"
        "recording = Recording(budget=1e-6)\nprogram()\nrecording.stop()\nkeep(recording.data)\n"
    )
    recording = probed.recording()
    assert recording.info["calls_stopped"] == "budget"
    assert any("more than its budget" in note for note in recording.info["notes"])


MANY_WAYS = {
    "short calls that are taken back": ("call(400_000)", "min_us=1e6"),
    "calls deeper than asked": ("call(400_000)", "depth=1"),
    "calls that are not wanted": ("call(400_000)", "exclude=('<string>',)"),
    "functions that are called in turn": ("for f in functions * 300: f()", ""),
}


@pytest.mark.parametrize(("body", "options"), MANY_WAYS.values(), ids=MANY_WAYS)
def test_a_budget_holds_for_whatever_goes_through_the_evaluator(probed, body, options):
    probed.run(
        "made = {}\nexec('\\n'.join(f'def f{n}(): pass' for n in range(2000)), made)\n"
        "functions = [made[f'f{n}'] for n in range(2000)]\n"
        f"def program():\n    {body}\n"
        f"keep(record(program, budget=1e-6, {options}))\n"
    )
    recording = probed.recording()
    assert recording.info["calls_stopped"] == "budget"
    assert any("more than its budget" in note for note in recording.info["notes"])


def test_what_a_call_costs_is_measured_once_and_with_nobody_in_the_way(probed):
    probed.run(
        "from pystack_nb import probe\n"
        "budget = CallOptions(budget=0.5)\n"
        "recording = Recording()\nProbe(budget).close()\nassert not probe._costs\n"
        "recording.stop()\nProbe(budget).close()\n"
        "[known] = probe._costs.values()\n"
        "assert all(0 < cost <= 1000 for cost in known), known\n"
        "Probe(budget).close()\nassert [*probe._costs.values()][0] is known\n"
    )


# 3.11 does not tell what its profile hook is.
@pytest.mark.parametrize(
    "probed", [x for x in MINORS if x > 11], indirect=True, ids=lambda minor: f"3.{minor}"
)
def test_a_recording_that_has_ended_by_itself_watches_no_c_function_any_more(probed):
    probed.run(
        "import dis\n"
        "def f():\n    len('')\n"
        "[at] = [x.offset for x in dis.get_instructions(f) if x.opname == 'CALL']\n"
        "def watched(): return f.__code__._co_code_adaptive[at] >= 230\n"
        "seen = []\n"
        "def program():\n"
        "    f(); seen.append(watched())\n"
        "    call(5000); f(); f(); seen.append(watched())\n"
        "for options in (dict(max_events=500), dict(budget=1e-6)):\n"
        "    record(lambda: program() or call(400_000) or program(), c_calls=True, **options)\n"
        "    first, *_, last = seen\n    seen.clear()\n"
        "    assert first and not last, options\n"
    )


def test_a_budget_holds_for_c_functions_and_other_calls_go_on(probed):
    probed.run(
        "def many():\n    for _ in range(1_000_000): len('')\n"
        "def program():\n    many()\n    call(10)\n"
        "keep(record(program, budget=0.01, c_calls=True))\n"
    )
    recording = probed.recording()
    assert 0 < (recording.calls["function"] == "len").sum() < 1_000_000
    assert recording.info["call_counters"]["c_stopped"] == 1
    assert any("calls of C functions would have cost" in x for x in recording.info["notes"])
    assert recording.info["calls_stopped"] == "budget" or probed.ncalls()["leaf"] == 10


def test_the_total_of_a_recursion_of_short_calls_counts_each_moment_once(probed):
    probed.run(
        "def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "class Thing:\n"
        "    def __init__(self, depth):\n"
        "        if depth: Thing(depth - 1)\n"
        "def program():\n    fib(14); fib(10); make(Thing)\n"
        "def make(kind):\n    for _ in range(20): kind(100)\n"
        "begin = time.monotonic_ns()\n"
        "keep(record(program, min_us=1e8))\n"
        "print(time.monotonic_ns() - begin)\n"
    )
    table = probed.recording().functions().set_index("function")
    program = table.loc["program", "total_ns"]
    for name, calls in (("fib", 1219 + 177), ("Thing.__init__", 20 * 101)):
        assert table.loc[name, "ncalls"] == calls
        assert 0 < table.loc[name, "total_ns"] <= program


C_CALLS = """
def raises():
    try:
        int('x')
        [].pop()
    except (IndexError, ValueError):
        pass
    try:
        [].pop()
    except IndexError:
        pass

def key(value):
    return abs(value)

def program():
    for _ in range(40):
        sorted(range(5), key=key)
        ' '.join(('a', 'b'))
        raises()
        getattr(1, 'real')
        len([])
"""


def test_c_functions_are_recorded_as_the_profile_hook_tells_them(probed):
    probed.run(
        f"{C_CALLS}\n"
        "import collections, json\n"
        "told = collections.Counter()\n"
        "def hook(frame, event, arg):\n"
        "    if event == 'c_call' and frame.f_code.co_filename == '<string>':\n"
        "        told[arg.__qualname__] += 1\n"
        "keep(record(program, c_calls=True))\n"
        "sys.setprofile(hook); program(); sys.setprofile(None)\n"
        "print(json.dumps(told))\n"
    )
    recording = probed.recording()
    calls = recording.calls
    of_c = calls[calls["kind"] == "c-call"]
    found = of_c.groupby("function", observed=True).size().to_dict()
    expected = {"sorted": 40, "str.join": 40, "list.pop": 40, "getattr": 40, "len": 40, "abs": 200}
    assert {name: found.get(name) for name in expected} == expected
    assert probed.ncalls()["key"] == 200
    keys = calls[calls["function"] == "key"]
    assert set(calls["function"].iloc[keys["parent"]]) == {"sorted"}
    assert of_c["complete"].all()


def test_another_profiler_in_between_does_not_shift_the_calls(probed):
    probed.run(
        f"{C_CALLS}\n"
        "import cProfile\n"
        "def profiled():\n"
        "    profile = cProfile.Profile()\n"
        "    profile.enable(); leaf(); profile.disable()\n"
        "def around():\n    for _ in range(20): profiled(); call(3)\n"
        "keep(record(around, c_calls=True))\n"
    )
    calls = probed.recording().calls
    assert probed.ncalls()["leaf"] == 80
    assert calls.loc[calls["function"].isin(["profiled", "call", "leaf"]), "complete"].all()
    profiled = calls[calls["function"] == "profiled"]
    assert set(calls["function"].iloc[profiled["parent"]]) == {"around"}


def test_what_is_in_the_place_of_the_probe_is_named(probed):
    if probed.minor == 11:
        busy, free = "sys.setprofile(lambda *_: None)", "sys.setprofile(None)"
    else:
        busy = "[sys.monitoring.use_tool_id(n, 'x') for n in (2, 3, 4)]"
        free = "[sys.monitoring.free_tool_id(n) for n in (2, 3, 4)]"
    probed.run(
        f"{busy}\n"
        "for _ in range(2):\n"
        "    try:\n        Recording(c_calls=True)\n"
        "    except ProfilerStateError as error:\n"
        "        assert 'stop the other tool first' in str(error)\n"
        "    else:\n        raise SystemExit('not refused')\n"
        f"{free}\n"
        "keep(record(lambda: call(100), c_calls=True))\n"
    )
    assert probed.ncalls()["leaf"] == 100


def test_depth_begins_inside_what_runs_the_code_that_is_looked_at(probed):
    runner = probed.folder / "runner.py"
    runner.write_text("def step(f): f()\ndef run(f): step(f)\n")
    probed.run(
        "import runner\ndef outer(): inner()\ndef inner(): runner.run(deep)\ndef deep(): pass\n"
        "import functools\nprogram = functools.partial(runner.run, outer)\n"
        f"keep(record(program, depth=2, outside=({str(runner)!r},)))\n"
    )
    found = probed.ncalls().keys() - {"Recording.stop"}
    assert found == {"run", "step", "outer", "inner"}
