"""The uprobes of one client's calls mode: set once, and kept until the client leaves."""

from __future__ import annotations

import ctypes
import os

from typing import TYPE_CHECKING, Any

from .program import load_functions
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from .site import Site

_PROGRAM = b"pystack_calls"
_ENTRY = 0  # BPF_PROBE_ENTRY of BCC's libbpf.h
_MAX_SITES = 8  # of one client: one for each interpreter's build of the probe is plenty


class Uprobes:
    """Where `pystack_calls` is attached.

    Taking a uprobe away makes the kernel wait for a tenth of a second.  One that stays costs
    nothing, for what is not recorded does not reach the site.

    Parameters
    ----------
    bcc
        The module.
    bpf
        The compiled program.
    """

    def __init__(self, bcc: Any, bpf: Any) -> None:
        self._bcc = bcc
        self._bpf = bpf
        self._events: dict[tuple[int, int, int], int] = {}

    def attach(self, site: Site, pid: int) -> None:
        """Attach to a site in one process, unless that was done before.

        Raises
        ------
        CollectorProblem
            When the kernel refuses it, or this client has had too many sites.
        """
        if site.key in self._events:
            return
        if len(self._events) == _MAX_SITES:
            raise CollectorProblem(
                "busy", f"{_MAX_SITES} probes are attached already: restart the notebook's kernel."
            )
        # Only now: whoever records no calls does not pay for its way through the verifier.
        function = load_functions(self._bpf, (_PROGRAM,), self._bcc.BPF.KPROBE)[_PROGRAM]
        # Not BPF.attach_uprobe(), which opens a path by its name and keeps one probe a name.
        event = self._bcc.lib.bpf_attach_uprobe(
            function.fd, _ENTRY, _PROGRAM, b"/proc/self/fd/%d" % site.fd, site.offset, pid
        )
        if event < 0:
            raise CollectorProblem(
                "bpf-not-permitted",
                f"the kernel refused the uprobe ({os.strerror(ctypes.get_errno())}): give the "
                "collector CAP_PERFMON and CAP_BPF, or run it as root.",
            )
        self._events[site.key] = event

    def close(self) -> None:
        """Detach from all sites."""
        for event in self._events.values():
            self._bcc.lib.bpf_close_perf_event_fd(event)
        self._events.clear()
