"""The probe's site of calls mode: found in the recorded process, and verified in its file.

The client names an address and nothing else.  Which file is mapped there, where in it the address
lies and that a probe's site is there is found out here, so that no uprobe is ever set on anything
but the five-byte nop with which ``pystack_probe_site`` begins.
"""

from __future__ import annotations

import os

from typing import TYPE_CHECKING, NamedTuple

from .descriptor import is_local
from .elf import PF_X, ElfError, ElfFile
from .memory import AddressSpace
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from .memory import Mapping

SYMBOL = "pystack_probe_site"
NOP = bytes.fromhex("0f1f440000")


class Site(NamedTuple):
    """A place in a file to set the uprobe on.

    Attributes
    ----------
    fd
        The file, open for reading; whoever asked for the site closes it.
    offset
        In the file.
    """

    fd: int
    offset: int

    @property
    def key(self) -> tuple[int, int, int]:
        """What two sites have alike that are one."""
        status = os.fstat(self.fd)
        return status.st_dev, status.st_ino, self.offset


def find_site(pid: int, address: int) -> Site:
    """Find the file and the place in it that a process has mapped at an address.

    Parameters
    ----------
    pid
        As the collector's PID namespace sees it.
    address
        Of ``pystack_probe_site``, as the process says.

    Raises
    ------
    CollectorProblem
        ``bad-site``, saying what is wrong.
    """
    with AddressSpace(pid) as memory:
        mapping = _mapping_at(memory, address)
        fd = memory.open_file(mapping)
    if fd is None:
        raise _refuse("its file can't be opened")
    try:
        offset = mapping.offset + address - mapping.start
        _check_file(fd, offset)
    except BaseException:
        os.close(fd)
        raise
    return Site(fd, offset)


def _mapping_at(memory: AddressSpace, address: int) -> Mapping:
    mapping = memory.mapping_at(address)
    if mapping is None:
        raise _refuse("nothing is mapped there")
    if mapping.inode and "x" in mapping.permissions and "p" in mapping.permissions:
        return mapping
    raise _refuse("no program's code is mapped there")


def _check_file(fd: int, offset: int) -> None:
    # The kernel reads it too, and holds a lock meanwhile that others need for their uprobes.
    if not is_local(fd):
        raise _refuse("its file is not on a local file system")
    try:
        elf = ElfFile(fd)
        value = elf.symbols((SYMBOL,)).get(SYMBOL)
    except ElfError as error:
        raise _refuse(f"its file can't be read ({error})") from None
    if value is None or offset not in _offsets(elf, value):
        raise _refuse(f"{SYMBOL} does not lie there")
    if os.pread(fd, len(NOP), offset) != NOP:
        raise _refuse("it does not begin with a five-byte nop")


def _offsets(elf: ElfFile, value: int) -> list[int]:
    """Where in the file the code lies that has an address before relocation."""
    return [
        value - segment.address + segment.offset
        for segment in elf.segments
        if segment.flags & PF_X and segment.address <= value < segment.address + segment.file_size
    ]


def _refuse(reason: str) -> CollectorProblem:
    return CollectorProblem(
        "bad-site",
        f"the probe's site is refused, {reason}: install the same version of pystack_nb on both "
        "sides, on a local disk.",
    )
