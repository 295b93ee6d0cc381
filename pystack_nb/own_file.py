"""Descriptors that outlive the recorded program's closing of all that it finds open."""

from __future__ import annotations

import errno
import os

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from pathlib import Path


class OwnFile:
    """A descriptor that the recorded program may have closed, and its number be another's.

    Parameters
    ----------
    fd
        Open; belongs to this object from now on.

    Attributes
    ----------
    fd : int
        -1 once it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._known = _identity(fd)

    @property
    def is_open(self) -> bool:
        """Whether the descriptor is still this file's."""
        return self.fd >= 0 and _identity(self.fd) == self._known

    def reopen(self, path: Path, flags: int) -> None:
        """Open the file anew if somebody else has closed it.

        Raises
        ------
        OSError
            When it is not there any more.
        """
        if self.is_open:
            return
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
        if _identity(fd) != self._known:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        self.fd = fd

    def close(self) -> None:
        """Close it, unless that was done; closing twice does nothing."""
        if self.is_open:
            os.close(self.fd)
        self.fd = -1


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
