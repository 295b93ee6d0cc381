"""Who may see whom: the rule of ``ptrace_may_access``, asked of the kernel itself."""

from __future__ import annotations

import contextlib
import os

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .linux import CAP_SYS_PTRACE, act_as
from .process import Status, gone
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from .peer import Peer
    from .process import Process


@dataclass(frozen=True)
class Rights:
    """The target's rights when its client was allowed to see it.

    The BPF program drops every sample taken with other ones.
    """

    ids: tuple[int, int, int, int, int, int]
    permitted: int


class Access(NamedTuple):
    """That a client may see a target.

    Attributes
    ----------
    rights
        What must not change while recording; None for a client that may see everything.
    maps
        The target's memory map, opened with the client's rights. It stays that of the program
        which was checked, and is empty once another one is executed. The caller closes it.
    """

    rights: Rights | None
    maps: int


def check_access(peer: Peer, target: Process) -> Access:
    """Refuse a target that the client could not read with its own rights.

    Raises
    ------
    CollectorProblem
        ``access-denied``, or ``no-such-process`` when the target has ended.
    """
    with contextlib.ExitStack() as stack:
        try:
            maps, rights = _open_maps(peer, target), None
            if maps is not None:
                stack.callback(os.close, maps)
            if not peer.privileged:
                status = target.status()
                rights = Rights(status.ids, status.permitted)
        except OSError:
            raise gone(target.pid) from None
        if not target.alive():
            raise gone(target.pid)
        if maps is None or (rights and rights.ids != (peer.uid, peer.gid) * 3):
            raise CollectorProblem(
                "access-denied",
                f"process {target.pid} belongs to another user, or has rights that its user has "
                "not: profile it as root, or ask its owner to.",
            )
        stack.pop_all()
        return Access(rights, maps)


def _open_maps(peer: Peer, target: Process) -> int | None:
    """Open the target's memory map, or None if the client could not."""
    if peer.privileged:
        return os.open(target.live_thread() / "maps", os.O_RDONLY | os.O_CLOEXEC)
    return _open_maps_as(peer, target) if _is_kin(peer, target) else None


def _is_kin(peer: Peer, target: Process) -> bool:
    """Whether owner and namespace allow it: a sandbox must not look out of itself."""
    if not peer.at_home and peer.process.namespace("user") != target.namespace("user"):
        return False
    return target.owner() == peer.uid


def _open_maps_as(peer: Peer, target: Process) -> int | None:
    """Let a thread with the client's identity try to open the target's memory map.

    Not a process with the client's identity: the client could stop it, and it would hold
    everything that this process has open. Supplementary groups give no right to read a process.
    """
    capabilities = peer.capabilities & ~CAP_SYS_PTRACE & _our_capabilities()
    maps = target.live_thread() / "maps"

    def attempt() -> int | None:
        act_as(peer.uid, peer.gid, capabilities)
        try:
            return os.open(maps, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            return None

    with ThreadPoolExecutor(1) as threads:
        return threads.submit(attempt).result()


def _our_capabilities() -> int:
    return Status.read(os.getpid()).permitted
