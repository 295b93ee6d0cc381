"""A collector service with root's installation, and strangers that talk to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pystack_nb.collector import install


SYSTEM_PYTHON = "/usr/bin/python3"
BARE_CLIENT = Path(__file__).with_name("bare_client.py")


@dataclass
class Service:
    """A running service: its process and where it listens."""

    process: subprocess.Popen
    prefix: Path
    path: Path
    strangers: list[subprocess.Popen] = field(default_factory=list)

    def stranger(self, program: str, uid: int) -> Stranger:
        """Run a program behind the bare client, as a user that no passwd entry names."""
        text = f"{BARE_CLIENT.read_text()}\nSOCKET = {str(self.path)!r}\n{program}"
        process = subprocess.Popen(
            [SYSTEM_PYTHON, "-I", "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            user=uid,
            group=uid,
            extra_groups=[],
        )
        self.strangers.append(process)
        return Stranger(process)

    def workers(self) -> list[int]:
        """Pids of the processes that serve its clients."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


@dataclass
class Stranger:
    """A program that talks to the service, and to its test through its standard streams."""

    process: subprocess.Popen

    def said(self):
        line = self.process.stdout.readline()
        assert line, "the program has ended without a word"
        return json.loads(line)

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self):
        return [json.loads(line) for line in self.process.communicate(timeout=60)[0].splitlines()]


@pytest.fixture(scope="session")
def installation(needs_root):
    """An installation that only root can change, in a place that everybody can read."""
    prefix = Path(tempfile.mkdtemp(prefix="pystack_nb-installation-"))
    prefix.chmod(0o755)
    install.copy(prefix)
    yield prefix
    shutil.rmtree(prefix)


@pytest.fixture
def service(installation):
    """A service for one test, which may stop it."""
    with serving(installation) as running:
        yield running


@pytest.fixture(scope="module")
def shared_service(installation):
    """A service for all tests of a module."""
    with serving(installation) as running:
        yield running


@contextlib.contextmanager
def serving(installation):
    folder = Path(tempfile.mkdtemp(prefix="pystack_nb-service-"))
    folder.chmod(0o755)
    path = folder / "collector.sock"
    process = subprocess.Popen(install.command(installation, path), cwd="/")
    eventually(path.exists)
    running = Service(process, installation, path)
    yield running
    for stranger in running.strangers:
        stranger.kill()
        stranger.communicate()
    running.process.terminate()
    running.process.wait(30)
    shutil.rmtree(folder)


def eventually(condition, seconds: float = 30.0) -> None:
    """Wait until something holds; the limit only ends a test that has failed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not come to hold within {seconds} s")
        time.sleep(0.01)


@pytest.fixture(name="eventually")
def _eventually():
    return eventually


@pytest.fixture
def notebook(tmp_path):
    """Run a program under this Python that has pystack_nb, as a client in its own session."""
    started = []

    def run(program: str, **options) -> Stranger:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            start_new_session=True,
            **options,
        )
        started.append(process)
        return Stranger(process)

    yield run
    for process in started:
        # Its forked children, too: they would keep its output open, which is read to its end.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
