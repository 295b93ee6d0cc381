"""The probe beside other tools that watch calls, and where it needs their places itself."""

from __future__ import annotations

import subprocess

import pytest

from probing import PROGRAMS


CLASS = """
class Thing:
    def __init__(self):
        leaf()
def make(times):
    for _ in range(times): Thing()
"""
TOOLS = {
    "a profile function": ("sys.setprofile(lambda *_: None)", "sys.setprofile(None)"),
    "another thread's": (
        (
            "up, go_on = threading.Event(), threading.Event()\n"
            "def wait():\n"
            "    sys.setprofile(lambda *_: None); up.set(); go_on.wait()\n"
            "thread = threading.Thread(target=wait)\nthread.start()\nup.wait()"
        ),
        "go_on.set()\nthread.join()",
    ),
    "cProfile": (
        "import cProfile\nprofile = cProfile.Profile()\nprofile.enable()",
        "profile.disable()",
    ),
    "events of calls": (
        (
            "monitoring = getattr(sys, 'monitoring', None)\n"
            "if monitoring:\n"
            "    monitoring.use_tool_id(1, 'x')\n"
            "    monitoring.register_callback(1, monitoring.events.CALL, lambda *_: None)\n"
            "    monitoring.set_events(1, monitoring.events.CALL)"
        ),
        "if monitoring: monitoring.set_events(1, 0); monitoring.free_tool_id(1)",
    ),
}


@pytest.mark.parametrize(("on", "off"), TOOLS.values(), ids=TOOLS)
def test_no_init_is_missed_because_a_tool_was_there_when_the_probe_was_loaded(probed, on, off):
    probed.run(
        f"{CLASS}\nfrom pystack_nb.probe import load\n"
        f"{on}\nload()\n{off}\nkeep(record(lambda: make(500)))\n"
    )
    assert probed.ncalls()["Thing.__init__"] == 500


def test_a_function_that_is_also_an_init_is_recorded_however_it_was_called_first(probed):
    probed.run(
        "class Base:\n    def reset(self): leaf()\n    __init__ = reset\n"
        "class Sub(Base):\n    def __init__(self): self.reset()\n"
        "class Bare: pass\nclass Given: pass\nclass Late: pass\n"
        "def setup(self): leaf()\ndef prepare(self): pass\n"
        "Given.__init__ = setup\n"
        "def program():\n"
        "    Sub(); setup(Bare()); prepare(Bare())\n"
        "    Late.__init__ = prepare\n"
        "    for _ in range(300): Base(); Given(); Late()\n"
        "keep(record(program))\nkeep(record(program), 'again')\n"
    )
    for name in ("out", "again"):
        found = probed.ncalls(name)
        assert [found[x] for x in ("Base.reset", "setup", "prepare")] == [301, 301, 301]
        assert found["leaf"] == 602
        calls = probed.recording(name).calls
        parents = calls.loc[calls["function"].isin(["setup", "prepare"]), "parent"]
        assert set(calls["function"].iloc[parents]) == {"program"}


def test_a_function_that_becomes_an_init_where_others_were_called_is_recorded_or_told(probed):
    probed.run(
        "class Bare: pass\n"
        "class First:\n    def __init__(self): pass\n"
        "def prepare(self): pass\n"
        "def program():\n"
        "    global Late\n"
        "    prepare(Bare())\n"
        "    class Late: __init__ = prepare\n"
        "    for kind in (First, *[Late] * 300): kind()\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    if recording.info["incomplete_by_cause"]["init-unseen"]:
        assert any("became a class's __init__" in note for note in recording.info["notes"])
    else:
        assert probed.ncalls()["prepare"] == 301


TAKEN = {
    "None": "sys.setprofile(None)",
    "cProfile": "import cProfile; profile = cProfile.Profile(); profile.enable(); "
    "profile.disable()",
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_a_profile_hook_that_is_taken_away_is_told_and_comes_back(probed, take):
    probed.run(
        "def takes():\n"
        f"    {take}\n"
        "    for _ in range(10): abs(1)\n"
        "def calls_c():\n    for _ in range(100): len('')\n"
        "def program():\n    calls_c(); takes(); calls_c()\n"
        "def in_thread():\n"
        "    thread = threading.Thread(target=program)\n"
        "    thread.start()\n    thread.join()\n"
        "def both():\n    program(); in_thread()\n"
        "keep(record(both, c_calls=True))\n"
        "keep(record(lambda: call(10), c_calls=True), 'again')\n"
        "assert sys.getprofile() is None\n"
    )
    recording = probed.recording()
    told = recording.info["incomplete_by_cause"]["hook-taken"]
    calls = recording.calls
    lens = calls[calls["function"] == "len"]
    parents = calls["function"].iloc[lens["parent"]]
    assert (parents == "calls_c").sum() == 400
    if probed.minor == 11:
        assert told == 2
        assert any("took the probe's place 2 times" in note for note in recording.info["notes"])
    else:
        assert told == 0
        assert probed.ncalls()["abs"] == 20
    assert probed.recording("again").info["incomplete_by_cause"]["hook-taken"] == 0


def test_a_thread_that_lives_through_two_recordings_is_in_both_of_them(probed):
    probed.run(
        "go_on, done = threading.Semaphore(0), threading.Semaphore(0)\n"
        "def work():\n    go_on.acquire(); steps(); done.release()\n"
        "def steps(): abs(1)\n"
        "def runs():\n    for _ in range(2): work()\n"
        "thread = threading.Thread(target=runs)\nthread.start()\n"
        "def program(): go_on.release(); done.acquire()\n"
        "keep(record(program, c_calls=True))\n"
        "keep(record(program, c_calls=True), 'again')\n"
        "thread.join()\n"
    )
    for name in ("out", "again"):
        assert probed.ncalls(name)["abs"] == 1
        assert probed.recording(name).info["incomplete_by_cause"]["hook-taken"] == 0


def test_a_hook_that_is_taken_away_in_calls_too_deep_shifts_none(probed):
    probed.run(
        "def takes(): sys.setprofile(None)\n"
        "def inner(): takes()\n"
        "def program():\n    inner(); leaf(); leaf()\n"
        "keep(record(program, depth=2, c_calls=True))\n"
    )
    calls = probed.recording().calls
    assert calls["complete"].sum() == 4  # the one more is Recording.stop
    parents = calls.loc[calls["function"].isin(["inner", "leaf"]), "parent"]
    assert list(calls["function"].iloc[parents]) == ["program"] * 3


def test_c_functions_are_recorded_in_threads_that_python_did_not_start(probed):
    library = probed.folder / "foreign.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", library, PROGRAMS / "foreign_thread.c"]
    subprocess.run([*command, "-lpthread"], check=True)
    probed.run(
        "import ctypes\n"
        f"library = ctypes.CDLL({str(library)!r})\n"
        "kind = ctypes.CFUNCTYPE(None, ctypes.c_int)\n"
        "def callback(number): abs(number)\n"
        "callback = kind(callback)\n"
        "keep(record(lambda: library.call_back(callback, 50), c_calls=True))\n"
    )
    assert probed.ncalls()["abs"] == 50
    assert probed.recording().info["incomplete"] == 0


AUDIT = """
refused = {"sys.setprofile", "sys.monitoring.register_callback"}
refuses = False
def audit(event, _):
    if refuses and event in refused: raise OSError("not here")
sys.addaudithook(audit)
"""


def test_an_audit_hook_that_refuses_other_hooks_leaves_nothing_behind(probed):
    probed.run(
        f"{AUDIT}\nrefuses = True\n"
        "try:\n    Recording(c_calls=True)\n"
        "except ProfilerStateError as error:\n    assert 'audit hook refuses' in str(error)\n"
        "else:\n    raise SystemExit('not refused')\n"
        "call(10)\nrefuses = False\n"
        "def program():\n"
        "    global refuses\n"
        "    call(100)\n    refuses = True\n"
        "    thread = threading.Thread(target=call, args=(100,))\n"
        "    thread.start()\n    thread.join()\n"
        "keep(record(program, c_calls=True))\n"
        "refuses = False\nassert sys.getprofile() is None\n"
        "keep(record(lambda: call(10), c_calls=True), 'again')\n"
    )
    assert probed.ncalls()["leaf"] == 200
    assert probed.recording().info["incomplete_by_cause"]["hook-taken"] == 1
    assert probed.ncalls("again")["leaf"] == 10
    assert probed.recording("again").info["incomplete_by_cause"]["hook-taken"] == 0


IDS = {
    "given back": "monitoring.free_tool_id(4)",
    "taken": "monitoring.free_tool_id(4); monitoring.use_tool_id(4, 'x')",
    "without events": "monitoring.set_events(4, 0)",
    "without callbacks": "monitoring.register_callback(4, monitoring.events.CALL, None)",
}


@pytest.mark.parametrize("take", IDS)
@pytest.mark.parametrize("probed", [12, 13], indirect=True, ids=["3.12", "3.13"])
def test_an_id_that_the_cell_takes_away_is_told_and_the_recording_is_kept(probed, take):
    probed.run(
        f"{CLASS}\nmonitoring = sys.monitoring\n"
        "class Takes:\n"
        "    def __init__(self, takes):\n"
        f"        if takes:\n            {IDS[take]}\n"
        "        leaf()\n"
        "def program():\n"
        "    make(100)\n"
        "    for takes in (*[False] * 100, True): Takes(takes)\n"
        "    call(100)\n"
        "    for _ in range(20): abs(1)\n"
        "keep(record(program, c_calls=True))\n"
        "if monitoring.get_tool(4) == 'x': monitoring.free_tool_id(4)\n"
        "assert not any(monitoring.get_tool(n) for n in range(6))\n"
        "keep(record(lambda: make(100), c_calls=True), 'again')\n"
    )
    recording = probed.recording()
    found = probed.ncalls()
    assert found["leaf"] == 301
    assert found["Thing.__init__"] == 100
    told = recording.info["incomplete_by_cause"]["hook-taken"]
    assert told or (found["Takes.__init__"], found["abs"]) == (101, 20)
    if take != "given back":
        assert told == 1
    calls = recording.calls
    program = calls[calls["function"] == "program"]
    assert program["complete"].all()
    assert probed.ncalls("again")["Thing.__init__"] == 100
    assert probed.recording("again").info["incomplete_by_cause"]["hook-taken"] == 0
