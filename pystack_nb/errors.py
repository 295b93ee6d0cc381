"""Every error that pystack_nb raises on purpose.

One class stands for each thing that a user can do about it, and each message ends with
that thing.  All derive from `PystackError`, and from the builtin exception that says the
same where there is one.  Nothing but the standard library is imported here, so that every
other module can import this one.

* PystackError
    * CollectorUnavailableError, BccMissingError, BpfNotPermittedError
    * NoSuchProcessError, NotPythonError, UnsupportedPythonError, AccessDeniedError
    * ProbeError
    * RateError, OptionError, ExportPathError, ProfilerStateError
    * RecordingFormatError, SpoolError
    * RecordingEndedError: TargetExitedError, SpoolFullError
    * TorchMissingError, CampaignError, FaultDetectedError
    * FaultError: FaultLocationError
    * ProtocolError, CollectorError
"""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from pystack_nb.recording import Recording


class PystackError(Exception):
    """The base of every error that pystack_nb raises on purpose."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for its own rendering: for these errors the message
        # is the whole story, and frames of this package would only bury it.
        return [f"{type(self).__name__}: {self}"]


class CollectorUnavailableError(PystackError):
    """No collector can be started and none is running."""


class BccMissingError(PystackError):
    """The distribution's Python has no BCC."""


class BpfNotPermittedError(PystackError, PermissionError):
    """The kernel refuses the collector's BPF program or its perf events."""


class NoSuchProcessError(PystackError, ProcessLookupError):
    """There is no process of this pid."""


class NotPythonError(PystackError):
    """The process runs no Python interpreter."""


class UnsupportedPythonError(PystackError):
    """The process runs a Python whose frames can't be walked yet."""


class AccessDeniedError(PystackError, PermissionError):
    """The process may not be traced by this user."""


class ProbeError(PystackError):
    """Calls can't be recorded in this interpreter."""


class RateError(PystackError, ValueError):
    """The sampling rate is not one that the kernel allows."""


class OptionError(PystackError, ValueError):
    """An option is unknown or has a value that makes no sense."""


class ExportPathError(PystackError, OSError):
    """A file or folder can't be written, or its suffix names no known format."""


class RecordingFormatError(PystackError, ValueError):
    """These bytes or files are not a recording, or only a part of one."""


class SpoolError(PystackError, OSError):
    """The spool file of a recording can't be made, passed on or read."""


class RecordingEndedError(PystackError):
    """The recording ended earlier than it was asked to.

    Attributes
    ----------
    recording : Recording or None
        What was recorded up to then.
    """

    def __init__(self, message: str, recording: Recording | None = None) -> None:
        super().__init__(message)
        self.recording = recording


class TargetExitedError(RecordingEndedError):
    """The process ended while it was being recorded."""


class SpoolFullError(RecordingEndedError, OSError):
    """The disk under the spool file is full."""


class ProfilerStateError(PystackError, RuntimeError):
    """The profiler is asked for something that its state does not allow."""


class TorchMissingError(PystackError, ImportError):
    """Faults are asked for, and PyTorch is not installed."""


class FaultError(PystackError, ValueError):
    """There is no such fault: its site, its error model or its moment can't be."""


class FaultLocationError(FaultError, AssertionError):
    """A declaration in PyTorchFI's manner names a place that isn't there."""


class FaultDetectedError(PystackError, RuntimeError):
    """A protection of the model has found a fault."""


class CampaignError(PystackError, ValueError):
    """A campaign can't be planned, or its results' folder is not its own."""


class ProtocolError(PystackError):
    """The collector and the notebook do not understand each other."""


class CollectorError(PystackError):
    """The collector failed in a way that has no class of its own."""


_BY_CODE: dict[str, type[PystackError]] = {
    "access-denied": AccessDeniedError,
    "no-such-process": NoSuchProcessError,
    "not-python": NotPythonError,
    "unsupported-python": UnsupportedPythonError,
    "bad-rate": RateError,
    "bad-descriptor": SpoolError,
    "bpf-not-permitted": BpfNotPermittedError,
    "bcc-missing": BccMissingError,
    "spool-full": SpoolFullError,
    "target-exited": TargetExitedError,
    "protocol": ProtocolError,
    "busy": CollectorUnavailableError,
}


def from_collector(code: str, message: str) -> PystackError:
    """Make the exception that stands for an error message of the collector.

    Parameters
    ----------
    code : str
        The collector's error code, such as ``"access-denied"``.
    message : str
        Its text, which already says what to do.

    Returns
    -------
    PystackError
        Of the class that belongs to the code; `CollectorError` for any other code.
    """
    return _BY_CODE.get(code, CollectorError)(message)
