"""Threads that end while the drain stands still."""

from __future__ import annotations


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
