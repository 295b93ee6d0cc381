"""What a service does for its clients, and how long it lets them in."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time

from pathlib import Path

import pytest

from pystack_nb.collector import install
from pystack_nb.errors import AccessDeniedError


ALICE, BOB = 42001, 42002

RECORD_MYSELF = """
c = connect(SOCKET)
tell(start(c))
burn(0.3)
tell(ask(c, STOP))
"""
RECORD_AND_WAIT = """
c = connect(SOCKET)
tell(start(c))
wait()
burn(0.2)
tell(ask(c, STOP))
"""
CONNECT_AND_WAIT = """
c = connect(SOCKET)
tell(ask(c, HELLO))
wait()
"""


def test_a_user_without_rights_records_himself(service):
    (started, begun), (stopped, facts) = service.stranger(RECORD_MYSELF, ALICE).finish()
    assert started == stopped == 64
    assert begun["target_python"].startswith("3.")
    assert facts["reason"] == "stopped"
    assert facts["hits"] > 0
    assert facts["lost_by_cause"]["rights-changed"] == 0


def test_kernel_frames_are_for_users_whom_the_kernel_would_show_them(service):
    begun = service.stranger(RECORD_MYSELF, ALICE).finish()[0][1]
    paranoid = int(Path("/proc/sys/kernel/perf_event_paranoid").read_text())
    hidden = int(Path("/proc/sys/kernel/kptr_restrict").read_text())
    allowed = paranoid <= 1 and hidden == 0
    assert begun["kernel_stacks"] is allowed
    assert allowed or "no kernel frames" in begun["notes"][0]


def test_a_client_that_is_killed_leaves_nothing_and_its_recording_is_ended(
    service, tmp_path, eventually
):
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    spool = tmp_path / "spool"
    spool.touch()
    os.chown(spool, ALICE, ALICE)
    program = f"c = connect(SOCKET)\ntell(start(c, os.open({str(spool)!r}, os.O_RDWR)))\nwait()"
    client = service.stranger(program, ALICE)
    assert client.said()[0] == 64
    (worker,) = service.workers()
    programs = programs_of(worker)
    assert len(programs) >= 2
    assert all(is_loaded(program) for program in programs)
    client.process.send_signal(signal.SIGKILL)
    eventually(lambda: service.workers() == [])
    # Whoever still held a timer, in whatever process, would hold its program too.
    eventually(lambda: not any(is_loaded(program) for program in programs))
    assert b'"event":"end"' in spool.read_bytes().replace(b": ", b":")
    assert b"client-gone" in spool.read_bytes()


def test_the_service_outlives_its_clients(service, eventually):
    service.stranger(RECORD_MYSELF, ALICE).finish()
    eventually(lambda: service.workers() == [])
    assert service.stranger(RECORD_MYSELF, BOB).finish()[0][0] == 64


def test_two_clients_record_at_once_each_with_a_set_of_its_own(service):
    alice = service.stranger(RECORD_AND_WAIT, ALICE)
    bob = service.stranger(RECORD_AND_WAIT, BOB)
    assert alice.said()[0] == bob.said()[0] == 64
    alice.go_on()
    bob.go_on()
    for _, facts in alice.finish() + bob.finish():
        assert facts["hits"] > 0
        assert set(facts["lost_by_cause"].values()) == {0}


def test_a_user_with_too_many_connections_is_turned_away_and_others_are_not(service):
    program = """
held = [connect(SOCKET) for _ in range(8)]
tell([ask(c, HELLO)[0] for c in held])
one_more = connect(SOCKET)
tell(receive(one_more))
tell(receive(one_more))
wait()
"""
    alice = service.stranger(program, ALICE)
    assert alice.said() == [64] * 8
    kind, body = alice.said()
    assert (kind, body["error"]) == (65, "busy")
    assert alice.said() is None
    assert service.stranger(RECORD_MYSELF, BOB).finish()[0][0] == 64


def test_a_worker_takes_no_more_memory_than_it_needs(service):
    client = service.stranger(CONNECT_AND_WAIT, ALICE)
    client.said()
    (worker,) = service.workers()
    _, most = resource.prlimit(worker, resource.RLIMIT_AS)
    assert most == 1 << 30
    assert resource.prlimit(service.process.pid, resource.RLIMIT_AS)[1] != most


def test_a_service_outlives_a_time_without_descriptors(service, eventually):
    # GIVEN a service that may have no more files open than it has
    used = max(int(fd.name) for fd in Path(f"/proc/{service.process.pid}/fd").iterdir()) + 1
    before = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    for spare in (0, 1):  # none for the connection, and then none for its worker's pidfd
        limits = (used + spare, before[1])
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        client = service.stranger("connect(SOCKET)\ntell('connected')\nwait()", ALICE)
        assert client.said() == "connected"
        time.sleep(0.3)
        # WHEN and THEN
        assert service.process.poll() is None
        client.process.kill()
    resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, before)
    assert service.stranger(CONNECT_AND_WAIT, BOB).said()[0] == 64


def test_further_uids_in_a_namespace_of_his_own_give_a_user_no_further_places(service):
    # GIVEN a user with as many connections as he may have
    alice = service.stranger(
        "held = [connect(SOCKET) for _ in range(8)]\n"
        "tell([ask(c, HELLO)[0] for c in held])\nwait()",
        ALICE,
    )
    assert alice.said() == [64] * 8
    # WHEN another process of his is another user in a namespace that is his
    other = service.stranger(
        "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\n"
        "tell(os.getpid())\nwait()\nos.setresuid(7, 7, 7)\ntell(receive(connect(SOCKET))[1])",
        ALICE,
    )
    pid = other.said()
    Path(f"/proc/{pid}/uid_map").write_text(f"7 {BOB} 1\n")
    other.go_on()
    # THEN he is turned away there, too
    assert other.said()["error"] == "busy"
    assert service.stranger(RECORD_MYSELF, BOB).finish()[0][0] == 64


def test_connections_that_were_closed_count_no_more(service, eventually):
    service.stranger("for _ in range(8): tell(ask(connect(SOCKET), HELLO)[0])", ALICE).finish()
    eventually(lambda: service.workers() == [])
    assert service.stranger(CONNECT_AND_WAIT, ALICE).said()[0] == 64


def test_workers_end_with_the_service(service, eventually):
    client = service.stranger(CONNECT_AND_WAIT, ALICE)
    client.said()
    (worker,) = service.workers()
    service.process.terminate()
    eventually(lambda: not Path(f"/proc/{worker}").exists())
    assert service.process.wait(30) == 0
    assert not service.path.exists()


def test_a_socket_that_a_killed_service_left_is_taken_over(service, installation):
    service.process.kill()
    service.process.wait()
    assert service.path.exists()
    service.process = subprocess.Popen(install.command(installation, service.path), cwd="/")
    program = """
for _ in range(1000):
    try:
        tell(ask(connect(SOCKET), HELLO)[0])
        break
    except OSError:  # nobody answers yet, or the old socket is gone and the new one not open
        time.sleep(0.01)
"""
    assert service.stranger(program, ALICE).finish() == [64]


def test_a_second_service_does_not_take_the_first_ones_socket(service, installation):
    second = subprocess.run(
        install.command(installation, service.path), capture_output=True, text=True, check=False
    )
    assert second.returncode == 1
    assert "another collector serves" in second.stderr
    assert service.stranger(CONNECT_AND_WAIT, ALICE).said()[0] == 64


@pytest.mark.parametrize(
    "spoil",
    [
        lambda prefix: (prefix / "collector" / "access.py").chmod(0o664),
        lambda prefix: (prefix / "bpf").chmod(0o777),
        lambda prefix: os.chown(prefix / "bpf" / "libpystack_time.so", ALICE, ALICE),
        lambda prefix: prefix.chmod(0o775),
    ],
    ids=["group-writable source", "open folder", "a user's library", "group-writable prefix"],
)
def test_a_service_does_not_run_what_others_can_change(spoil, tmp_path):
    install.copy(tmp_path / "prefix")
    spoil(tmp_path / "prefix")
    ended = _serve(install.command(tmp_path / "prefix", tmp_path / "socket" / "c.sock"))
    assert ended.returncode == 1
    assert "can be changed by others than root" in ended.stderr


def test_a_service_does_not_run_under_a_python_that_looks_elsewhere(installation, tmp_path):
    command = install.command(installation, tmp_path / "c.sock")
    command.remove("-I")
    ended = _serve(command)
    assert ended.returncode == 1
    assert "without -I" in ended.stderr or "with -I" in ended.stderr


def test_a_service_is_roots_alone(installation):
    ended = _serve(install.command(installation, Path("/tmp/c.sock")), user=ALICE, group=ALICE)
    assert ended.returncode == 1
    assert "not run by root" in ended.stderr


def test_this_python_reaches_the_service_that_the_variable_names(service, monkeypatch):
    program = """
from pystack_nb.collector import client
c = client.connect()
c.release()
print(c.way, client.connect() is c)
"""
    environment = {**os.environ, "PYSTACK_NB_SOCKET": str(service.path)}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == ["service", "True"]


def test_what_is_installed_serves_answers_and_is_removed_without_trace(tmp_path, eventually):
    # GIVEN an installation in a folder of its own
    prefix, path = tmp_path / "prefix", tmp_path / "folder" / "collector.sock"
    install.copy(prefix)
    # WHEN it is run as the command line runs it
    program = (
        "import pathlib; from pystack_nb.collector import install;"
        f"install.run(pathlib.Path({str(path)!r}), pathlib.Path({str(prefix)!r}))"
    )
    service = subprocess.Popen([sys.executable, "-c", program])
    eventually(path.exists)
    eventually(lambda: "answers on" in install.status(prefix, path)[0][-1])
    # THEN an interrupt ends it, and removing it leaves nothing
    service.send_signal(signal.SIGINT)
    assert service.wait(30) == 0
    assert not path.exists()
    assert install.status(prefix, path)[0][0].startswith("installed in")
    assert install.uninstall(prefix) == [f"removed {prefix}"]
    assert install.uninstall(prefix) == ["there was nothing to remove"]
    assert not prefix.exists()


def test_a_folder_given_for_the_installation_loses_nothing_else(tmp_path):
    (tmp_path / "other").touch()
    install.copy(tmp_path)
    install.uninstall(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_only_root_installs(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: ALICE)
    for act in (install.install, install.uninstall):
        with pytest.raises(AccessDeniedError, match=r"run `sudo .*install`"):
            act(tmp_path)
    assert list(tmp_path.iterdir()) == []


def programs_of(pid):
    """Ids of the BPF programs that a process has open."""
    told = "".join(path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir())
    return {int(number) for number in re.findall(r"^prog_id:\t(\d+)$", told, re.MULTILINE)}


def is_loaded(program):
    """Whether the kernel has a BPF program still, whoever holds it."""
    get_fd_by_id, bpf = 13, 321  # linux/bpf.h; the system call's number on x86-64
    attributes = struct.pack("<III", program, 0, 0)
    fd = ctypes.CDLL(None).syscall(bpf, get_fd_by_id, attributes, len(attributes))
    if fd >= 0:
        os.close(fd)
    return fd >= 0


def _serve(command, **options):
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd="/", timeout=60, **options
    )
