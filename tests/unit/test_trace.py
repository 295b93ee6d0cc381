"""A recording that fails while it begins."""

from __future__ import annotations

import os
import resource

import pytest

from pystack_nb.collector.linux import CAP_SYS_PTRACE
from pystack_nb.collector.peer import Peer
from pystack_nb.collector.process import Process
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


@pytest.mark.usefixtures("needs_root")
def test_a_sampler_is_stopped_before_its_file_is_closed(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    sampler = Failing()
    peer = Peer(0, 0, Process(os.getpid()), CAP_SYS_PTRACE, at_home=True)
    options = Options(pid=None, hz=99, wait_python=True, kernel_stacks=False)
    with (tmp_path / "spool").open("wb") as file:
        trace = Trace(lambda: sampler, peer, options, os.dup(file.fileno()))
        with pytest.raises(OSError):  # noqa: PT011 - Failing's own
            trace.start()
        assert sampler.stopped
        trace.close()
    peer.process.close()
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
