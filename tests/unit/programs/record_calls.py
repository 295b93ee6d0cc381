"""Records programs, under each interpreter under test; only the standard library is there.

As a program, ``record_calls.py FOLDER``: each of `call_programs`, recorded into ``NAME.pst``, and
counted by `sys.setprofile` into ``NAME.json``: [caller, function, calls] for each pair.
"""

import collections
import json
import os
import sys
import threading
import time

from pathlib import Path

from pystack_nb.probe import CallOptions, Probe
from pystack_nb.spool import Spool


def record(function, *, ebpf=False, **options):
    """Record what a function calls; the bytes of the spool file."""
    recording = Recording(ebpf=ebpf, **options)
    try:
        function()
    finally:
        recording.stop()
    return recording.data


class Recording:
    def __init__(self, *, ebpf=False, **options):
        self.probe = Probe(CallOptions(**options))
        source = "ebpf" if ebpf else "inprocess"
        facts = {"client_pid": os.getpid(), "target_pid": os.getpid(), "hz": 99}
        self.spool = Spool.create({**facts, "mode": "calls", "source": source, "versions": {}})
        self.client = self.connect() if ebpf else None
        if not ebpf:
            self.tell("start", start_ns=time.monotonic_ns())
        self.probe.start(-1 if ebpf else self.spool.fd)

    def connect(self):
        from pystack_nb.collector.client import connect

        client = connect()
        facts = {"calls_fd": self.probe.fd, "site": self.probe.site}
        client.start(self.spool.fd, sample=False, **facts)
        return client

    def tell(self, event, **facts):
        self.spool.append({"role": "inprocess", "event": event, **facts})

    def stop(self):
        self.probe.stop()
        self.result = self.client.stop() if self.client else None
        self.probe.close()
        if not self.client:
            self.tell("end", end_ns=time.monotonic_ns(), reason="stopped", message=None)
        self.data = self.spool.read()
        self.spool.remove()


def count(function, filename):
    """Count pairs of caller and function, as the interpreter itself tells them."""
    pairs = collections.Counter()

    def hook(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename == filename:
            caller = frame.f_back.f_code if frame.f_back else None
            inside = caller is not None and caller.co_filename == filename
            pairs[caller.co_qualname if inside else "", code.co_qualname] += 1

    threading.setprofile(hook)
    sys.setprofile(hook)
    try:
        function()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [[*names, calls] for names, calls in pairs.items()]


def main(folder):
    import call_programs

    for program in call_programs.PROGRAMS:
        path = Path(folder, program.__name__)
        path.with_suffix(".pst").write_bytes(record(program))
        path.with_suffix(".json").write_text(json.dumps(count(program, call_programs.__file__)))


if __name__ == "__main__":
    main(*sys.argv[1:])
