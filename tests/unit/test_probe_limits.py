"""What is recorded less than whole: by choice, and by a budget."""

from __future__ import annotations

import pytest

from probing import MINORS


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
