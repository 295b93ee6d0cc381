"""Who is at the other end of a Unix socket, as the kernel says."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from dataclasses import dataclass
from pathlib import Path

from .linux import CAP_SYS_PTRACE
from .process import Process, gone, namespace_of
from .protocol import CollectorProblem


_SO_PEERPIDFD = 77  # asm-generic/socket.h, since Linux 6.5
_NS_GET_PARENT = 0xB702  # linux/nsfs.h
_NS_GET_OWNER_UID = 0xB704
_CREDENTIALS = struct.Struct("iII")


@dataclass(frozen=True)
class Peer:
    """A client.

    Attributes
    ----------
    uid, gid
        Whose rights count: those at the time of connecting, whatever the process becomes.
    process
        The process that connected, held.
    capabilities
        The effective ones, if they are its own by right, and in our user namespace.
    at_home
        Whether it is in our user namespace.
    """

    uid: int
    gid: int
    process: Process
    capabilities: int
    at_home: bool

    @property
    def privileged(self) -> bool:
        """Whether it is root and may trace every process anyway."""
        return self.uid == 0 and bool(self.capabilities & CAP_SYS_PTRACE)

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Ask the kernel who is at the other end.

        Raises
        ------
        CollectorProblem
            When the other end has ended, or is in a PID namespace that is not below ours.
        """
        pid, uid, gid = credentials(connection)
        if pid == 0:
            raise CollectorProblem(
                "access-denied",
                "the collector can't see the client's process: run both in one PID namespace.",
            )
        try:
            process = Process(pid, _pidfd(connection))
            at_home = process.namespace("user") == namespace_of("self", "user")
            capabilities = _own_capabilities(process, uid, gid) if at_home else 0
        except OSError:
            raise gone(pid) from None
        if not process.alive():
            raise gone(pid)
        return cls(uid, gid, process, capabilities, at_home)


def credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the other end."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


def payer(pid: int, uid: int) -> int:
    """Return the uid, in our user namespace, of whoever a client's connection is charged to.

    Whoever has further uids in user namespaces of his own gets no more than others by that; but
    what root has made, such as a container, is charged as itself.
    """
    ours = Path("/proc/self/ns/user").stat()
    try:
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return uid  # it has left
    try:
        while not os.path.samestat(os.fstat(fd), ours):
            owner = struct.unpack("I", fcntl.ioctl(fd, _NS_GET_OWNER_UID, bytes(4)))[0]
            uid = owner or uid
            parent = fcntl.ioctl(fd, _NS_GET_PARENT)
            os.close(fd)
            fd = parent
    except OSError:
        return uid  # its namespace is not below ours
    finally:
        os.close(fd)
    return uid


def _pidfd(connection: socket.socket) -> int | None:
    try:
        fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return None  # an older kernel: the caller opens one by pid
    os.set_inheritable(fd, False)
    return fd


def _own_capabilities(process: Process, uid: int, gid: int) -> int:
    # Since it connected, the process may have executed a program with more rights, which
    # its user does not have: such a program is undumpable, or its ids differ.
    status = process.status()
    if status.ids != (uid, gid) * 3 or process.owner() != uid:
        return 0
    return status.effective
