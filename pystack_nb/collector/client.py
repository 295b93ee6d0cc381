"""The notebook's side of the collector's socket."""

from __future__ import annotations

import atexit
import errno
import os
import socket
import threading

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pystack_nb.collector.launch import Collector, is_ready, launch
from pystack_nb.collector.locate import command_as_root
from pystack_nb.collector.peer import credentials
from pystack_nb.collector.protocol import CollectorProblem, Decoder, MessageType, encode
from pystack_nb.errors import (
    CollectorError,
    CollectorUnavailableError,
    ProfilerStateError,
    from_collector,
)
from pystack_nb.own_file import OwnFile
from pystack_nb.rate import DEFAULT_HZ


if TYPE_CHECKING:
    from collections.abc import Sequence


SOCKET_VARIABLE = "PYSTACK_NB_SOCKET"
SERVICE_SOCKET = Path("/run/pystack_nb/collector.sock")

_REPLY_SECONDS = 90.0  # the collector gives itself 60
_RECEIVE_SIZE = 64 * 1024
_THREE_WAYS = (
    "Run Jupyter as root; or allow this user `sudo` without a password; or run "
    f"`{command_as_root('collector', 'install')}` once, which every user's notebooks find then "
    f"({SOCKET_VARIABLE} names another service's socket)."
)


class CollectorClient:
    """A connection to a collector, made by `connect`.

    Attributes
    ----------
    versions : dict
        Of the kernel and of what the collector runs on.
    way : str
        ``"own"`` or ``"service"``.
    service : str
        The ``PYSTACK_NB_SOCKET`` under which it was made: another value asks for another one.
    recording : bool
        Whether `start` was called, and `stop` not yet.
    taken : bool
        Whether `connect` has given it to somebody who has not let go of it yet: by `release`, by
        a `start` that failed, or by `stop`.
    """

    def __init__(self, connection: socket.socket, collector: Collector | None = None) -> None:
        self.way = "own" if collector else "service"
        self.service = ""
        self.recording = self.taken = False
        self.versions: dict[str, str] = {}
        self._connection = connection
        self._file = OwnFile(connection.fileno())
        self._collector = collector
        self._decoder = Decoder()
        self._lock = threading.Lock()
        self._pid = os.getpid()
        connection.settimeout(_REPLY_SECONDS)
        self.versions |= self._call(MessageType.HELLO, {})["versions"]

    def prepare(self) -> dict[str, str]:
        """Have the BPF program compiled and loaded, and return all versions."""
        self.versions |= self._call(MessageType.PREPARE, {})["versions"]
        return self.versions

    def start(
        self,
        fd: int,
        pid: int | None = None,
        hz: int = DEFAULT_HZ,
        *,
        wait_python: bool = False,
        kernel_stacks: bool = True,
        sample: bool = True,
        calls_fd: int | None = None,
        site: int | None = None,
    ) -> dict[str, Any]:
        """Begin to record a process into a file.

        Parameters
        ----------
        fd
            A regular file of this user, open for writing; the caller may close it.
        pid
            As this process knows it; None: this process.
        hz
            Samples per second of a thread's CPU time.
        wait_python
            Whether the interpreter may come later, the program having just been started.
        kernel_stacks
            Whether kernel frames are wanted.
        sample
            Whether samples are wanted.
        calls_fd
            The memory that this process's probe shares, ``struct pst_shared`` in
            ``bpf/pystack_time.h``, a sealed memfd; None: no calls. From here on until `stop` the
            probe alone changes ``sent`` in it and the collector alone ``drained``.
        site
            Address of the probe's site, with `calls_fd`.

        Returns
        -------
        dict
            ``start_ns``, ``versions``, ``target_pid``, ``target_python``, ``kernel_stacks`` and
            ``notes`` (a list of sentences).

        Raises
        ------
        PystackError
            Of the class that says what is wrong; then nothing is recorded.
        """
        if self.recording:
            raise ProfilerStateError("this collector is recording already: stop it first.")
        fds = [fd] if calls_fd is None else [fd, calls_fd]
        body = {
            "pid": pid,
            "hz": hz,
            "wait_python": wait_python,
            "kernel_stacks": kernel_stacks,
            "sample": sample,
            "calls": None if calls_fd is None else {"site": site},
        }
        try:
            reply = self._call(MessageType.START, body, fds)
        except BaseException:
            self.release()
            raise
        self.recording = True
        self.versions |= reply["versions"]
        return reply

    def flush(self) -> dict[str, Any]:
        """Bring everything recorded so far into the file.

        Returns
        -------
        dict
            ``recording`` and, once it has ended, ``result`` as `stop` gives it.
        """
        return self._call(MessageType.FLUSH, {})

    def stop(self) -> dict[str, Any]:
        """End the recording.

        Returns
        -------
        dict
            What the sampler counted, and ``reason``: ``"stopped"``, or the code of what ended
            the recording before (``"target-exited"``, ``"spool-full"``, ``"access-denied"``)
            with a ``message`` about it.
        """
        try:
            return self._call(MessageType.STOP, {})
        finally:
            self.recording = False
            self.release()

    def release(self) -> None:
        """Let `connect` give this connection to the next who asks."""
        self.taken = False

    def close(self) -> None:
        """Leave; a collector of one's own ends with that, and so does its recording."""
        self.recording = False
        if self._connection.fileno() < 0:
            return
        self._disconnect()
        if self._collector and self._pid == os.getpid():
            self._collector.end()

    def forget(self) -> None:
        """Drop a parent process's connection, in its forked child."""
        if self._collector and self._connection.fileno() >= 0:
            self._collector.forget()
        self._disconnect()
        self.recording = False

    @property
    def usable(self) -> bool:
        """Whether the other end is there, and nothing unexpected has come from it."""
        if not self._file.is_open or self._pid != os.getpid():
            return False
        return not is_ready(self._connection, 0)

    def _disconnect(self) -> None:
        if not self._file.is_open:  # whoever has closed it may have another file by its number
            self._connection.detach()
        self._file.fd = -1
        self._connection.close()

    def _call(
        self, kind: MessageType, body: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> dict[str, Any]:
        if self._pid != os.getpid():
            raise ProfilerStateError(
                "this connection belongs to the parent process: start a profiler in this one."
            )
        with self._lock:
            try:
                self._send(encode(kind, body), descriptors)
                answer, reply = self._receive()
            except (OSError, CollectorProblem) as error:
                printed = self._fail()
                raise CollectorError(
                    f"the collector has left in the middle ({error}). {printed or 'Try again'}; "
                    "if it happens again, run `pystack-nb doctor`."
                ) from None
            except BaseException:
                # Interrupted between question and answer: the next answer would be taken for
                # another question's.
                self._fail()
                raise
        if answer is MessageType.ERROR:
            raise from_collector(reply["error"], reply["message"])
        return reply

    def _send(self, message: bytes, descriptors: Sequence[int]) -> None:
        if not self._file.is_open:
            raise OSError(errno.EBADF, "this process has closed the connection")
        socket.send_fds(self._connection, [message], descriptors)

    def _receive(self) -> tuple[MessageType, dict[str, Any]]:
        while (message := self._decoder.next()) is None:
            data = self._connection.recv(_RECEIVE_SIZE)
            if not data:
                raise ConnectionResetError("it closed the connection")
            self._decoder.feed(data)
        return message

    def _fail(self) -> str:
        printed = self._collector.errors() if self._collector else ""
        self.close()
        return printed


class _Pool:
    """The connections of this process, kept warm between recordings."""

    def __init__(self) -> None:
        self._clients: list[CollectorClient] = []
        self._lock = threading.Lock()

    def get(self) -> CollectorClient:
        service = os.environ.get(SOCKET_VARIABLE, "")
        with self._lock:
            for client in list(self._clients):
                if not client.taken and client.service == service:
                    if client.usable:
                        client.taken = True
                        return client
                    client.close()
                    self._clients.remove(client)
            client = _connect(service)
            client.service, client.taken = service, True
            self._clients.append(client)
            return client

    def close(self) -> None:
        with self._lock:
            for client in self._clients:
                client.close()
            self._clients.clear()

    def forget(self) -> None:
        self._lock = threading.Lock()  # whoever held it is not in this process
        for client in self._clients:
            client.forget()
        self._clients.clear()


_pool = _Pool()
atexit.register(_pool.close)
os.register_at_fork(after_in_child=_pool.forget)


def connect() -> CollectorClient:
    """Return a connection that nobody else uses, an earlier one if possible.

    The service that ``PYSTACK_NB_SOCKET`` names; else a collector of one's own, as root or
    through ``sudo -n``; else the installed service.

    Raises
    ------
    CollectorUnavailableError
        When there is no way to a collector; its message names all three.
    """
    return _pool.get()


def disconnect() -> None:
    """Close every connection of this process; its own collectors end."""
    _pool.close()


def try_service(path: Path) -> dict[str, str]:
    """Ask a service for its versions, on a connection of its own.

    Raises
    ------
    PystackError
        When it does not answer.
    """
    client = _connect_to(path)
    client.close()
    return client.versions


def _connect(service: str) -> CollectorClient:
    if service:
        return _connect_to(Path(service))
    try:
        collector = launch()
    except CollectorUnavailableError as error:
        if SERVICE_SOCKET.exists():
            return _connect_to(SERVICE_SOCKET)
        raise CollectorUnavailableError(f"no collector: {error} {_THREE_WAYS}") from None
    return CollectorClient(collector.connection, collector)


def _connect_to(path: Path) -> CollectorClient:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise CollectorUnavailableError(
            f"no collector listens on {path} ({error.strerror}): start the service"
            f"{_or_unset()}. {_THREE_WAYS}"
        ) from None
    if credentials(connection)[1] not in (0, os.geteuid()):
        connection.close()
        raise CollectorUnavailableError(
            f"whoever listens on {path} is neither root nor you: end that program{_or_unset()}. "
            f"{_THREE_WAYS}"
        )
    return CollectorClient(connection)


def _or_unset() -> str:
    return f", or unset {SOCKET_VARIABLE}" if os.environ.get(SOCKET_VARIABLE) else ""
