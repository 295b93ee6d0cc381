"""The profiler: switch the probes on, switch them off, and get a Recording.

``python -m pystack_nb.core IN OUT`` converts a spool file to what the suffix of OUT says.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
import time
import warnings

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pystack_nb import inprocess, marks, thread_names
from pystack_nb.call_facts import tell_unwanted
from pystack_nb.collector.client import connect
from pystack_nb.conversion import run
from pystack_nb.errors import (
    BccMissingError,
    BpfNotPermittedError,
    CollectorUnavailableError,
    OptionError,
    ProfilerStateError,
    RecordingEndedError,
    RecordingFormatError,
    from_collector,
)
from pystack_nb.probe import CallOptions, Probe, load, rest
from pystack_nb.quiet import quietly
from pystack_nb.rate import DEFAULT_HZ, checked_rate
from pystack_nb.spool import CALLS_SUFFIX, Spool, leftovers, read, remove, whole_blocks


if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from pystack_nb.collector.client import CollectorClient
    from pystack_nb.event_file import EventFile
    from pystack_nb.recording import Recording

MODES = ("sample", "calls")

_kept: Recording | None = None


class PyStackProfiler:
    """Record what a process does, with probes in the kernel.

    Parameters
    ----------
    mode
        Ways of looking, separated by commas: ``"sample"``, where time goes; ``"calls"``, every
        Python call, of this process alone.
    hz
        Samples per second of a thread's CPU time. The default is a prime, so that it can't run
        in step with a loop.
    source
        ``"ebpf"``, or ``"inprocess"`` where eBPF is not to be had: calls alone, written by this
        process itself, without what only the kernel knows.
    calls
        What is recorded of the calls; None: all of them.

    Attributes
    ----------
    recording : Recording or None
        The newest finished recording, also when `stop_profiling` raised.

    Raises
    ------
    OptionError
        For an unknown mode or source, or for both in a combination that can't be.
    RateError
        For a rate that is no positive whole number.

    Examples
    --------
    >>> with PyStackProfiler() as profiler:  # doctest: +SKIP
    ...     work()
    >>> profiler.recording.functions()  # doctest: +SKIP
    """

    @quietly
    def __init__(
        self,
        mode: str = "sample",
        hz: int = DEFAULT_HZ,
        *,
        source: str = "ebpf",
        calls: CallOptions | None = None,
    ) -> None:
        self.recording: Recording | None = None
        self._modes = _checked_modes(mode)
        self._source = inprocess.checked_source(source, self._modes)
        self._calls = calls or CallOptions()
        self._probe: Probe | None = None
        self._hz = checked_rate(hz)
        self._client: CollectorClient | None = None
        self._spool: Spool | None = None
        self._events: EventFile | None = None
        self._may_exit = False
        self._owner = os.getpid()
        self._threads: dict[str, str] | None = None
        self._ended_before: dict[str, str] = {}

    @quietly
    def start_profiling(self, pid: int | None = None, *, wait_python: bool = False) -> None:
        """Switch the probes on.

        Parameters
        ----------
        pid
            Whom to record; None: this process.
        wait_python
            The process has just been started: its interpreter may come a little later, and
            that it ends during the recording is no error.

        Raises
        ------
        PystackError
            Of the class that says what is missing; then nothing is recorded.
        """
        if self._spool is not None:
            raise ProfilerStateError("this profiler is recording: call stop_profiling() first.")
        if pid is not None and (isinstance(pid, bool) or not isinstance(pid, int)):
            raise OptionError(
                f"{pid!r} is no process's number: give a whole number, such as {os.getpid()}."
            )
        own = pid in {None, os.getpid()}
        if "calls" in self._modes:
            _check_calls(pid, own=own)
        undo = contextlib.ExitStack()
        try:
            probe, calls_spool = self._begin(undo, pid, own=own, wait_python=wait_python)
            if probe:
                # The last thing done, so that nothing of this is in the recording.
                probe.start(calls_spool)
        except BaseException:
            undo.close()
            raise

    def _begin(
        self, undo: contextlib.ExitStack, pid: int | None, *, own: bool, wait_python: bool
    ) -> tuple[Probe | None, int]:
        """Begin all but calls; the probe that has them, and the spool for its `start`."""
        spool = Spool.create(self._description(pid) | {"whole_program": wait_python})
        undo.callback(spool.remove)
        probe = None
        if "calls" in self._modes:
            path = spool.calls_path if self._source == "inprocess" else None
            probe = Probe(self._calls, path)
            undo.callback(probe.close)
        client = self._connect(spool, None if own else pid, probe, wait_python=wait_python)
        if client:
            undo.callback(client.stop)
        self._may_exit = wait_python
        self._owner = os.getpid()
        self._threads = thread_names.living() if own else None
        self._ended_before = thread_names.ended()
        if own:
            self._events = marks.begin(spool.marks_path)
            undo.callback(self._end_events)
        undo.callback(self._forget)
        self._client, self._spool, self._probe = client, spool, probe
        return probe, -1 if client else spool.fd

    def _forget(self) -> None:
        self._client = self._spool = self._probe = None

    @quietly
    def stop_profiling(self) -> Recording:
        """Switch the probes off and return what was recorded.

        Returns
        -------
        Recording
            Also kept as `recording`, and as `pystack_nb.last()`.

        Raises
        ------
        ProfilerStateError
            If nothing is being recorded.
        TargetExitedError, SpoolFullError, AccessDeniedError, CollectorError
            When the recording ended earlier than asked. What was recorded until then is in
            `recording`.
        """
        if self._probe and self._owner == os.getpid():
            self._probe.stop()  # first, so that nothing of this is in the recording
        spool = self._recording_now()
        self._end_events()
        client, probe = self._client, self._probe
        self._forget()
        try:
            result = client.stop() if client else inprocess.end(spool, probe)
        except BaseException as error:
            # It has gone, or this was interrupted: what it had written is there.
            self._finish(spool, None).info["error"] = str(error)
            raise
        finally:
            if probe:
                probe.close()
        recording = self._finish(spool, result)
        self._raise_for(result)
        return recording

    @quietly
    def get_stack_traces(self) -> list[dict[str, Any]]:
        """List the samples so far, also while recording.

        Returns
        -------
        list of dict
            One per sample: ``timestamp`` (ns, CLOCK_MONOTONIC), ``pid``, ``tid``,
            ``function``, ``filename``, ``line_number`` of the innermost Python frame, and
            ``stack``, outermost first. Empty before the first recording.
        """
        if self._spool is None or self._owner != os.getpid():
            return self.recording.to_traces() if self.recording else []
        spool = self._recording_now()
        if self._client:
            self._client.flush()
        return self.parse_stack_data(spool.read()).to_traces()

    @staticmethod
    @quietly
    def parse_stack_data(data: bytes | bytearray) -> Recording:
        """Turn the bytes of a spool file into a Recording.

        Parameters
        ----------
        data
            As ``bpf/pystack_time.h`` describes them; a file that was cut short gives what is
            whole in it.

        Raises
        ------
        RecordingFormatError
            If this is no spool file.
        """
        # Here, since starting must not wait for pandas.
        from pystack_nb.decode import decode  # noqa: PLC0415
        from pystack_nb.recording import Recording  # noqa: PLC0415

        return Recording(*decode(data))

    def __enter__(self) -> Self:
        self.start_profiling()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._spool is not None:
            self.stop_profiling()

    def _description(self, pid: int | None) -> dict[str, Any]:
        return {
            "client_pid": os.getpid(),
            "target_pid": os.getpid() if pid is None else pid,
            "hz": self._hz,
            "mode": ",".join(self._modes),
            "source": self._source,
            "versions": {
                "pystack_nb": _version(),
                "python": platform.python_version(),
                "kernel": platform.release(),
            },
            # Read back to back, so that one clock can be told from another.
            "clock_snapshot": {
                "monotonic_ns": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
                "realtime_ns": time.clock_gettime_ns(time.CLOCK_REALTIME),
            },
        }

    def _connect(
        self, spool: Spool, pid: int | None, probe: Probe | None, *, wait_python: bool
    ) -> CollectorClient | None:
        if self._source == "inprocess":
            inprocess.begin(spool)
            return None
        try:
            client = connect()
            client.start(
                spool.fd,
                pid,
                self._hz,
                wait_python=wait_python,
                sample="sample" in self._modes,
                calls_fd=probe.fd if probe else None,
                site=probe.site if probe else None,
            )
        except (CollectorUnavailableError, BpfNotPermittedError, BccMissingError) as error:
            if not probe:
                raise
            raise type(error)(f"{error} {inprocess.INSTEAD}") from None
        return client

    def _recording_now(self) -> Spool:
        if self._spool is None:
            raise ProfilerStateError("nothing is being recorded: call start_profiling() first.")
        if self._owner != os.getpid():
            raise ProfilerStateError(
                "the recording belongs to the parent process: stop it there, or start one here."
            )
        return self._spool

    def _end_events(self) -> None:
        events, self._events = self._events, None
        if events:
            marks.end(events)

    def _finish(self, spool: Spool, result: dict[str, Any] | None) -> Recording:
        try:
            recording = self.parse_stack_data(spool.read())
        except BaseException:
            spool.close()  # nothing is lost: recover() finds it once this process has ended
            raise
        if result and result["reason"] == "spool-full":
            _tell_losses(recording, result)
        spool.remove()
        if self._threads is not None:
            ended = dict(thread_names.ended().items() - self._ended_before.items())
            recording.info["thread_names"] |= self._threads | ended | thread_names.living()
        if "calls" in self._modes:
            tell_unwanted(recording, self._calls)
        self.recording = recording
        remember(recording)
        return recording

    def _raise_for(self, result: dict[str, Any]) -> None:
        reason, message = result["reason"], result["message"]
        if reason == "stopped" or (reason == "target-exited" and self._may_exit):
            return
        error = from_collector(reason, message)
        if isinstance(error, RecordingEndedError):
            error.recording = self.recording
        raise error


@quietly
def recover(*, keep: bool = True) -> list[Recording]:
    """Open the recordings of this user's processes that were killed while recording.

    A file that can't be read is left where it is, with a warning that names it.

    Parameters
    ----------
    keep
        Whether the files stay; False removes each one that was opened.

    Returns
    -------
    list of Recording
        Oldest first.  ``info`` has the file as ``spool``, and, as the ``repr`` tells, who wrote
        it, ``spool_pid``, and until when, ``spool_written_ns`` (since 1970).

    Raises
    ------
    SpoolError
        If the folder of spool files can't be used.
    """
    recordings = []
    for path in leftovers():
        try:
            written_ns = path.stat().st_mtime_ns
            recording = PyStackProfiler.parse_stack_data(_with_rest(path))
        except FileNotFoundError:
            continue  # someone else has removed it since
        except (RecordingFormatError, OSError) as error:
            text = f"{path} is left out ({error}): remove it if you do not need it."
            warnings.warn(text, stacklevel=3)  # whoever called what makes this quiet
            continue
        pid = int(path.name.partition("-")[0])
        recording.info |= {"spool": str(path), "spool_pid": pid, "spool_written_ns": written_ns}
        recordings.append(recording)
        if not keep:
            remove(path)
    return recordings


def _with_rest(path: Path) -> bytes | bytearray:
    """Read a spool file, and the calls that an in-process source had not written to it."""
    data, calls = read(path), path.with_suffix(CALLS_SUFFIX)
    if not calls.exists():
        return data
    return whole_blocks(data) + rest(calls, int(path.name.partition("-")[0]))


def last() -> Recording | None:
    """Return the newest Recording of this process, or None."""
    return _kept


def remember(recording: Recording) -> None:
    """Make `recording` the one that `last` returns."""
    global _kept  # noqa: PLW0603 - one for each process, as the magic's users expect
    _kept = recording


@functools.cache
def _version() -> str:
    return importlib.metadata.version("pystack-nb")


def _checked_modes(mode: str) -> tuple[str, ...]:
    names = [name.strip() for name in mode.split(",")]
    for name in names:
        if name not in MODES:
            raise OptionError(f"there is no mode {name!r}: choose from {', '.join(MODES)}.")
    return tuple(dict.fromkeys(names))


def _check_calls(pid: int | None, *, own: bool) -> None:
    if not own:
        raise OptionError(
            f"calls of process {pid} can't be recorded from outside: use mode='sample' for it, "
            "or a PyStackProfiler inside it."
        )
    module, _ = load()
    if module.is_recording():
        raise ProfilerStateError(
            "this process's calls are being recorded already, by the cell that this stands in or "
            "by another profiler: leave this one out, or give it --mode sample (mode='sample')."
        )


def _tell_losses(recording: Recording, result: dict[str, Any]) -> None:
    # The file had no room for the collector's own counts, which its answer has, too.
    found: dict[str, int] = recording.info["lost_by_cause"]
    told = dict(result["lost_by_cause"])
    calls = told.pop("calls-not-copied", 0) + told.pop("calls-disk-full", 0)
    found |= told
    if calls:  # the reader may have missed some of the same batches
        found["calls-lost"] = max(found.get("calls-lost", 0), calls)
    recording.info["lost"] = sum(recording.info["lost_by_cause"].values())
    recording.info["error"] = result["message"]


def main(arguments: list[str] | None = None) -> int:
    """Convert the spool file IN to OUT, in the format of its suffix; return the exit status."""
    return run("pystack_nb.core", _convert, arguments)


def _convert(source: str, out: str) -> None:
    try:
        data = read(Path(source))
    except OSError as error:
        raise RecordingFormatError(
            f"can't read {source}: {error.strerror}; give a spool file"
        ) from None
    PyStackProfiler.parse_stack_data(data).export(out)


if __name__ == "__main__":
    sys.exit(main())
