"""The gate that a recorded program waits behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

from pathlib import Path

import pytest

from pystack_nb import record
from pystack_nb.record import _gated, _process, _Watch


def test_a_program_runs_only_when_its_gate_is_opened(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with _gated(["touch", str(ran)]) as (pid, gate):
        assert not ran.exists()
        os.write(gate, b"\n")
        assert os.waitpid(pid, 0)[1] == 0
    assert ran.exists()


def test_a_program_is_never_run_when_its_recorder_dies_before(tmp_path: Path) -> None:
    # GIVEN a recorder that is killed while its program waits
    ran = tmp_path / "ran"
    recorder = (
        "import os, sys; from pystack_nb.record import _gated\n"
        "with _gated(['touch', sys.argv[1]]) as (pid, gate):\n"
        "    print(pid, flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", recorder, ran], capture_output=True, text=True, check=False
    )
    # THEN what waited ends without having become the program
    pid = int(done.stdout)
    while is_running(pid):
        time.sleep(0.01)
    assert not ran.exists()


@pytest.mark.parametrize("opened", [True, False])
def test_a_program_that_nobody_waits_for_any_more_is_ended(opened: bool) -> None:
    with contextlib.suppress(ZeroDivisionError), _gated(["sleep", "60"]) as (pid, gate):
        if opened:
            os.write(gate, b"\n")
        raise ZeroDivisionError
    assert not Path(f"/proc/{pid}").exists()


def test_a_pid_that_may_be_anothers_by_now_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = []
    monkeypatch.setattr(os, "kill", lambda *arguments: killed.append(arguments))
    with contextlib.suppress(ZeroDivisionError), _gated(["true"]) as (pid, gate):
        os.write(gate, b"\n")
        os.waitpid(pid, 0)
        raise ZeroDivisionError
    assert killed == []


@pytest.mark.parametrize("seconds", [3_000_000, 1e300, float("inf")])
def test_a_time_that_poll_can_t_count_is_a_long_time(seconds: float) -> None:
    with subprocess.Popen(["sleep", "0.1"]) as program, _Watch() as watch:
        with _process(program.pid) as pidfd:
            assert watch.wait(pidfd, time.monotonic() + seconds) is None
        assert program.poll() == 0


def test_a_long_wait_in_many_parts_ends_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(record, "_LONGEST_WAIT", 0.001)
    until = time.monotonic() + 0.05
    with _Watch() as watch, _process(os.getpid()) as pidfd:
        assert watch.wait(pidfd, until) is None
    assert time.monotonic() >= until


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
