"""The collector's process: one that a profiler started for itself, or a service."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import select
import signal
import socket
import sys
import time

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .linux import die_with_parent
from .peer import Peer, credentials, payer
from .protocol import CollectorProblem, MessageType, encode
from .session import Session
from .trust import check_installation, drop_untrusted_packages


if TYPE_CHECKING:
    from collections.abc import Sequence

    from .loader import Sampler


MAX_WORKERS = 64
MAX_WORKERS_OF_A_USER = 8
_NICENESS = 5
_PAUSE = 0.1  # seconds
_MAX_MEMORY = 1 << 30  # of address space; a worker that compiles takes about 300 MiB


def main(arguments: Sequence[str]) -> int:
    """Run ``connect`` or ``serve``; return the exit status."""
    drop_untrusted_packages()
    options = _parse(arguments)
    # Away from whatever folder, and file system, this was started in.
    bpf, library = options.bpf.resolve(), options.library.resolve()
    try:
        if options.command == "connect":
            os.chdir("/")
            _connect(options.name, options.client, bpf, library)
        else:
            path = options.socket.absolute()
            os.chdir("/")
            Service(path, bpf, library).run()
    except CollectorProblem as problem:
        sys.stderr.write(f"{problem.message}\n")
        return 1
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="collector")
    parser.add_argument("--bpf", type=Path, required=True, help="folder of the BPF source")
    parser.add_argument("--library", type=Path, required=True, help="the C library")
    commands = parser.add_subparsers(dest="command", required=True)
    own = commands.add_parser("connect", help="serve the one process that started this one")
    own.add_argument("name", help="abstract Unix socket on which it listens")
    own.add_argument("--client", type=int, required=True, help="its pid")
    service = commands.add_parser("serve", help="serve everybody")
    service.add_argument("--socket", type=Path, required=True, help="path to listen on")
    return parser.parse_args(arguments)


def _connect(name: str, client: int, bpf: Path, library: Path) -> None:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(f"\0{name}")
        found = credentials(connection)[0]
    except OSError:
        found = None
    if found != client:
        raise CollectorProblem("internal", "the client has ended: start a new collector.")
    # The profiler's terminal may be ours: an interrupt there is meant for the cell.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work(connection, bpf, library)


def _work(connection: socket.socket, bpf: Path, library: Path) -> None:
    def make_sampler() -> Sampler:
        from .loader import Sampler  # noqa: PLC0415 - bcc is slow to import, or missing

        return Sampler(str(bpf), str(library))

    signal.signal(signal.SIGTERM, _leave)
    try:
        peer = Peer.of(connection)
    except CollectorProblem as problem:
        connection.sendall(
            encode(MessageType.ERROR, {"error": problem.code, "message": problem.message})
        )
        return
    Session(connection, peer, make_sampler).run()


def _leave(*_: object) -> NoReturn:
    sys.exit(0)


class Service:
    """Listens for clients and forks a worker for each.

    Parameters
    ----------
    path
        Where its socket lies, for everybody to connect to.
    bpf, library
        Folder of the BPF source, and the C library.
    """

    def __init__(self, path: Path, bpf: Path, library: Path) -> None:
        path.parent.mkdir(mode=0o755, exist_ok=True)
        check_installation([Path(__file__).parent, bpf, library], path.parent)
        self._path = path
        self._bpf = bpf
        self._library = library
        self._listener = _listen(path)
        self._workers: dict[int, tuple[int, int]] = {}  # pidfd -> pid, uid of its client

    def run(self) -> None:
        """Serve until a signal ends it."""
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGINT, _leave)
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        try:
            while True:
                for fd, _ in poll.poll():
                    if fd in self._workers:
                        poll.unregister(fd)
                        self._reap(fd)
                    elif worker := self._accept():
                        poll.register(worker, select.POLLIN)
        finally:
            self._path.unlink(missing_ok=True)

    def _reap(self, pidfd: int) -> None:
        pid, _ = self._workers.pop(pidfd)
        os.waitpid(pid, 0)
        os.close(pidfd)

    def _accept(self) -> int | None:
        """Fork a worker for the next client and return its pidfd."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None  # it has left already
        except OSError as error:  # no memory or no descriptor is left: others may give some back
            sys.stderr.write(f"no client could be taken: {error}\n")
            time.sleep(_PAUSE)
            return None
        with connection:
            uid = payer(*credentials(connection)[:2])
            of_user = sum(other == uid for _, other in self._workers.values())
            full = len(self._workers) >= MAX_WORKERS or of_user >= MAX_WORKERS_OF_A_USER
            if full and uid != 0:
                _turn_away(connection)
                return None
            service = os.getpid()
            try:
                pid = os.fork()
            except OSError:  # too many processes, whoever's they are
                _turn_away(connection)
                return None
            if pid == 0:
                self._become_worker(connection, service)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                sys.stderr.write(f"no worker could be watched: {error}\n")
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return None
            self._workers[pidfd] = pid, uid
            return pidfd

    def _become_worker(self, connection: socket.socket, service: int) -> NoReturn:
        status = 1
        try:
            die_with_parent(signal.SIGTERM)
            if os.getppid() != service:
                sys.exit(1)  # it ended before the kernel could promise to tell
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.nice(_NICENESS)  # whoever comes and goes all the time leaves the machine to others
            resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
            self._listener.close()
            for pidfd in self._workers:
                os.close(pidfd)
            connection.setblocking(True)
            _work(connection, self._bpf, self._library)
            status = 0
        except SystemExit:
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
            raise
        finally:
            # Not sys.exit(): what stands above this frame is the service's, not the worker's.
            os._exit(status)


def _turn_away(connection: socket.socket) -> None:
    problem = {"error": "busy", "message": "the collector has too many clients: close one."}
    # A fresh socket has room for this, so it never waits; whether it is read is not our concern.
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(encode(MessageType.ERROR, problem))


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
    except OSError:
        if _is_served(path):
            raise CollectorProblem(
                "internal", f"another collector serves on {path}: stop it first."
            ) from None
        path.unlink()
        listener.bind(str(path))
    path.chmod(0o666)  # who may see what is checked for each client
    listener.listen(MAX_WORKERS)
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
