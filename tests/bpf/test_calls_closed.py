"""A recorded program that closes every descriptor it finds, as one that becomes a daemon does."""

from __future__ import annotations

import subprocess
import sys


PROGRAM = """
import os
from pystack_nb import PyStackProfiler
from pystack_nb.errors import CollectorError

def leaf():
    pass

profiler = PyStackProfiler(mode="calls")
profiler.start_profiling()
os.closerange(3, 200)
files = [open(f"user{n}", "wb", buffering=0) for n in range(30)]
for _ in range(3000):
    leaf()
try:
    profiler.stop_profiling()
except CollectorError as error:
    assert "has closed the connection" in str(error), error
else:
    raise SystemExit("nothing said")
assert "has closed the connection" in profiler.recording.info["error"]
for file in files:
    file.write(b"user data")
    assert os.path.getsize(file.name) == 9, file.name
with PyStackProfiler(mode="calls") as profiler:
    for _ in range(50):
        leaf()
found = profiler.recording.functions().set_index("function")["ncalls"]
assert found["leaf"] == 50, found
"""


def test_no_file_of_the_programs_is_touched_and_the_next_recording_is_whole(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
