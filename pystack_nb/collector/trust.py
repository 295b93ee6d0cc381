"""Whether a service's own files are beyond the reach of everybody but root."""

from __future__ import annotations

import os
import site
import stat
import sys

from pathlib import Path
from typing import TYPE_CHECKING

from .protocol import CollectorProblem


if TYPE_CHECKING:
    from collections.abc import Iterable


def check_installation(code: Iterable[Path], socket_folder: Path) -> None:
    """Refuse to serve from files or folders that others than root can change.

    Parameters
    ----------
    code
        Files, and folders with all that is in them.
    socket_folder
        Where clients will look for the socket.

    Raises
    ------
    CollectorProblem
        ``internal``, saying what is wrong.
    """
    if os.geteuid() != 0:
        raise _refuse("it is not run by root")
    if not sys.flags.isolated:
        raise _refuse("Python was not started with -I")
    for path in (*code, socket_folder):
        resolved = path.resolve(strict=True)
        inside = () if path is socket_folder else resolved.rglob("*")
        for part in (*resolved.parents, resolved, *inside):
            if not _is_safe(part):
                raise _refuse(f"{part} can be changed by others than root")


def drop_untrusted_packages() -> None:
    """Let root import nothing from a folder that others can change.

    ``python3 -I`` still looks into the distribution's folder for local packages, and on some
    systems a group may write there.
    """
    if os.geteuid() == 0:
        folders = {
            folder for folder in site.getsitepackages() if not _is_out_of_reach(Path(folder))
        }
        sys.path[:] = [entry for entry in sys.path if entry not in folders]


def _is_out_of_reach(folder: Path) -> bool:
    resolved = folder.resolve()
    return all(_is_safe(part) for part in (*resolved.parents, resolved) if part.exists())


def _is_safe(path: Path) -> bool:
    status = path.lstat()
    if status.st_uid != 0 or stat.S_ISLNK(status.st_mode):
        return False
    sticky_folder = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(sticky_folder) or not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _refuse(reason: str) -> CollectorProblem:
    return CollectorProblem(
        "internal",
        f"the collector does not serve, {reason}: as root, run `pystack-nb collector install` "
        "and start the installed one.",
    )
