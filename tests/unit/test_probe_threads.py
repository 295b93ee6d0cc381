"""Threads that end while the drain stands still, and threads that there is no memory for."""

from __future__ import annotations

import subprocess

import pytest

from probing import PROGRAMS


NO_MEMORY = """
import ctypes
no_memory = ctypes.c_int.in_dll(ctypes.CDLL(None), "no_memory")

def dive(depth):
    if depth:
        dive(depth - 1)

def run(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
"""


@pytest.fixture
def no_memory(tmp_path, monkeypatch):
    """Let programs take memory from the probe."""
    library = tmp_path / "no_memory.so"
    source = PROGRAMS / "no_memory.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


def test_a_thread_that_ends_keeps_nobody_waiting_for_the_drain(probed):
    probed.run(
        "import _thread, mmap, struct\n"
        "probe = Probe(CallOptions())\n"
        "shared = mmap.mmap(probe.fd, 4096)\n"
        "sent = lambda: struct.unpack_from('<Q', shared, 24)[0]\n"
        "done = threading.Event()\n"
        "probe.start()\n"  # for a collector, which is not there
        "while sent() < 512:\n    call(500)\n"
        "_thread.start_new_thread(leaf, ())\n"
        "time.sleep(0.2)\n"  # it has more on its way than may be, and waits for a second
        "assert sent() == 513, sent()\n"
        "begun = time.monotonic()\n"
        "_thread.start_new_thread(done.set, ())\n"
        "done.wait()\n"
        "pid = os.fork()\n"
        "if not pid:\n    os._exit(0)\n"
        "os.waitpid(pid, 0)\n"
        "took = time.monotonic() - begun\n"
        "probe.stop()\nprobe.close()\n"
        "assert took < 0.4, took\n"
    )


def test_a_thread_without_memory_for_its_depth_is_left_out_from_there_on(probed, no_memory):
    probed.run(
        f"{NO_MEMORY}\n"
        "def inside():\n"
        "    call(5)\n    no_memory.value = -1\n    dive(100)\n    no_memory.value = 0\n"
        "    call(7)\n    dive(200)\n"
        "def program():\n    call(10)\n    dive(1)\n    run(inside)\n    call(20)\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    found = probed.ncalls()
    assert found["leaf"] == 10 + 5 + 20
    assert 2 < found["dive"] < 2 + 32
    assert recording.info["incomplete_by_cause"]["threads-without-buffer"] == 1
    calls = recording.calls
    assert not calls.loc[calls["function"] == "inside", "complete"].any()
    assert calls.loc[calls["function"] == "program", "complete"].all()


@pytest.mark.parametrize("request_", [1, 2, 3])
def test_a_thread_without_memory_at_its_begin_is_counted(probed, no_memory, request_):
    probed.run(
        f"{NO_MEMORY}\n"
        f"def fails():\n    no_memory.value = {request_}\n    run(lambda: call(5))\n"
        "def program():\n    run(lambda: call(10))\n    fails()\n    call(20)\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["leaf"] in (30, 35)  # the thread's own state is asked for again
    assert recording.info["incomplete_by_cause"]["threads-without-buffer"] == 1
