"""The probe beside others who change the interpreter, and when it is started and stopped."""

from __future__ import annotations


def test_the_probe_leaves_nothing_installed(probed):
    probed.build_evaluator()
    probed.run(
        "import evaluator\n"
        "probe = Probe(CallOptions(max_events=4000))\n"
        "assert evaluator.installed() == 'default'\n"
        "recording = Recording()\nassert evaluator.installed() == 'other'\n"
        "call(3)\nrecording.stop()\nassert evaluator.installed() == 'default'\n"
        "probe.start(os.memfd_create('spool'))\ncall(10_000)\n"
        "assert evaluator.installed() == 'default'\n"  # the bound was reached, by itself
        "probe.close()\nassert evaluator.installed() == 'default'\n"
    )


def test_an_evaluator_that_was_there_is_called_and_put_back(probed):
    probed.build_evaluator()
    probed.run(
        "import evaluator\nevaluator.install()\nbefore = evaluator.count()\n"
        "keep(record(lambda: call(500)))\n"
        "assert evaluator.installed() == 'own'\nassert evaluator.count() - before > 500\n"
        "before = evaluator.count()\ncall(500)\nassert evaluator.count() - before == 501\n"
    )
    assert probed.ncalls()["leaf"] == 500


def test_an_evaluator_that_came_while_recording_stays_and_is_recorded_through(probed):
    probed.build_evaluator()
    probed.run(
        "import evaluator\n"
        "def program():\n    call(10)\n    evaluator.install()\n    call(500)\n"
        "keep(record(program), 'first')\n"
        "assert evaluator.installed() == 'own'\n"
        "call(100)\nkeep(record(lambda: call(500)), 'second')\n"
        "try:\n    record(leaf, depth=1)\n"
        "except ProfilerStateError as error:\n    assert 'lets no limits be set' in str(error)\n"
        "else:\n    raise SystemExit('limits were passed over')\n"
        "evaluator.restore()\ncall(1)\nassert evaluator.installed() == 'default'\n"
        "keep(record(lambda: call(500), depth=3), 'third')\n"
        "assert evaluator.installed() == 'default'\n"
    )
    assert probed.ncalls("first")["leaf"] == 510
    assert probed.ncalls("second")["leaf"] == 500
    assert probed.ncalls("third")["leaf"] == 500


def test_an_evaluator_that_calls_nobody_else_is_named_in_the_recording(probed):
    probed.build_evaluator()
    probed.run(
        "import evaluator\n"
        "evaluator.alone(True)\n"
        "def program():\n    call(10)\n    evaluator.install()\n    call(500)\n"
        "keep(record(program), 'first')\n"
        "evaluator.restore()\n"
        "keep(record(lambda: call(50)), 'second')\n"
    )
    info = probed.recording("first").info
    assert info["incomplete_by_cause"]["other-evaluator"] == 1
    assert any("does not call the probe" in note for note in info["notes"])
    assert probed.ncalls("first")["leaf"] == 10
    assert probed.ncalls("second")["leaf"] == 50
    assert probed.recording("second").info["incomplete"] == 0


def test_an_evaluator_that_came_and_went_is_told_where_it_was_seen_once(probed):
    probed.build_evaluator()
    probed.run(
        "import evaluator\nsys.setrecursionlimit(100_000)\n"
        "def down(depth):\n"
        "    return down(depth - 1) + 1 if depth else evaluator.install() or 0\n"
        "evaluator.alone(True)\n"
        "def program():\n    down(3000)\n    evaluator.restore()\n    call(10)\n"
        "keep(record(program), 'alone')\n"
        "evaluator.alone(False)\n"
        "def program():\n    evaluator.install()\n    call(5000)\n    evaluator.restore()\n"
        "keep(record(program), 'chained')\n"
    )
    assert probed.ncalls("chained")["leaf"] == 5000
    assert probed.recording("chained").info["incomplete"] == 0
    info = probed.recording("alone").info
    assert info["incomplete_by_cause"]["other-evaluator"] == 1
    assert any("was there for a while" in note for note in info["notes"])


def test_a_second_recording_is_refused_and_the_first_one_goes_on(probed):
    probed.run(
        "def program():\n"
        "    call(100)\n"
        "    try:\n        Recording()\n"
        "    except ProfilerStateError as error:\n"
        "        assert 'recorded already' in str(error), error\n"
        "    other = Probe(CallOptions())\n    other.stop()\n    other.close()\n"
        "    call(3000)\n"
        "keep(record(program))\n"
    )
    assert probed.ncalls()["leaf"] == 3100


def test_starting_and_stopping_200_times_leaves_no_descriptor_and_no_memory(probed):
    probed.run(
        "def used():\n"
        "    pages = int(Path('/proc/self/statm').read_text().split()[1])\n"
        "    return len(os.listdir('/proc/self/fd')), pages\n"
        "def work():\n    thread = threading.Thread(target=call, args=(5,))\n"
        "    thread.start()\n    thread.join()\n"
        "for _ in range(20): record(work)\n"
        "fds, pages = used()\n"
        "for _ in range(200): data = record(work)\n"
        "now, later = used()\n"
        "assert now == fds, (fds, now)\n"
        "assert later - pages < 1024, (pages, later)\n"  # 4 MiB; what each maps is 17
        "keep(data)\n"
    )
    assert probed.ncalls()["leaf"] == 5


def test_a_recording_may_begin_and_end_in_different_calls(probed):
    probed.run(
        "def begins():\n    global recording\n    recording = Recording()\n    call(3)\n"
        "def ends():\n    call(5)\n    recording.stop()\n    call(7)\n"
        "def around():\n    begins()\n    call(11)\n    ends()\n    call(13)\n"
        "around()\nkeep(recording.data)\n"
    )
    calls = probed.recording().calls
    assert probed.ncalls()["leaf"] == 19
    assert not calls.loc[calls["function"] == "ends", "complete"].any()
    assert calls.loc[~calls["function"].isin(["ends", "Recording.stop"]), "complete"].all()
    assert {"begins", "around"}.isdisjoint(calls["function"])


def test_an_init_that_was_running_at_the_start_is_recorded_from_then_on(probed):
    probed.run(
        "class Thing:\n"
        "    def __init__(self, begin=False):\n"
        "        global recording\n"
        "        if begin:\n            recording = Recording()\n"
        "        leaf()\n"
        "def make(times):\n    for _ in range(times): Thing(False)\n"
        "make(100)\nThing(True)\nmake(100)\nrecording.stop()\nkeep(recording.data)\n"
    )
    found = probed.ncalls()
    assert found["Thing.__init__"] == 100
    assert found["leaf"] == 101
    calls = probed.recording().calls
    parents = calls.loc[calls["function"] == "Thing.__init__", "parent"]
    assert set(calls["function"].iloc[parents]) == {"make"}


def test_threads_may_begin_before_the_start_and_be_inside_calls_at_the_stop(probed):
    probed.run(
        "inside, go_on, finish = (threading.Semaphore(0) for _ in range(3))\n"
        "def work():\n"
        "    inside.release(); go_on.acquire()\n"
        "    call(50)\n"
        "    waits()\n"
        "def waits():\n    inside.release(); finish.acquire()\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "for _ in range(3): inside.acquire()\n"
        "recording = Recording()\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "for _ in range(3): inside.acquire()\n"
        "go_on.release(6)\n"
        "for _ in range(6): inside.acquire()\n"
        "recording.stop()\nkeep(recording.data)\nfinish.release(4)\ncall(1)\n"
    )
    recording = probed.recording()
    calls = recording.calls
    waits = calls[calls["function"] == "waits"]
    assert probed.ncalls()["leaf"] == 300
    assert len(waits) == 6
    assert not waits["complete"].any()
    assert (waits["ts_ns"] + waits["dur_ns"] >= calls["ts_ns"].max()).all()
    assert len(set(waits["tid"])) == 6


def test_a_forked_child_harms_nothing_and_may_record_on_its_own(probed):
    probed.run(
        "def program():\n"
        "    call(3000)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        call(5000)\n"
        "        keep(record(lambda: call(4000)), 'child')\n"
        "        os._exit(7)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "    call(3000)\n"
        "keep(record(program))\n"
    )
    assert probed.ncalls()["leaf"] == 6000
    assert probed.recording().info["incomplete_by_cause"]["forked-children"] == 1
    assert probed.ncalls("child")["leaf"] == 4000


def test_sub_interpreters_are_counted_also_those_that_are_gone(probed):
    module = "_interpreters" if probed.minor >= 13 else "_xxsubinterpreters"
    probed.run(
        f"import {module} as interpreters\n"
        "def program():\n"
        "    for _ in range(2):\n"
        "        other = interpreters.create()\n"
        "        interpreters.run_string(other, 'def f(): pass\\nf()')\n"
        "        interpreters.destroy(other)\n"
        "    call(10)\n"
        "stays = interpreters.create()\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    assert recording.info["incomplete_by_cause"]["sub-interpreters"] == 3
    assert any("3 sub-interpreters" in note for note in recording.info["notes"])
    assert probed.ncalls()["leaf"] == 10


def test_a_sub_interpreter_can_not_record(probed):
    module = "_interpreters" if probed.minor >= 13 else "_xxsubinterpreters"
    text = (
        "from pystack_nb.errors import PystackError\n"
        "from pystack_nb.probe import CallOptions, Probe\n"
        "try:\n    Probe(CallOptions())\n"
        "except PystackError:\n    open('refused', 'w').close()\n"
    )
    probed.run(
        f"import {module} as interpreters\nother = interpreters.create()\n"
        f"interpreters.run_string(other, {text!r})\nassert os.path.exists('refused')\n"
        "keep(record(lambda: call(10)))\n"
    )
    assert probed.ncalls()["leaf"] == 10


def test_threads_beyond_the_last_batch_are_counted_and_the_others_whole(probed):
    probed.run(
        "go_on = threading.Event()\nup = threading.Semaphore(0)\nthreading.stack_size(65536)\n"
        "def work():\n    up.release()\n    go_on.wait()\n"
        "def program():\n"
        "    threads = [threading.Thread(target=work) for _ in range(1030)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: up.acquire()\n"
        "    go_on.set()\n"
        "    for thread in threads: thread.join()\n"
        "keep(record(program, include=('*<string>',)))\n"
    )
    recording = probed.recording()
    missing = recording.info["incomplete_by_cause"]["threads-without-buffer"]
    assert missing == 1031 - 1024
    assert probed.ncalls()["work"] == 1030 - missing


def test_an_exit_without_a_stop_harms_nothing(probed):
    probed.run(
        "recording = Recording(c_calls=True)\ncall(3000)\n"
        "class Ends:\n    def __del__(self): call(10)\n"
        "kept = Ends()\nkept.itself = kept\n"
        "threading.Thread(target=time.sleep, args=(100,), daemon=True).start()\n"
        "sys.exit(5)\n",
        status=5,
    )


def test_a_full_disk_ends_with_an_error_and_keeps_the_program_going(probed):
    probed.run(
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "recording = Recording()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
        "call(50_000)\n"
        "try:\n    recording.probe.close()\n"
        "except OSError:\n    print('full')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "keep(record(lambda: call(10)))\n"
    )
    assert probed.ncalls()["leaf"] == 10
