"""``pystack-nb record`` with real probes: programs from start to end, processes, signals."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time

from typing import TYPE_CHECKING

import pytest

from pystack_nb import load


if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pystack_nb import Recording


CLI = [sys.executable, "-m", "pystack_nb.cli"]
SPIN = """
import sys, time
def spin(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(500))
"""


def record(*arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "record", *arguments], capture_output=True, text=True, check=False, **options
    )


@contextlib.contextmanager
def started(*command: str | Path, lines: int = 1) -> Iterator[subprocess.Popen[str]]:
    """Start a program, and wait until it has said something."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        for _ in range(lines):
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def recording_process(pid: int, target: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start to record a process, and wait until samples of it have come."""
    folder = target.parent
    recorder = subprocess.Popen(
        [*CLI, "record", "-p", str(pid), "-o", target, *options],
        env={**os.environ, "XDG_RUNTIME_DIR": str(folder)},
    )
    try:
        while recorder.poll() is None:
            if any(path.stat().st_size > 10_000 for path in folder.glob("pystack_nb/*.pst")):
                break
            time.sleep(0.05)
        yield recorder
    finally:
        recorder.kill()
        recorder.wait()


def functions(recording: Recording) -> set[str]:
    return set(recording.stacks["function"])


def test_a_program_is_recorded_to_its_end_and_its_status_is_handed_on(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    program = SPIN + "spin(0.3); print('from the program'); sys.exit(7)"
    done = record("-o", target, "--", sys.executable, "-c", program)
    assert done.returncode == 7
    assert done.stdout == "from the program\n"
    assert f"written: {target}" in done.stderr
    assert "no Python was recorded" not in done.stderr
    recording = load(target)
    assert "spin" in functions(recording)
    assert recording.info["error"] is None
    assert recording.info["complete"]


def test_a_program_of_a_moment_is_recorded_from_its_first_milliseconds(tmp_path: Path) -> None:
    program, target = tmp_path / "program.py", tmp_path / "out.json"
    program.write_text(SPIN + "spin(0.15)")
    done = record("--hz", "999", "-o", target, "--", sys.executable, program)
    assert done.returncode == 0
    assert "no Python was recorded" not in done.stderr
    # THEN most samples have Python frames, and hardly one lacks its native ones
    recording = load(target)
    in_python = recording.samples["function"].notna()
    assert in_python.mean() > 0.5
    first = recording.samples["ts_ns"][in_python].min() - recording.samples["ts_ns"].min()
    assert first < 100e6
    assert recording.info["incomplete_by_cause"]["native-stack-missing"] < 0.2 * len(in_python)
    # THEN the gate, which was a program too, is not spoken of
    assert recording.info["notes"] == []


def test_without_a_path_a_summary_is_printed_and_nothing_left(tmp_path: Path) -> None:
    done = record("--", sys.executable, "-c", SPIN + "spin(0.2)", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout == ""
    assert "spin" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nobody", ["2>&-", "2>&1 | true"])
def test_a_recording_is_written_when_nobody_reads_what_is_told(nobody: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    program = shlex.join([sys.executable, "-c", SPIN + "spin(0.2); sys.exit(7)"])
    command = f"{shlex.join([*CLI, 'record', '-o', str(target), '--'])} {program} {nobody}"
    done = subprocess.run(
        ["/bin/bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "spin" in functions(load(target))
    assert done.stdout == "7\n"
    assert done.stderr == ""


def test_a_program_gets_its_arguments_and_its_standard_input() -> None:
    done = record("--", "/bin/sh", "-c", 'cat; echo "$1|$2"', "sh", "a  b", "--hz", input="typed\n")
    assert (done.returncode, done.stdout) == (0, "typed\na  b|--hz\n")


def test_a_program_inherits_no_descriptor_of_ours() -> None:
    done = record("--", "/bin/sh", "-c", "ls /proc/$$/fd")
    assert done.stdout.split() == ["0", "1", "2"]


def test_a_program_that_is_not_python_is_recorded_by_its_native_frames(tmp_path: Path) -> None:
    target = tmp_path / "out"
    loop = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    assert record("-o", target, "--", "/bin/sh", "-c", loop).returncode == 0
    recording = load(target)
    assert len(recording.samples) > 0
    assert set(recording.stacks["kind"]) <= {"native", "kernel"}


def test_a_program_without_python_is_said_to_be_so_and_keeps_its_status(tmp_path: Path) -> None:
    done = record("-o", tmp_path / "out", "--", "/bin/sh", "-c", "exit 3")
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("pystack-nb: no Python was recorded: /bin/sh")


def test_a_program_that_a_signal_ends_gives_the_status_that_a_shell_would(tmp_path: Path) -> None:
    program = SPIN + "import os; spin(0.2); os.kill(os.getpid(), 9)"
    target = tmp_path / "out.json"
    assert record("-o", target, "--", sys.executable, "-c", program).returncode == 128 + 9
    assert "spin" in functions(load(target))


def test_a_program_is_recorded_on_when_its_first_thread_has_ended(tmp_path: Path) -> None:
    # GIVEN a process that the kernel shows as a zombie without a program, but which runs
    target = tmp_path / "out.json"
    program = (
        SPIN
        + """
import ctypes, os, threading
def later():
    spin(0.3)
    os._exit(3)
def wait():
    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z':
        time.sleep(0.01)
    time.sleep(0.3)
    later()
threading.Thread(target=wait).start()
time.sleep(1)  # time to find the interpreter, which takes a first thread
ctypes.CDLL(None).pthread_exit(None)
"""
    )
    assert record("-o", target, "--", sys.executable, "-c", program).returncode == 3
    recording = load(target)
    assert "later" in functions(recording)
    assert recording.info["error"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_the_recording_kept(number: int, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    program = SPIN + "spin(0.2); print('up', flush=True)\nwhile True: spin(0.1)"
    command = [*CLI, "record", "-o", target, "--", sys.executable, "-c", program]
    with started(*command) as process:
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert "spin" in functions(load(target))


def test_a_second_signal_ends_a_program_that_ignores_the_first(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    program = SPIN + "import signal; signal.signal(2, lambda *_: print('no', flush=True))\n"
    program += "spin(0.2); print('up', flush=True)\nwhile True: spin(0.1)"
    command = [*CLI, "record", "-o", target, "--", sys.executable, "-c", program]
    with started(*command) as process:
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGKILL
    assert "spin" in functions(load(target))


ENDLESS = SPIN + "print('up', flush=True)\nwhile True: spin(0.1)"


def test_a_process_is_recorded_for_some_seconds_and_runs_on(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with started(sys.executable, "-c", ENDLESS) as process:
        done = record("-p", str(process.pid), "--seconds", "0.5", "-o", target)
        assert process.poll() is None
    assert done.returncode == 0
    recording = load(target)
    assert "spin" in functions(recording)
    assert set(recording.samples["pid"]) == {process.pid}


def test_a_process_is_recorded_without_end_when_the_time_is_infinite(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with (
        started(sys.executable, "-c", ENDLESS) as process,
        recording_process(process.pid, target, "--seconds", "inf") as recorder,
    ):
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(30) == 0
    assert "spin" in functions(load(target))
    assert list(tmp_path.rglob("*.pst")) == []


def test_a_process_is_recorded_until_a_signal(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with started(sys.executable, "-c", ENDLESS) as process:
        with recording_process(process.pid, target) as recorder:
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(30) == 0
        assert process.poll() is None
    assert "spin" in functions(load(target))


def test_a_process_that_ends_by_itself_is_no_error(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    program = SPIN + "import select; print('up', flush=True)\n"
    program += "while not select.select([sys.stdin], [], [], 0)[0]: spin(0.1)"
    with (
        started(sys.executable, "-c", program) as process,
        recording_process(process.pid, target) as recorder,
    ):
        process.communicate("end\n")
        assert recorder.wait(30) == 0
    recording = load(target)
    assert "spin" in functions(recording)
    assert recording.info["error"] is None


def test_a_process_that_ends_before_its_time_is_over_is_said_to(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    with (
        started(sys.executable, "-c", ENDLESS) as process,
        recording_process(process.pid, target, "--seconds", "3000") as recorder,
    ):
        process.kill()
        assert recorder.wait(30) == 0
    info = load(target).info
    assert info["error"] is None
    assert "the process ended before 3000 s were over" in info["notes"]


def test_a_process_without_python_is_refused() -> None:
    with started("/bin/sh", "-c", "echo up; read -r line") as process:
        done = record("-p", str(process.pid))
    assert done.returncode == 1
    assert "no Python interpreter" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_rate_above_the_kernels_limit_is_refused_and_the_program_not_run(tmp_path: Path) -> None:
    done = record("--hz", "1e9", "--", "touch", tmp_path / "ran")
    assert done.returncode == 1
    assert "1000000000 is no sampling rate: choose a whole number from 1 to" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_program_is_not_run_when_no_collector_can_be_had(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    nowhere = tmp_path / "no.sock"
    done = record("--", "touch", ran, env={**os.environ, "PYSTACK_NB_SOCKET": str(nowhere)})
    assert done.returncode == 1
    assert str(nowhere) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not ran.exists()


def test_the_doctor_finds_that_this_machine_can_record() -> None:
    done = subprocess.run([*CLI, "doctor"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[ok] recording: " in done.stdout
