"""Recording calls without eBPF: the process itself writes what a collector would.

It is asked for by name, as the source ``inprocess``, and knows nothing of the kernel's.
"""

from __future__ import annotations

import errno
import time

from typing import TYPE_CHECKING, Any

from pystack_nb.errors import OptionError, SpoolError
from pystack_nb.probe import SOURCES


if TYPE_CHECKING:
    from pystack_nb.probe import Probe
    from pystack_nb.spool import Spool

INSTEAD = (
    "Or record calls alone without eBPF: --mode calls --source inprocess, "
    "PyStackProfiler(mode='calls', source='inprocess')."
)


def checked_source(source: str, modes: tuple[str, ...]) -> str:
    """Return a source that these modes can have.

    Raises
    ------
    OptionError
        For another one.
    """
    if source not in SOURCES:
        raise OptionError(f"there is no source {source!r}: choose from {', '.join(SOURCES)}.")
    if source == "inprocess" and modes != ("calls",):
        raise OptionError("samples need eBPF: with source inprocess, give mode calls alone.")
    return source


def begin(spool: Spool) -> None:
    """Write that the recording begins."""
    spool.append(_meta("start", start_ns=time.monotonic_ns()))


def end(spool: Spool, probe: Probe | None) -> dict[str, Any]:
    """Write what is left, as a collector does; its answer."""
    result: dict[str, Any] = {"reason": "stopped", "message": None, "lost_by_cause": {}}
    try:
        if probe:
            probe.close()
        spool.append(_meta("end", end_ns=time.monotonic_ns(), **result))
    except (OSError, SpoolError) as error:
        way = "Make room, and try again."
        if error.errno == errno.EBADF:
            way = "The recorded program has closed and removed the recording's file: keep both."
        result |= {"reason": "spool-full", "message": f"{error} {way}"}
    return result


def _meta(event: str, **facts: Any) -> dict[str, Any]:
    return {"role": "inprocess", "event": event, **facts}
