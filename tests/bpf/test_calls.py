"""Calls on their way from the probe through the kernel, exact however the process ends."""

from __future__ import annotations

import os
import signal
import struct
import sys

from pathlib import Path

import pytest

from probed_programs import PRELUDE
from probing import MINORS, assert_nested, decode, ncalls, run, start

from pystack_nb import recover


OWN = sys.version_info.minor
FIB = """
def fib(number):
    return number if number < 2 else fib(number - 1) + fib(number - 2)

"""
UNTIL_KILLED = """
import mmap
with open("counted", "w+b") as file:
    file.truncate(8 * 2)
    counted = memoryview(mmap.mmap(file.fileno(), 16)).cast("Q")

def busy(number):
    while True:
        counts(number)

def counts(number):
    counted[number] += 1

recording = Recording(ebpf=True)
print(recording.client._collector.pid, flush=True)
threading.Thread(target=busy, args=(1,)).start()
busy(0)
"""


@pytest.fixture(params=MINORS, ids=lambda minor: f"3.{minor}")
def minor(request):
    return request.param


@pytest.fixture
def left_over(tmp_path, monkeypatch, eventually):
    """Wait for a collector to end, and recover what its process left."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    tmp_path.chmod(0o700)

    def wait(collector):
        eventually(lambda: not Path(f"/proc/{collector}/fd").exists() or is_zombie(collector))
        (recording,) = recover(keep=False)
        assert recording.info["lost"] == 0
        assert_nested(recording)
        return recording

    return wait


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_every_call_of_every_thread_arrives(minor, tmp_path):
    run(
        minor,
        PRELUDE + FIB + "def program():\n"
        "    threads = [threading.Thread(target=fib, args=(n,)) for n in range(16, 22)]\n"
        "    for thread in threads: thread.start()\n"
        "    for thread in threads: thread.join()\n"
        "    fib(23); call(1)\n"
        "keep(record(program, ebpf=True))\n",
        tmp_path,
    )
    recording = decode((tmp_path / "out.pst").read_bytes())
    calls = recording.calls
    fibs = calls[calls["function"] == "fib"]
    assert sorted(fibs.groupby("tid").size()) == [
        *(3193, 5167, 8361, 13529, 21891, 35421),
        *(92735,),
    ]
    assert fibs["complete"].all()
    assert recording.info["source"] == "ebpf"
    assert recording.info["incomplete"] == 0


@pytest.mark.parametrize("end", ["os._exit(3)", "sys.exit(3)", "os.kill(os.getpid(), 9)"])
def test_the_last_calls_are_there_however_the_process_ends(minor, tmp_path, left_over, end):
    program = (
        f"{PRELUDE}\ndef ends():\n    call(7)\n    {end}\n"
        "recording = Recording(ebpf=True)\n"
        "print(recording.client._collector.pid, flush=True)\n"
        "call(3000)\nthread = threading.Thread(target=call, args=(5,))\n"
        "thread.start(); thread.join()\nends()\n"
    )
    status = -signal.SIGKILL if "kill" in end else 3
    recording = left_over(int(run(minor, program, tmp_path, status=status)))
    calls = recording.calls
    assert ncalls(recording)["leaf"] == 3012
    assert calls.loc[calls["function"] == "leaf", "complete"].all()
    ends = calls[calls["function"] == "ends"]
    assert len(ends) == 1
    if "sys.exit" not in end:
        assert not ends["complete"].any()


def test_a_kill_in_the_middle_of_calls_loses_none(minor, tmp_path, left_over, eventually):
    counted = tmp_path / "counted"
    with start(minor, "-c", PRELUDE + UNTIL_KILLED, cwd=tmp_path) as process:
        collector = int(process.stdout.readline())
        eventually(lambda: min(struct.unpack("<2Q", counted.read_bytes())) > 10_000)
        process.kill()
    recording = left_over(collector)
    calls = recording.calls
    numbers = struct.unpack("<2Q", counted.read_bytes())
    of_thread = calls[calls["function"] == "counts"].groupby("tid").size()
    # A thread may have been in the call and not have counted it yet.
    main, other = of_thread.pop(process.pid), of_thread.iloc[0]
    assert 0 <= main - numbers[0] <= 1
    assert 0 <= other - numbers[1] <= 1
    assert not calls.loc[calls["function"] == "busy", "complete"].any()


def test_parent_and_forked_child_record_each_its_own(minor, tmp_path):
    run(
        minor,
        f"{PRELUDE}\n"
        "def program():\n"
        "    call(2000)\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        call(9000)\n"
        "        keep(record(lambda: call(4000), ebpf=True), 'child')\n"
        "        os._exit(7)\n"
        "    call(2000)\n"
        "    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7\n"
        "    call(2000)\n"
        "keep(record(program, ebpf=True))\n",
        tmp_path,
    )
    parent, child = (decode((tmp_path / f"{n}.pst").read_bytes()) for n in ("out", "child"))
    assert ncalls(parent)["leaf"] == 6000
    assert ncalls(child)["leaf"] == 4000
    assert set(parent.calls["pid"]).isdisjoint(child.calls["pid"])


def test_a_collector_that_is_killed_does_not_hold_the_program_up(minor, tmp_path):
    told = run(
        minor,
        PRELUDE + FIB + "import signal\n"
        "recording = Recording(ebpf=True)\n"
        "fib(15)\n"
        "os.kill(recording.client._collector.pid, signal.SIGKILL)\n"
        "fib(29)\n"  # more than would fit into what may be on its way
        "print(fib(20))\nrecording.probe.stop()\n",
        tmp_path,
    )
    assert told == "6765\n"


def test_a_second_profiler_is_refused_and_the_first_one_stays_exact(tmp_path):
    told = run(
        OWN,
        "import pystack_nb\nfrom pystack_nb.errors import ProfilerStateError\n" + FIB + "\n"
        "def inner():\n"
        "    try:\n"
        "        with pystack_nb.PyStackProfiler(mode='calls'): fib(5)\n"
        "    except ProfilerStateError as error:\n"
        "        return str(error)\n"
        "with pystack_nb.PyStackProfiler(mode='sample,calls') as profiler:\n"
        "    fib(15)\n    said = inner()\n    fib(15)\n"
        "assert 'recorded already' in said, said\n"
        "calls = profiler.recording.functions().set_index('function')['ncalls']\n"
        "print(calls['fib'], profiler.recording.info['lost'])\n",
        tmp_path,
    )
    assert told.split() == [str(2 * 1973), "0"]


def test_recordings_follow_each_other_exactly_under_one_collector(minor, tmp_path):
    run(
        minor,
        PRELUDE + "for number in range(12): keep(record(lambda: call(1500 + number), ebpf=True), "
        "f'out{number}')\nprint(len(os.listdir('/proc/self/fd')))\n",
        tmp_path,
    )
    for number in range(12):
        recording = decode((tmp_path / f"out{number}.pst").read_bytes())
        assert ncalls(recording)["leaf"] == 1500 + number
        assert set(recording.calls["tid"]) == set(recording.calls["pid"])
        assert os.getpid() not in set(recording.calls["pid"])
