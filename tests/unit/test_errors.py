"""The exception tree."""

from __future__ import annotations

import pickle

import pytest

from pystack_nb import errors


CODES = {
    "access-denied": errors.AccessDeniedError,
    "no-such-process": errors.NoSuchProcessError,
    "not-python": errors.NotPythonError,
    "unsupported-python": errors.UnsupportedPythonError,
    "bad-rate": errors.RateError,
    "bad-descriptor": errors.SpoolError,
    "bpf-not-permitted": errors.BpfNotPermittedError,
    "bcc-missing": errors.BccMissingError,
    "spool-full": errors.SpoolFullError,
    "target-exited": errors.TargetExitedError,
    "protocol": errors.ProtocolError,
    "busy": errors.CollectorUnavailableError,
    "internal": errors.CollectorError,
    "a code of a later collector": errors.CollectorError,
}


@pytest.mark.parametrize(("code", "expected"), CODES.items())
def test_each_collector_code_becomes_its_own_class(code, expected):
    error = errors.from_collector(code, "what failed; do this")
    assert type(error) is expected
    assert str(error) == "what failed; do this"


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.NoSuchProcessError, ProcessLookupError),
        (errors.AccessDeniedError, PermissionError),
        (errors.RateError, ValueError),
        (errors.OptionError, ValueError),
        (errors.ExportPathError, OSError),
        (errors.RecordingFormatError, ValueError),
        (errors.SpoolError, OSError),
        (errors.SpoolFullError, OSError),
        (errors.ProfilerStateError, RuntimeError),
    ],
)
def test_an_error_is_also_the_builtin_that_says_the_same(error, builtin):
    with pytest.raises(builtin):
        raise error("message")


def test_every_error_is_a_pystack_error_with_a_docstring():
    classes = [x for x in vars(errors).values() if isinstance(x, type)]
    assert all(issubclass(x, errors.PystackError) and x.__doc__ for x in classes)


def test_ipython_is_given_the_message_without_frames():
    error = errors.RateError("too fast; ask for less")
    assert error._render_traceback_() == ["RateError: too fast; ask for less"]


def test_a_full_disk_keeps_what_was_recorded():
    error = errors.SpoolFullError("disk full; make room", recording="the recording")
    assert error.recording == "the recording"
    assert str(error) == "disk full; make room"


def test_errors_survive_pickling_between_processes():
    error = pickle.loads(pickle.dumps(errors.SpoolFullError("disk full; make room")))
    assert str(error) == "disk full; make room"
