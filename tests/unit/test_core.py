"""The profiler's own decisions, without probes: what becomes of files and of odd answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from pathlib import Path

import pytest
import spools

import pystack_nb

from pystack_nb import PyStackProfiler, core
from pystack_nb.errors import CollectorError, OptionError, ProfilerStateError
from pystack_nb.spool import SUFFIX, spool_folder


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def leave(number, data):
    """A spool file of a process that has ended: this one's pid was another's before."""
    path = spool_folder() / f"{os.getpid()}-1-{number}{SUFFIX}"
    path.write_bytes(data)
    return path


WHOLE = spools.spool(spools.client(target_pid=7), spools.sample(5), spools.end(reason="stopped"))
OTHER_VERSION = WHOLE[:8] + (99).to_bytes(4, "little") + WHOLE[12:]


@pytest.mark.parametrize("bad", [b"", b"something else", WHOLE[:12], OTHER_VERSION])
def test_a_file_that_can_t_be_read_hides_no_other_and_is_named(runtime, bad):
    leave(0, WHOLE)
    damaged = leave(1, bad)
    leave(2, WHOLE)
    with pytest.warns(UserWarning, match=f"{damaged} is left out .*: remove it") as warned:
        found = pystack_nb.recover()
    assert [x.filename for x in warned] == [__file__]
    assert [len(x.samples) for x in found] == [1, 1]
    with pytest.warns(UserWarning, match="left out"):
        pystack_nb.recover(keep=False)
    assert list(runtime.rglob(f"*{SUFFIX}")) == [damaged]


class PlayedClient:
    """A collector's client that records nothing, and whose `stop` fails."""

    def __init__(self, error):
        self._error = error

    def start(self, *_, **__):
        return {}

    def stop(self):
        raise self._error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CollectorError("gone: try again.")])
def test_what_was_written_is_kept_when_stopping_is_broken_off(runtime, monkeypatch, error):
    monkeypatch.setattr(core, "connect", lambda: PlayedClient(error))
    profiler = PyStackProfiler()
    profiler.start_profiling()
    with pytest.raises(type(error)):
        profiler.stop_profiling()
    assert profiler.recording.info["target_pid"] == os.getpid()
    assert not profiler.recording.info["complete"]
    assert list(runtime.rglob(f"*{SUFFIX}")) == []


@pytest.mark.parametrize("pid", ["12", 1.5, True])
def test_a_pid_that_is_no_whole_number_is_refused(pid):
    with pytest.raises(OptionError, match="no process's number"):
        PyStackProfiler().start_profiling(pid=pid)


@pytest.mark.parametrize("pid", [1, None])
def test_what_a_mode_or_source_cannot_do_is_said_with_what_can(pid):
    if pid is None:
        with pytest.raises(OptionError, match="give mode calls alone"):
            PyStackProfiler(mode="sample,calls", source="inprocess")
    else:
        with pytest.raises(OptionError, match="use mode='sample' for it"):
            PyStackProfiler(mode="calls").start_profiling(pid=pid)


SECOND = """
from pystack_nb import PyStackProfiler, core
from pystack_nb.errors import ProfilerStateError

def refuse():
    print("connected")
core.connect = refuse
with PyStackProfiler(mode="calls", source="inprocess"):
    second = PyStackProfiler(mode="sample,calls")
    try:
        second.start_profiling()
    except ProfilerStateError as error:
        print(error)
"""


def test_a_second_recording_of_calls_is_refused_before_a_collector_is_sought(runtime):
    done = subprocess.run(
        [sys.executable, "-c", SECOND], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("this process's calls are being recorded already")
    assert "give it --mode sample" in done.stdout
    assert list(runtime.rglob(f"*{SUFFIX}")) == []


def test_what_was_begun_is_taken_back_when_the_probe_cannot_start(runtime, monkeypatch):
    class Occupied(core.Probe):
        def start(self, *_):
            raise ProfilerStateError("another tool is there: stop it.")

    monkeypatch.setattr(core, "Probe", Occupied)
    before = {*Path("/proc/self/fd").iterdir()}
    profiler = PyStackProfiler(mode="calls", source="inprocess")
    with pytest.raises(ProfilerStateError, match="another tool"):
        profiler.start_profiling()
    with pytest.raises(ProfilerStateError, match="nothing is being recorded"):
        profiler.stop_profiling()
    assert {*Path("/proc/self/fd").iterdir()} == before
    assert list(runtime.rglob("*.*")) == []


KILLED = """
import os, signal
from pystack_nb import PyStackProfiler

def called(number):
    if number == 12_345:
        os.kill(os.getpid(), signal.SIGKILL)

PyStackProfiler(mode="calls", source="inprocess").start_profiling()
for number in range(20_000):
    called(number)
"""


@pytest.mark.parametrize("cut", [0, 7])
def test_calls_of_a_process_killed_without_a_collector_are_recovered_to_the_last(
    cut, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    if cut:  # killed while it wrote
        (path,) = spool_folder().glob(f"*{SUFFIX}")
        with path.open("ab") as file:
            file.write(path.read_bytes()[16 : 16 + cut])
    (recording,) = pystack_nb.recover(keep=False)
    calls = recording.calls[recording.calls["function"] == "called"]
    assert len(calls) == 12_346
    assert calls["complete"].tolist() == [True] * 12_345 + [False]
    assert not recording.info["complete"]
    assert list(spool_folder().iterdir()) == []
