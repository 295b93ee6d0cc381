"""Start a collector of one's own: directly when root, else through ``sudo -n``."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import time

from pathlib import Path

from pystack_nb.collector import locate
from pystack_nb.collector.peer import credentials
from pystack_nb.errors import CollectorError, CollectorUnavailableError
from pystack_nb.own_file import OwnFile
from pystack_nb.spool import start_time


# The distribution's: BCC's Python package belongs to it.
PYTHON = "/usr/bin/python3"

_START_SECONDS = 30.0
_END_SECONDS = 5.0
_POLL_SECONDS = 0.05
# Nothing of ours: what root compiles and loads is not for an unprivileged process to choose.
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
# A shell starts it, says its pid and ends, so that it is no child of this process: whoever waits
# here for any child is not to find one that he has not started.
_START = '"$@" >/dev/null & echo $!'
_WITHOUT_THE_SHELLS = ("env", "-i", *(f"{name}={value}" for name, value in _ENVIRONMENT.items()))


class Collector:
    """A collector process that this process has started.

    Attributes
    ----------
    connection : socket.socket
        Connected to it.
    pid : int
        Of the process, or of the ``sudo`` that it runs under.
    """

    def __init__(self, prefix: tuple[str, ...]) -> None:
        # A file without a name: nothing is left behind, however this process ends.
        self._log = OwnFile(os.memfd_create("pystack_nb-collector", os.MFD_CLOEXEC))
        self._process = OwnFile(-1)
        self._began: str | None = None  # what tells it from a later process of its number
        # The name in the abstract namespace goes away with the socket. Whoever else connects
        # to it is told by the kernel from the one that was started.
        name = f"pystack_nb-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"\0{name}")
            listener.listen(8)
            try:
                self.pid = self._spawn([*prefix, *_command(name)])
                self._process = OwnFile(_opened(self.pid))
                self._began = start_time(self.pid)
                self.connection = self._accept(listener)
            except BaseException:
                listener.close()  # without it, the collector ends by itself
                self.end()
                raise

    def errors(self) -> str:
        """Return what it has printed, which is nothing unless it failed."""
        if not self._log.is_open:
            return ""
        size = os.fstat(self._log.fd).st_size
        return os.pread(self._log.fd, min(size, 65536), 0).decode(errors="replace").strip()

    def end(self) -> None:
        """Wait for the end of a process whose connection is closed, and forget it."""
        if not self._ended(_END_SECONDS) and self._process.is_open:
            with contextlib.suppress(PermissionError, ProcessLookupError):  # sudo's is root's
                signal.pidfd_send_signal(self._process.fd, signal.SIGKILL)
                self._ended(_END_SECONDS)
        self.forget()

    def forget(self) -> None:
        """Drop what this process has of it, and leave it to itself."""
        self._log.close()
        self._process.close()

    def _spawn(self, command: list[str]) -> int:
        shell = subprocess.run(
            ["/bin/sh", "-c", _START, "sh", *_WITHOUT_THE_SHELLS, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log.fd,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,  # an interrupt of the cell is not meant for it
            check=False,
        )
        if not shell.stdout:
            raise _failure(self.errors())
        return int(shell.stdout)

    def _ended(self, seconds: float = 0) -> bool:
        if self._process.is_open:
            return is_ready(self._process.fd, seconds)
        # None yet, or closed by the recorded program.
        deadline = time.monotonic() + seconds
        while self._began and start_time(self.pid) == self._began:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def _accept(self, listener: socket.socket) -> socket.socket:
        deadline = time.monotonic() + _START_SECONDS
        listener.setblocking(False)
        while time.monotonic() < deadline:
            if is_ready(listener, _POLL_SECONDS):
                connection, _ = listener.accept()
                if self._is_mine(connection):
                    connection.setblocking(True)
                    return connection
                connection.close()
            elif self._ended():
                raise _failure(self.errors())
        raise CollectorError(
            f"the collector did not start within {_START_SECONDS:.0f} s: run `pystack-nb doctor`."
        )

    def _is_mine(self, connection: socket.socket) -> bool:
        pid, uid, _ = credentials(connection)
        return uid == 0 and (os.geteuid() != 0 or pid == self.pid)


def is_ready(file: int | socket.socket, seconds: float) -> bool:
    """Wait until there is something to read, or (of a pidfd) the process has ended."""
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def launch() -> Collector:
    """Start a collector.

    Raises
    ------
    CollectorUnavailableError
        When this user may not start one.
    CollectorError
        When it fails.
    """
    if not Path(PYTHON).exists():
        raise CollectorUnavailableError(
            f"there is no {PYTHON}: install the distribution's Python and BCC with "
            "`apt-get install python3-bpfcc`."
        )
    if os.geteuid() == 0:
        return Collector(())
    if shutil.which("sudo", path=_ENVIRONMENT["PATH"]) is None:
        raise CollectorUnavailableError("there is no sudo. Install it.")
    return Collector(("sudo", "-n"))


def _opened(pid: int) -> int:
    """Return a pidfd; -1 for a process that has ended."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1


def _command(name: str) -> list[str]:
    return [
        PYTHON,
        "-I",
        "-B",  # root leaves no bytecode in a user's folders
        str(Path(__file__).with_name("__main__.py").resolve()),
        f"--bpf={locate.bpf_folder()}",
        f"--library={locate.library()}",
        "connect",
        f"--client={os.getpid()}",
        name,
    ]


def _failure(printed: str) -> CollectorUnavailableError | CollectorError:
    for line in printed.splitlines():
        if line.startswith("sudo:"):
            return CollectorUnavailableError(f"{line}. Allow sudo without a password.")
    return CollectorError(
        f"the collector ended at once, saying: {printed or 'nothing'}. Run `pystack-nb doctor`."
    )
