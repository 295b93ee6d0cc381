"""Every Python call of this process, by a frame evaluator in a C extension.

Nothing but the standard library is imported here: a recorded cell may import NumPy itself.
"""

from __future__ import annotations

import fcntl
import glob
import importlib
import os
import struct
import sys

from pathlib import Path
from typing import TYPE_CHECKING

from pystack_nb.errors import ProbeError, ProfilerStateError, PystackError
from pystack_nb.own_file import OwnFile
from pystack_nb.probe.call_options import MAX_EVENTS, CallOptions
from pystack_nb.probe.check import check, sees_init
from pystack_nb.probe.cost import Cost, measure
from pystack_nb.probe.supported import why_not
from pystack_nb.spool import block, unusable


if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "MAX_EVENTS",
    "SOURCES",
    "CallOptions",
    "Probe",
    "counter_is_constant",
    "load",
    "rest",
]

SOURCES = ("ebpf", "inprocess")
_HIDDEN = glob.escape(str(Path(__file__).parent.parent)) + "/*"


class Probe:
    """One recording of the calls of this process.

    Parameters
    ----------
    options
        What is recorded.
    path
        Of a new file that what is stored is kept in, so that it survives this process without a
        collector; None: memory, which a collector can share.

    Attributes
    ----------
    fd : int
        The memory that is shared with the collector, as ``bpf/pystack_time.h`` lays it out.
    site : int
        Address at which the collector's uprobe belongs.

    Raises
    ------
    ProbeError
        When there is no probe for this interpreter.
    ProfilerStateError
        When the probe can't be tried now, since something else in this process is in its place.
    SpoolError
        When there is no room for what is stored.
    """

    def __init__(self, options: CallOptions, path: Path | None = None) -> None:
        self._started = False
        self._module, self._init = load()
        self._options = options
        self._cost = Cost()
        if options.budget:
            self._cost = _measured_cost(self._module, c_calls=options.c_calls)
        self.site: int = self._module.site()
        self._place = str(path.parent) if path else "memory"
        try:
            self._file = OwnFile(_new_file(path))
        except OSError as error:
            raise unusable(self._place, error) from None
        try:
            os.ftruncate(self.fd, self._module.SHARED_SIZE)
            if not path:
                seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
                fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, seals)
            self._module.prepare(self.fd, counter_is_constant())
        except OSError as error:
            self._file.close()
            raise unusable(self._place, error) from None
        except BaseException:
            self._file.close()
            raise

    @property
    def fd(self) -> int:
        """The memory that is shared with the collector; -1 once it is closed."""
        return self._file.fd

    def start(self, spool: int = -1) -> None:
        """Record from this call's return on.

        Parameters
        ----------
        spool
            -1: full batches are fetched by the collector. Else they are written to this file.

        Raises
        ------
        ProfilerStateError
            When something else in this process records calls, or no monitoring id is free.
        SpoolError
            When there is no room for what is stored.
        """
        options = self._options
        try:
            self._module.start(
                self.fd,
                spool,
                init=self._init,
                c_calls=options.c_calls,
                max_events=options.max_events,
                depth=options.depth or 0,
                min_us=options.min_us,
                budget=options.budget or 0.0,
                costs=self._cost,
                include=options.include,
                exclude=options.exclude,
                hidden=(_HIDDEN,),
                outside=options.outside,
                uncounted=options.uncounted,
                serving=options.serving,
                library=options.library,
                foreign=options.foreign,
                only_in=options.only_in,
            )
        except (RuntimeError, ValueError) as error:
            raise _in_the_way(error) from None
        except OSError as error:
            raise unusable(self._place, error) from None
        self._started = True

    def stop(self) -> None:
        """Record no more; what is left in the shared memory stays until `close`."""
        if self._started:  # else the recording is another one's
            self._module.stop()

    def close(self) -> None:
        """Let go of the shared memory; the in-process source writes what was left there.

        Raises
        ------
        OSError
            When the file took no more.
        """
        self._file.close()
        if self._started:
            self._started = False
            self._module.stop()
            self._module.close()


_known: dict[str, tuple[ModuleType, bool]] = {}


def load() -> tuple[ModuleType, bool]:
    """Import the C extension, and try it on every kind of call.

    Returns
    -------
    module
    init : bool
        Whether ``__init__`` is to be watched by `sys.monitoring`, too. As long as another tool
        keeps that from being known, it is, and the next time it is tried again.

    Raises
    ------
    ProbeError
        When it was not built for this interpreter, or does not work in it.
    ProfilerStateError
        When something else in this process is in its place.
    SpoolError
        When there is no memory for what is stored.
    """
    if "probe" in _known:
        return _known["probe"]
    module = _import()
    try:
        module.see_getitem()
        sees = sees_init(module)
        init = not sees
        check(module, init=init)
    except (RuntimeError, ValueError) as error:
        raise _in_the_way(error) from None
    except OSError as error:
        raise unusable("memory", error) from None
    if sees is not None:
        _known["probe"] = module, init
    return module, init


def _import() -> ModuleType:
    try:
        return importlib.import_module("pystack_nb.probe._probe")
    except ImportError as error:
        reason = why_not()
        if reason:
            raise ProbeError(f"{reason}: use --mode sample.") from None
        raise ProbeError(
            f"the probe was not built for this interpreter ({error}): run `make setup`, or "
            "install pystack-nb with this Python's pip; or use --mode sample."
        ) from None


_costs: dict[bool, Cost] = {}  # measured once, without C functions and with them


def _measured_cost(module: ModuleType, *, c_calls: bool) -> Cost:
    if c_calls not in _costs:
        if module.is_recording():
            return Cost()
        _costs[c_calls] = measure(module, c_calls=c_calls)
    return _costs[c_calls]


def _new_file(path: Path | None) -> int:
    if path:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return os.memfd_create("pystack_nb-calls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _in_the_way(error: Exception) -> ProfilerStateError:
    return ProfilerStateError(f"calls can't be recorded now ({error}): stop the other tool first.")


def counter_is_constant() -> bool:
    """Whether the kernel says that the processor's counter runs evenly, always and everywhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        trusted = source.read_text().strip() == "tsc"
    except OSError:
        return False
    flags = next((x for x in text.splitlines() if x.startswith("flags")), "").split()
    return trusted and {"constant_tsc", "nonstop_tsc"} <= {*flags}


def _after_fork() -> None:
    module = sys.modules.get("pystack_nb.probe._probe")
    if module:
        module.forget()


# The memory is let go by the extension itself, whoever forks; the evaluator needs the interpreter.
os.register_at_fork(after_in_child=_after_fork)


def rest(path: Path, pid: int) -> bytes:
    """Give what a killed process had stored and not written, as a block of its spool file.

    Parameters
    ----------
    path
        Of the file that its `Probe` was given.
    pid
        Its own.

    Returns
    -------
    bytes
        Empty when it had not begun.
    """
    # What the collector reads with, which a recorded process need not load.
    from pystack_nb.collector.calls import SharedCalls  # noqa: PLC0415
    from pystack_nb.collector.protocol import CollectorProblem  # noqa: PLC0415

    with path.open("rb") as file:
        try:
            shared = SharedCalls(file.fileno(), None)
        except (CollectorProblem, struct.error):
            return b""
        return block(*shared.clock_records(_pair_now), *shared.records(pid))


def _pair_now() -> tuple[int, int, int] | None:
    try:
        pair: tuple[int, int, int] = load()[0].pair()
    except PystackError:
        return None  # the times are a little less exact
    return pair
