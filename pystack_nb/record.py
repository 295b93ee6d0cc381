"""``pystack-nb record``: another process, or a program from its start to its end.

A program is started behind a gate, a shell that waits for one line and then becomes the program,
so that the probes are there before its first instruction.  The shell is no Python: whatever
interpreter is found afterwards is the program's.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import shutil
import signal
import sys
import time

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pystack_nb.core import PyStackProfiler
from pystack_nb.errors import NoSuchProcessError, OptionError, PystackError, TargetExitedError
from pystack_nb.util import check_export_path
from pystack_nb.views.text import summary


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

    from pystack_nb.recording import Recording
# dash takes no variable and no second digit for the descriptor to close.
_GATE = 'read -r _ <&{fd} || exit 1; exec {fd}<&-; exec "$@"'
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LONGEST_WAIT = 3600.0  # poll() counts milliseconds in an int


@dataclass(frozen=True)
class Request:
    """What to record, and what becomes of it.

    Attributes
    ----------
    mode, hz
        As for `PyStackProfiler`.
    output
        Where the recording is written, in the format of the suffix; None: only a summary is
        printed.
    """

    mode: str
    hz: int
    output: str | None


def record_process(request: Request, pid: int, seconds: float | None) -> int:
    """Record a process until it ends, the time is over, or a signal says so.

    Parameters
    ----------
    request
        How.
    pid
        The process.
    seconds
        How long; None: no limit.

    Returns
    -------
    int
        The exit status.

    Raises
    ------
    PystackError
        When the process can't be recorded or the recording can't be written.
    """
    if seconds is not None and not seconds > 0:
        raise OptionError(f"--seconds {seconds:g} is no stretch of time: give more than 0.")
    _check_output(request)
    profiler = PyStackProfiler(mode=request.mode, hz=request.hz)
    with _Watch() as watch, _process(pid) as pidfd:
        profiler.start_profiling(pid)
        try:
            watch.wait(pidfd, None if seconds is None else time.monotonic() + seconds)
        finally:
            _keep(profiler, request, seconds)
    return 0


def record_program(request: Request, command: Sequence[str]) -> int:
    """Record a program from its start to its end.

    A signal that asks to stop is passed on to the program; a second one ends it.

    Parameters
    ----------
    request
        How.
    command
        The program and its arguments.

    Returns
    -------
    int
        The program's exit status; 128 and the signal's number if one ended it, as in a shell.
        That no Python was recorded does not change it, and is said.

    Raises
    ------
    PystackError
        When the program can't be recorded, and then was not run, or the recording can't be
        written.
    """
    _check_program(command)
    _check_output(request)
    profiler = PyStackProfiler(mode=request.mode, hz=request.hz)
    with _Watch() as watch, _gated(command) as (pid, gate):
        profiler.start_profiling(pid, wait_python=True)
        try:
            os.write(gate, b"\n")
            with _process(pid) as pidfd:
                _wait_for_program(watch, pid, pidfd)
            # Not reaped before the recording is complete: its pid must not be another's till then.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        finally:
            _keep(profiler, request, None)
        _tell_without_python(profiler.recording, command[0])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def _wait_for_program(watch: _Watch, pid: int, pidfd: int) -> None:
    number = watch.wait(pidfd, None)
    if number is None:
        return
    if not (number == signal.SIGINT and _is_foreground()):
        os.kill(pid, number)
    if watch.wait(pidfd, None) is not None:
        os.kill(pid, signal.SIGKILL)


class _Watch:
    """Signals as something to wait for: none can break off a start or a stop half way."""

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _ignore) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)

    def wait(self, pidfd: int, until: float | None) -> int | None:
        """Wait for the end of a process or of the time (None), or for a signal (its number)."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._read, select.POLLIN)
        while True:
            left = None if until is None else min(until - time.monotonic(), _LONGEST_WAIT)
            if left is not None and left <= 0:
                return None
            ready = {fd for fd, _ in poll.poll(None if left is None else left * 1000)}
            if self._read in ready:
                for number in os.read(self._read, 64):
                    if number in _SIGNALS:
                        return number
            elif ready:
                return None


def _ignore(*_: object) -> None:
    """Handle a signal by its number alone, which is in the pipe already."""


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        raise NoSuchProcessError(
            f"there is no process {pid}: check the pid with `ps -p {pid}`."
        ) from None
    try:
        yield pidfd
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _gated(command: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start a program behind a gate; yield its pid and the descriptor that opens it."""
    behind, gate = os.pipe2(os.O_CLOEXEC)
    fd = _free_digit()
    try:
        pid = os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", _GATE.format(fd=fd), "sh", *command],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, behind, fd)],
            # Python itself ignores these; the program is to find them as its user's shell does.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    finally:
        os.close(behind)
    # By its pid alone, one that was reaped might be taken for another.
    pidfd = os.pidfd_open(pid)
    try:
        yield pid, gate
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        raise
    finally:
        os.close(pidfd)
        os.close(gate)


def _free_digit() -> int:
    """Find a descriptor from 3 to 9 that the program does not inherit anyway."""
    for fd in range(9, 2, -1):
        try:
            if not os.get_inheritable(fd):
                return fd
        except OSError:
            return fd
    raise OptionError("all descriptors from 3 to 9 are open: close one of them.")


def _is_foreground() -> bool:
    """Whether Ctrl-C on the terminal reaches the program without our help."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:  # noqa: PTH123 - no buffer
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _check_program(command: Sequence[str]) -> None:
    name = command[0]
    if shutil.which(name) is not None:
        return
    if os.path.isfile(name):  # noqa: PTH113 - a name, which a shell would look for in PATH
        raise NoSuchProcessError(
            f"{name} can't be executed: if it is a Python program, record "
            f"`{shlex.join(['python', *command])}`; else make it executable with "
            f"`{shlex.join(['chmod', '+x', name])}`, and give its path."
        )
    raise NoSuchProcessError(
        f"there is no program {name!r}: give one that is in PATH, or its path."
    )


def _check_output(request: Request) -> None:
    if request.output is not None:
        check_export_path(request.output)


def _keep(profiler: PyStackProfiler, request: Request, seconds: float | None) -> None:
    """Stop, write and tell; what was recorded before something ended it is kept too."""
    try:
        profiler.stop_profiling()
    except TargetExitedError:
        if profiler.recording is not None:
            _tell_end(profiler.recording, seconds)
        _write(profiler, request)
    except PystackError:
        _write(profiler, request)
        raise
    else:
        _write(profiler, request)


def _tell_end(recording: Recording, seconds: float | None) -> None:
    """Take the end of the process for what it is: no error, but maybe early."""
    recording.info["error"] = None
    if seconds is not None:
        recording.info["notes"].append(f"the process ended before {seconds:g} s were over")


def _tell_without_python(recording: Recording | None, program: str) -> None:
    if recording is None or recording.info["versions"].get("target_python"):
        return
    _say(
        f"pystack-nb: no Python was recorded: {program} itself ran none of CPython 3.11, 3.12 and "
        "3.13, or not long enough to be found; processes that it starts are not recorded. If one "
        "of them is the Python program, record that one."
    )


def _write(profiler: PyStackProfiler, request: Request) -> None:
    recording = profiler.recording
    if recording is None:
        return
    if request.output is not None:
        recording.export(request.output)  # first: what is told next may find nobody
    _say(summary(recording))
    if request.output is not None:
        _say(f"written: {request.output}")


def _say(text: str) -> None:
    """Tell on standard error, since standard output is the program's.

    That nobody can read it is no reason to lose the recording or the program's status.
    """
    if sys.stderr is None:  # closed before this process began
        return
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        # Else Python itself would fail once more when it ends.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a descriptor is what is needed
            os.dup2(nowhere.fileno(), sys.stderr.fileno())
