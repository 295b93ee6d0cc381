"""A recording that fails while it begins."""

from __future__ import annotations

import os
import resource

from pathlib import Path

import pytest

from pystack_nb.collector.linux import CAP_SYS_PTRACE
from pystack_nb.collector.peer import Peer
from pystack_nb.collector.process import Process
from pystack_nb.collector.protocol import CollectorProblem
from pystack_nb.collector.trace import Options, Trace


class Failing:
    """A sampler that begins, and then can't append."""

    def __init__(self):
        self.stopped = False

    def start(self, *_):
        return {}

    def append_meta(self, _):
        raise OSError

    def stop(self):
        self.stopped = True


@pytest.fixture
def peer(needs_root):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    peer = Peer(0, 0, Process(os.getpid()), CAP_SYS_PTRACE, at_home=True)
    yield peer
    peer.process.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_sampler_is_stopped_before_its_file_is_closed(tmp_path, peer):
    sampler = Failing()
    options = Options(pid=None, hz=99, wait_python=True, kernel_stacks=False)
    with (tmp_path / "spool").open("wb") as file:
        trace = Trace(lambda: sampler, peer, options, os.dup(file.fileno()))
        with pytest.raises(OSError):  # noqa: PT011 - Failing's own
            trace.start()
        assert sampler.stopped
        trace.close()


def test_a_recording_that_never_began_says_so_and_closes_what_it_was_given(tmp_path, peer):
    options = Options(pid=None, hz=99, wait_python=True, kernel_stacks=False)
    before = {*Path("/proc/self/fd").iterdir()}
    trace = Trace(Failing, peer, options, os.open(tmp_path / "spool", os.O_CREAT | os.O_RDONLY))
    with pytest.raises(CollectorProblem, match="open for writing"):
        trace.start()
    with pytest.raises(CollectorProblem, match="has not begun"):
        trace.flush()
    trace.close()
    assert {*Path("/proc/self/fd").iterdir()} == before
