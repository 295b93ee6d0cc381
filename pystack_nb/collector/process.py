"""A process as the kernel describes it, held against the reuse of its pid."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import select

from dataclasses import dataclass
from pathlib import Path

from .protocol import CollectorProblem


_ENDED = ("Z", "X")
_MAX_FILE_SIZE = re.compile(rb"^Max file size +(\d+)", re.MULTILINE)
_NS_GET_PARENT = 0xB702  # linux/nsfs.h


@dataclass(frozen=True)
class Status:
    """What ``/proc/PID/status`` says about rights.

    Attributes
    ----------
    ids
        Real uid and gid, saved uid and gid, effective uid and gid.
    permitted, effective
        Capabilities.
    pids
        The process's pid in each PID namespace, ours first, its own last.
    """

    ids: tuple[int, int, int, int, int, int]
    permitted: int
    effective: int
    pids: tuple[int, ...]

    @classmethod
    def read(cls, pid: int) -> Status:
        """Read the status of a process that may end at any moment."""
        fields: dict[str, list[str]] = {}
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name, value.split())
        ruid, euid, suid, _ = map(int, fields["Uid"])
        rgid, egid, sgid, _ = map(int, fields["Gid"])
        return cls(
            ids=(ruid, rgid, suid, sgid, euid, egid),
            permitted=int(fields["CapPrm"][0], 16),
            effective=int(fields["CapEff"][0], 16),
            pids=tuple(map(int, fields["NSpid"])),
        )


class Process:
    """A process held by its pidfd.

    What is read about its pid is about this process as long as `alive` says yes *after*
    reading: a pid is not given to another process before that.
    """

    def __init__(self, pid: int, pidfd: int | None = None) -> None:
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid) if pidfd is None else pidfd
        except (OSError, OverflowError):
            raise gone(pid) from None

    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def status(self) -> Status:
        """Return its ids, capabilities and pids."""
        return Status.read(self.pid)

    def live_thread(self) -> Path:
        """Return the folder in ``/proc`` of a thread that still has the process's memory.

        The first thread may have ended before the others: what it shows then is empty, and
        nobody is refused it.
        """
        threads = Path(f"/proc/{self.pid}/task")
        for thread in (threads / str(self.pid), *threads.iterdir()):
            if _state(thread) not in _ENDED:
                return thread
        raise gone(self.pid)

    def owner(self) -> int:
        """Return the effective uid, or root's when the process is undumpable.

        Of a file in ``/proc/PID``, for the folder itself belongs to the effective uid always.
        """
        return (self.live_thread() / "maps").stat().st_uid

    def namespace(self, kind: str) -> tuple[int, int]:
        """Return device and inode of a namespace that the process is in."""
        return namespace_of(self.pid, kind)

    def program(self) -> tuple[object, ...]:
        """Return what changes when the process executes another program.

        The addresses are random for each execution, so that executing the same file once
        more is seen too, even where the file itself is not position independent.
        """
        try:
            thread = self.live_thread()
            executable = (thread / "exe").stat()
            fields = _stat_fields(thread)
        except PermissionError:
            raise CollectorProblem(
                "access-denied",
                f"the kernel hides process {self.pid} even from the collector: give the collector "
                "CAP_SYS_PTRACE, or choose another process.",
            ) from None
        except OSError:
            if self.alive():  # a kernel thread, which executes no file
                raise CollectorProblem(
                    "not-python", f"process {self.pid} has no program: choose a Python process."
                ) from None
            raise gone(self.pid) from None
        start_code, start_stack, start_brk, arg_start = (fields[n - 3] for n in (26, 28, 47, 48))
        return executable.st_dev, executable.st_ino, start_code, start_stack, start_brk, arg_start

    def max_file_size(self) -> int:
        """Return its soft limit on a file's size, `resource.RLIM_INFINITY` for none.

        From ``/proc``, since prlimit() of another user's process takes CAP_SYS_RESOURCE.
        """
        found = _MAX_FILE_SIZE.search(Path(f"/proc/{self.pid}/limits").read_bytes())
        return int(found[1]) if found else resource.RLIM_INFINITY

    def close(self) -> None:
        """Let go of it."""
        os.close(self.pidfd)


def _stat_fields(folder: Path) -> list[str]:
    # The command's name stands in parentheses, and may hold anything.
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _state(thread: Path) -> str:
    try:
        return _stat_fields(thread)[0]
    except OSError:
        return "X"


def namespace_of(pid: int | str, kind: str) -> tuple[int, int]:
    """Return device and inode of a namespace of a process, which may be ``"self"``."""
    found = Path(f"/proc/{pid}/ns/{kind}").stat()
    return found.st_dev, found.st_ino


def gone(pid: int) -> CollectorProblem:
    """Return the problem that a process does not exist."""
    return CollectorProblem(
        "no-such-process",
        f"there is no process {pid}, or it has ended: check the pid with `ps -p {pid}`.",
    )


def find_pid(pid: int, observer: Process) -> int:
    """Return the pid, as seen from here, of the process that the observer knows by this pid.

    Raises
    ------
    CollectorProblem
        ``no-such-process`` when the observer's PID namespace holds none.
    """
    namespace = observer.namespace("pid")
    if namespace == namespace_of("self", "pid"):
        return pid
    depth = len(observer.status().pids) - 1
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and _is_known_as(int(entry.name), pid, depth, namespace):
            return int(entry.name)
    raise gone(pid)


def _is_known_as(candidate: int, pid: int, depth: int, namespace: tuple[int, int]) -> bool:
    try:
        pids = Status.read(candidate).pids
        if len(pids) <= depth or pids[depth] != pid:
            return False
        return _ancestor(candidate, len(pids) - 1 - depth) == namespace
    except OSError:
        return False  # it ended while being looked at


def _ancestor(pid: int, generations: int) -> tuple[int, int]:
    fd = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for _ in range(generations):
            parent = fcntl.ioctl(fd, _NS_GET_PARENT)
            os.close(fd)
            fd = parent
        found = os.fstat(fd)
        return found.st_dev, found.st_ino
    finally:
        os.close(fd)
