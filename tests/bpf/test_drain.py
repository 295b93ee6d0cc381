"""The drain's thread has the client's rights, or there is no drain."""

from __future__ import annotations

import json
import subprocess
import sys

from pathlib import Path

import pytest


CLIENT = "1234"
PROGRAM = Path(__file__).parent / "programs" / "drain_for_a_client.py"

pytestmark = pytest.mark.usefixtures("needs_root")


def fare(*prefix):
    done = subprocess.run(
        [*prefix, sys.executable, PROGRAM, CLIENT], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def test_the_thread_that_writes_is_the_client_for_the_file_system():
    told, threads_left = fare()
    # /proc/PID/status has the identity for the file system last.
    assert (told["Uid"], told["Gid"], int(told["CapEff"], 16)) == (CLIENT, CLIENT, 0)
    assert threads_left == 0


@pytest.mark.parametrize("right", ["setuid", "setgid"])
def test_a_collector_that_cannot_become_the_client_does_not_record(right):
    told, threads_left = fare("setpriv", f"--inh-caps=-{right}", f"--bounding-set=-{right}")
    assert "the ring buffer cannot be drained: Operation not permitted" in told
    assert threads_left == 0
