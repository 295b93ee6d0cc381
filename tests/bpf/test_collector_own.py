"""A collector that a profiler started for itself, and how it ends."""

from __future__ import annotations

import os
import signal

from pathlib import Path

import pytest

from pystack_nb.collector import launch
from pystack_nb.errors import CollectorError, CollectorUnavailableError


PREAMBLE = """
import json, os, signal, sys, tempfile, time
from pystack_nb.collector import client as module
from pystack_nb.collector.client import connect

def tell(value):
    print(json.dumps(value), flush=True)

def collector_of(client):
    return client._collector.pid

file = tempfile.TemporaryFile()
"""
RECORDING = f"""{PREAMBLE}
client = connect()
client.start(file.fileno())
tell(collector_of(client))
"""


def ended(pid: int) -> bool:
    """Whether a process is gone, not counting one that init has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_ends_when_its_client_is_killed(notebook, eventually):
    client = notebook(RECORDING + "input()")
    collector = client.said()
    client.process.send_signal(signal.SIGKILL)
    client.process.wait()
    eventually(lambda: ended(collector))


def test_it_ends_when_its_client_is_killed_though_a_forked_child_lives_on(notebook, eventually):
    # GIVEN a child that holds whatever the fork gave it, and its own copy of the socket too
    client = notebook(
        f"{PREAMBLE}\nclient = connect()\nclient.start(file.fileno())\n"
        "kept = os.dup(client._connection.fileno())\nchild = os.fork()\n"
        "if child == 0:\n    time.sleep(60)\n    os._exit(0)\n"
        "tell([collector_of(client), child])\ninput()"
    )
    collector, child = client.said()
    # WHEN the client alone is killed
    client.process.send_signal(signal.SIGKILL)
    client.process.wait()
    # THEN its collector ends, and the child is still there
    eventually(lambda: ended(collector))
    assert not ended(child)
    os.kill(child, signal.SIGKILL)


def test_it_ends_with_a_client_that_ends_by_itself(notebook, eventually):
    client = notebook(RECORDING)
    collector = client.said()
    assert client.process.wait(60) == 0
    eventually(lambda: ended(collector))


def test_it_has_ended_when_the_connection_was_closed(notebook):
    client = notebook(f"{RECORDING}\nmodule.disconnect()\ntell('closed')\ninput()")
    collector = client.said()
    assert client.said() == "closed"
    assert ended(collector)


def test_whoever_waits_for_any_child_does_not_find_it(notebook):
    client = notebook(
        f"{RECORDING}\ntry:\n    os.wait()\nexcept ChildProcessError:\n    tell('no child')"
    )
    client.said()
    assert client.said() == "no child"


def test_it_serves_a_client_with_more_than_a_thousand_files_open(notebook):
    client = notebook(
        f"import os, resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        f"kept = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]\n{RECORDING}\n"
        "client.stop()\ntell(collector_of(connect()))\nmodule.disconnect()"
    )
    assert client.said() == client.said()
    assert client.process.wait(60) == 0


def test_it_stays_warm_between_recordings(notebook):
    client = notebook(f"{RECORDING}\nclient.stop()\ntell(collector_of(connect()))")
    assert client.said() == client.said()


def test_recordings_at_once_have_a_collector_each(notebook):
    client = notebook(
        f"{RECORDING}\nother = connect()\nother.start(file.fileno())\ntell(collector_of(other))\n"
        "tell([client.stop()['reason'], other.stop()['reason']])"
    )
    assert client.said() != client.said()
    assert client.said() == ["stopped", "stopped"]


def test_an_interrupt_of_the_notebook_is_not_one_of_the_collector(notebook):
    client = notebook(
        f"{RECORDING}\ntry:\n    tell('ready')\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    tell(client.stop()['reason'])"
    )
    client.said()
    client.said()
    os.killpg(client.process.pid, signal.SIGINT)
    assert client.said() == "stopped"


def test_one_that_was_killed_is_told_and_replaced(notebook):
    client = notebook(
        f"{RECORDING}\nos.kill(collector_of(client), signal.SIGKILL)\n"
        "try:\n    client.stop()\nexcept Exception as error:\n    tell(type(error).__name__)\n"
        "client = connect()\nclient.start(file.fileno())\ntell(client.stop()['reason'])"
    )
    client.said()
    assert client.said() == "CollectorError"
    assert client.said() == "stopped"


def test_a_forked_child_has_no_part_in_its_parents_connection(notebook):
    client = notebook(
        f"{RECORDING}\nchild = os.fork()\nif child == 0:\n"
        "    try:\n        client.stop()\n"
        "    except Exception as error:\n        tell(type(error).__name__)\n"
        "    mine = connect()\n    tell(mine.start(file.fileno())['target_pid'])\n"
        "    module.disconnect()\n    os._exit(0)\n"
        "os.waitpid(child, 0)\ntell(child)\ntell(client.stop()['reason'])"
    )
    client.said()
    assert client.said() == "ProfilerStateError"
    assert client.said() == client.said()
    assert client.said() == "stopped"


def test_what_root_compiles_is_not_for_its_client_to_choose(notebook, tmp_path):
    environment = {
        **os.environ,
        "BCC_KERNEL_SOURCE": str(tmp_path),
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": "",
    }
    client = notebook(f"{RECORDING}\ninput()", env=environment)
    variables = Path(f"/proc/{client.said()}/environ").read_bytes().split(b"\0")
    names = {variable.partition(b"=")[0] for variable in variables if variable}
    assert names == {b"PATH", b"LANG"}


def test_it_leaves_no_file_and_no_bytecode(notebook, tmp_path):
    bytecode = Path(launch.__file__).parent / "__pycache__"
    before = {path: path.stat().st_mtime_ns for path in bytecode.glob("se[rs]*.pyc")}
    client = notebook(RECORDING, env={**os.environ, "TMPDIR": str(tmp_path)})
    client.said()
    client.process.wait(60)
    # server and session: what only the collector itself imports
    assert {path: path.stat().st_mtime_ns for path in bytecode.glob("se[rs]*.pyc")} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("needs_root")
def test_a_stranger_that_connects_first_is_not_taken_for_the_collector(monkeypatch):
    # GIVEN a program in the collector's place that lets another user connect first
    trap = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX);"
        "s.connect(chr(0) + sys.argv[1]); time.sleep(60)"
    )

    def command(name):
        program = (
            "import subprocess, sys\n"
            f"subprocess.run([sys.executable, '-c', {trap!r}, {name!r}], user=42001, timeout=1)"
        )
        return [launch.PYTHON, "-c", program]

    monkeypatch.setattr(launch, "_command", command)
    # WHEN and THEN
    with pytest.raises(CollectorError, match="ended at once"):
        launch.launch()


def test_a_python_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(launch, "PYTHON", "/usr/bin/python-of-nobody")
    with pytest.raises(CollectorUnavailableError, match="apt-get install python3-bpfcc"):
        launch.launch()
