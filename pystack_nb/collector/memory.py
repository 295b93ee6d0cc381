"""The address space of another process: its mappings, its bytes, the files behind them.

The process may be hostile: what it says about itself is bounded here, and a file that it mapped is
opened only when it is a regular one, so that no device and no pipe is ever touched.
"""

from __future__ import annotations

import os
import stat

from typing import TYPE_CHECKING, NamedTuple

from .process import gone
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

_MAX_MAPS = 32 << 20  # bytes of /proc/PID/maps; vm.max_map_count allows about 8 MiB
_USER_SPACE = 1 << 56


class UnreadableError(Exception):
    """An address of the process can't be read."""


class Mapping(NamedTuple):
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    offset: int
    device: int
    inode: int
    path: str


class AddressSpace:
    """What one process had mapped when this was made; never what its pid stands for later.

    Parameters
    ----------
    pid
        As the collector's PID namespace sees it.

    Raises
    ------
    CollectorProblem
        "no-such-process" or "access-denied".

    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._folder = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise gone(self.pid) from None
        try:
            self._memory = self._open("mem")
        except BaseException:
            os.close(self._folder)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._memory)
        os.close(self._folder)

    def _open(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except (FileNotFoundError, ProcessLookupError):
            raise gone(self.pid) from None
        except PermissionError:
            msg = (
                f"the collector may not read process {self.pid}: run the collector as root, or"
                " with CAP_SYS_PTRACE."
            )
            raise CollectorProblem("access-denied", msg) from None

    def executable(self) -> str:
        """Path of the program, as it stands in the mappings; empty for a kernel thread."""
        try:
            return os.readlink("exe", dir_fd=self._folder)
        except FileNotFoundError:
            return ""
        except ProcessLookupError:
            raise gone(self.pid) from None

    def ended(self) -> bool:
        """Whether the process has ended, although its parent has not looked at it yet."""
        fd = self._open("stat")
        try:
            return os.read(fd, 4096).rpartition(b")")[2].split()[0] in {b"Z", b"X"}
        except ProcessLookupError:
            return True
        finally:
            os.close(fd)

    def mapping_at(self, address: int) -> Mapping | None:
        """Give the mapping that an address lies in, or None."""
        for line in self._maps():
            start, _, end = line.partition(b" ")[0].partition(b"-")
            if int(start, 16) <= address < int(end, 16):
                return _mapping(line)
        return None

    def mapped_files(self, wanted: Callable[[str], bool]) -> list[Mapping]:
        """Give the mappings of the files whose path is wanted, in the order of their addresses."""
        known: dict[bytes, bool] = {}  # a notebook maps hundreds of files, each a few times
        found = []
        for line in self._maps():
            _, slash, rest = line.partition(b"/")
            if slash and rest not in known:
                known[rest] = wanted(os.fsdecode(slash + rest))
            if slash and known[rest]:
                found.append(_mapping(line))
        return found

    def _maps(self) -> list[bytes]:
        """Read the lines of ``/proc/PID/maps``."""
        text = bytearray()
        fd = self._open("maps")
        try:
            while piece := os.read(fd, 1 << 20):
                text += piece
                if len(text) > _MAX_MAPS:
                    msg = f"process {self.pid} has too many mappings: trace another one."
                    raise CollectorProblem("not-python", msg)
        except ProcessLookupError:
            raise gone(self.pid) from None
        finally:
            os.close(fd)
        return [line for line in bytes(text).split(b"\n") if line]

    def read(self, address: int, size: int) -> bytes:
        """Read memory, all of it or none; pages that are not there yet are faulted in."""
        data = self.read_some(address, size)
        if len(data) != size:
            msg = f"{size} bytes at {address:#x} can't be read"
            raise UnreadableError(msg)
        return data

    def read_some(self, address: int, size: int) -> bytes:
        """Read memory up to the first byte that can't be read."""
        if not 0 < address < _USER_SPACE - size:
            return b""
        try:
            return os.pread(self._memory, size, address)
        except OSError:
            return b""

    def open_file(self, mapping: Mapping) -> int | None:
        """Open the file behind a mapping for reading, or None if it can't be had.

        `map_files` is asked first: there the kernel itself names the file, also a deleted one.  It
        wants CAP_CHECKPOINT_RESTORE; without, the path is opened under the process's own root, and
        must lead to the device and inode that are mapped.
        """
        by_range = f"map_files/{mapping.start:x}-{mapping.end:x}"
        fd = self._open_regular(by_range, 0)
        if fd is None and mapping.path.startswith("/"):
            fd = self._open_regular(f"root{mapping.path}", os.O_NOFOLLOW)
            if fd is not None:
                found = os.fstat(fd)
                if (found.st_dev, found.st_ino) != (mapping.device, mapping.inode):
                    os.close(fd)
                    return None
        return fd

    def _open_regular(self, name: str, flags: int) -> int | None:
        try:
            handle = os.open(name, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=self._folder)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            return os.open(
                f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            )
        except OSError:
            return None
        finally:
            os.close(handle)


def _mapping(line: bytes) -> Mapping:
    fields = line.split(None, 5)
    start, _, end = fields[0].partition(b"-")
    major, _, minor = fields[3].partition(b":")
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        permissions=fields[1].decode("ascii"),
        offset=int(fields[2], 16),
        device=os.makedev(int(major, 16), int(minor, 16)),
        inode=int(fields[4]),
        path=os.fsdecode(fields[5]) if len(fields) > 5 else "",
    )
