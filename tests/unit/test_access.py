"""What the kernel says about a process, as the collector reads it."""

from __future__ import annotations

import os
import subprocess
import sys

from pathlib import Path

import pytest

from pystack_nb.collector.process import Process, Status, find_pid
from pystack_nb.collector.protocol import CollectorProblem


@pytest.fixture
def program():
    """Run a program that prints a line and then waits; give it as a process."""
    started = []

    def run(text, python=(sys.executable,), **options):
        command = [*python, "-c", f"{text}\nprint(flush=True)\ninput()"]
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", **options
        )
        started.append(child)
        child.stdout.readline()
        return child, Process(child.pid)

    yield run
    for child in started:
        child.kill()
        child.communicate()


def test_a_process_has_its_six_ids_and_its_pid():
    status = Status.read(os.getpid())
    uids, gids = os.getresuid(), os.getresgid()
    real, effective, saved = zip(uids, gids, strict=True)
    assert status.ids == (*real, *saved, *effective)
    assert status.pids[-1] == os.getpid()


def test_a_name_that_looks_like_a_line_of_its_status_changes_nothing(program):
    name = "x\\nUid:\\t7\\t7"
    _, process = program(f"open('/proc/self/comm', 'w').write('{name}')")
    assert process.status().ids == Status.read(os.getpid()).ids


def test_a_name_that_looks_like_the_end_of_a_name_changes_nothing(program):
    _, process = program("open('/proc/self/comm', 'w').write('a) Z 1 (b')")
    assert process.live_thread().name == str(process.pid)


def test_a_process_is_its_users_until_it_makes_itself_unreadable(program):
    user = 42001 if os.geteuid() == 0 else os.geteuid()
    options = {"python": ("/usr/bin/python3", "-I"), "user": user}
    _, process = program("", **options)
    assert process.owner() == user
    _, process = program("import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)", **options)
    assert process.owner() == 0


def test_a_process_whose_first_thread_has_ended_is_asked_through_another(program):
    text = (
        "import ctypes, threading, time\n"
        "def rest():\n"
        "    time.sleep(0.2)\n"  # until the first thread has ended
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
        "threading.Thread(target=rest).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit, of this thread alone
    )
    _, process = program(text)
    assert process.alive()
    assert process.live_thread().name != str(process.pid)
    assert process.program()


def test_the_same_program_executed_again_is_another(program):
    child, process = program(
        "import os, sys\nif len(sys.argv) < 2:\n    print(flush=True); input()\n"
        "    os.execv(sys.executable, [sys.executable, '-c', 'print(flush=True); input()', ''])"
    )
    before = process.program()
    assert process.program() == before
    child.stdin.write(b"\n")
    child.stdin.flush()
    child.stdout.readline()
    assert process.program() != before


def test_an_ended_process_is_told_from_a_living_one(program):
    child, process = program("")
    assert process.alive()
    child.kill()
    child.wait()
    assert not process.alive()
    with pytest.raises(CollectorProblem) as raised:
        process.program()
    assert raised.value.code == "no-such-process"


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 10**30])
def test_a_pid_that_nobody_has_is_no_process(pid):
    with pytest.raises(CollectorProblem) as raised:
        Process(pid)
    assert raised.value.code == "no-such-process"


@pytest.mark.usefixtures("needs_root")
def test_a_pid_of_another_namespace_is_found_as_ours():
    # GIVEN two processes of a namespace of their own, which know each other by small pids
    text = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(os.getpid(), child.pid, flush=True)\n"
        "sys.stdin.readline(); child.kill()"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", text]
    outer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    own, other = map(int, outer.stdout.readline().split())
    (seen,) = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
    observer = Process(int(seen))
    # WHEN the second one is looked for by the pid that the first one knows
    assert own == 1
    found = find_pid(other, observer)
    # THEN it is found by the pid that this namespace knows
    assert Path(f"/proc/{found}/cmdline").read_text().startswith("sleep")
    assert find_pid(1, observer) == observer.pid
    with pytest.raises(CollectorProblem, match="no process 4000000"):
        find_pid(4_000_000, observer)
    outer.communicate(b"\n")
