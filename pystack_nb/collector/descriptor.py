"""Whether a descriptor that a client passed may be written to by a root process."""

from __future__ import annotations

import fcntl
import os
import stat

from pathlib import Path

from .linux import file_system_type
from .protocol import CollectorProblem


# Local file systems, from linux/magic.h and the file systems' own headers. Any other may be
# served by another machine or by a process, and make the writer wait for as long as it likes.
_LOCAL = {
    0xEF53: "ext2, ext3, ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "f2fs",
    0x2FC12FC1: "zfs",
    0x3153464A: "jfs",
    0x3434: "nilfs2",
    0x4D44: "vfat",
    0x2011BAB0: "exfat",
    0x7366746E: "ntfs3",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x794C7630: "overlayfs",
    0xF15F: "ecryptfs",
}
F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h


def check_descriptor(fd: int, uid: int | None) -> None:
    """Refuse a descriptor unless it is a file of this user, open for writing.

    Parameters
    ----------
    fd
        A regular file on a local file system, or a memfd sealed against shrinking.
    uid
        Who must own the file; None: anyone.

    Raises
    ------
    CollectorProblem
        ``bad-descriptor``, saying what is wrong.
    """
    # First, because asking a process that serves a file system anything else may never end.
    if not is_local(fd):
        raise _refuse("it is not on a local file system")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise _refuse("it is not a regular file")
    if uid is not None and status.st_uid != uid:
        raise _refuse("it belongs to another user")
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    if flags & os.O_ACCMODE not in (os.O_WRONLY, os.O_RDWR):
        raise _refuse("it is not open for writing")
    if flags & os.O_DIRECT:
        raise _refuse("it takes whole blocks only (O_DIRECT)")
    if str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:"):
        _check_seals(fcntl.fcntl(fd, fcntl.F_GET_SEALS))


def is_local(fd: int) -> bool:
    """Whether no other machine and no process serves what the descriptor is open on."""
    return file_system_type(fd) in _LOCAL


def _check_seals(seals: int) -> None:
    if not seals & fcntl.F_SEAL_SHRINK:
        raise _refuse("it is a memfd that is not sealed against shrinking")
    if seals & (fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | F_SEAL_FUTURE_WRITE):
        raise _refuse("it is a memfd that is sealed against writing")


def _refuse(reason: str) -> CollectorProblem:
    return CollectorProblem(
        "bad-descriptor",
        f"the recording's file is refused, {reason}: pass a file of your own on a local disk, "
        "for example by setting TMPDIR to one.",
    )
