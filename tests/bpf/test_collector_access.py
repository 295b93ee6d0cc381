"""Whom a client may see, and where it may have its recording written."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import tempfile

from pathlib import Path

import pytest

from pystack_nb import PyStackProfiler


ALICE, BOB = 42001, 42002
CAROL = 42003  # nothing else is run as her

BURN = "tell(os.getpid())\nburn(60)"
RECORD = """
c = connect(SOCKET)
kind, body = start(c, pid={pid})
tell(body.get("error", "started"))
"""


@pytest.fixture(scope="module")
def service(shared_service):
    return shared_service


@pytest.fixture
def public_folder():
    """A folder that every user can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="pystack_nb-public-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def ask_for(service, uid, pid):
    """What a user hears who asks for a process."""
    return service.stranger(RECORD.format(pid=pid), uid).finish()


def test_a_user_records_another_process_of_his_own(service):
    pid = service.stranger(BURN, ALICE).said()
    assert ask_for(service, ALICE, pid) == ["started"]


def test_a_second_user_does_not_get_the_first_ones_process(service):
    pid = service.stranger(BURN, ALICE).said()
    assert ask_for(service, BOB, pid) == ["access-denied"]


def test_nobody_but_root_gets_roots_process(service):
    assert ask_for(service, ALICE, os.getpid()) == ["access-denied"]
    assert ask_for(service, ALICE, service.process.pid) == ["access-denied"]


def test_root_gets_every_users_process(service):
    pid = service.stranger(BURN, ALICE).said()
    assert ask_for(service, 0, pid) == ["started"]


def test_a_process_of_the_same_user_in_another_group_is_not_his_to_see(service):
    program = ["/usr/bin/python3", "-c", "input()"]
    target = subprocess.Popen(
        program, stdin=subprocess.PIPE, user=ALICE, group=BOB, extra_groups=[]
    )
    assert ask_for(service, ALICE, target.pid) == ["access-denied"]
    target.communicate(b"\n")


def test_a_process_that_has_made_itself_unreadable_is_closed_to_its_owner(service):
    program = "import ctypes\nctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n" + BURN
    pid = service.stranger(program, ALICE).said()
    assert ask_for(service, ALICE, pid) == ["access-denied"]


def test_a_process_that_runs_with_another_users_rights_is_closed(service, public_folder):
    python = set_user_id_python(public_folder)
    program = [python, "-c", "print(1, flush=True); input()"]
    target = subprocess.Popen(
        program,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        user=ALICE,
        group=ALICE,
        extra_groups=[],
    )
    target.stdout.readline()
    assert ask_for(service, ALICE, target.pid) == ["access-denied"]
    assert ask_for(service, BOB, target.pid) == ["access-denied"]
    target.communicate(b"\n")


SANDBOXED = """
if "inside" not in sys.argv:
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-I", "-c"]
    os.execvp(command[0], [*command, TEXT, "inside"])
"""


def in_a_sandbox(program):
    """The program, run in a user namespace in which its user is root."""
    return f"TEXT = 'SOCKET = %r\\n' % SOCKET + {bare_client() + program!r}\n{SANDBOXED}"


def bare_client():
    return Path(__file__).with_name("bare_client.py").read_text()


def test_a_sandboxed_client_sees_itself_and_nothing_outside_its_sandbox(service):
    outside = service.stranger(BURN, ALICE).said()
    program = f"""
c = connect(SOCKET)
tell(os.getuid())
tell(start(c, pid={outside})[1].get("error", "started"))
tell(start(c)[1].get("error", "started"))
"""
    said = service.stranger(in_a_sandbox(program), ALICE).finish()
    assert said == [0, "access-denied", "started"]


def test_root_of_a_container_without_the_right_to_trace_sees_only_its_like(service):
    program = f"""
import ctypes
libc = ctypes.CDLL(None)
for capability in range(64):
    if capability != 6 and capability != 7:
        libc.prctl(24, capability, 0, 0, 0)  # out of the bounding set
if "inside" not in sys.argv:
    os.execv(sys.executable, [sys.executable, "-I", "-c", TEXT, "inside"])
c = connect(SOCKET)
tell(start(c, pid={os.getpid()})[1].get("error", "started"))
tell(start(c)[1].get("error", "started"))
"""
    text = f"SOCKET = {str(service.path)!r}\n{bare_client()}{program}"
    said = service.stranger(f"TEXT = {text!r}\n{program}", 0).finish()
    assert said == ["access-denied", "started"]


def test_pids_that_nobody_has_are_told_from_those_of_others(service):
    assert ask_for(service, ALICE, 2**22 + 1) == ["no-such-process"]
    assert ask_for(service, ALICE, 0) == ["no-such-process"]
    assert ask_for(service, ALICE, -1) == ["no-such-process"]
    assert ask_for(service, ALICE, 10**30) == ["no-such-process"]


def test_asking_for_a_process_lends_its_user_no_process_to_stop(service):
    # GIVEN a user who stops whatever of his comes up, but for his client and its target
    watcher = service.stranger(
        """
kept = {os.getpid(), json.loads(sys.stdin.readline())}
def mine():
    for name in os.listdir("/proc"):
        try:
            if name.isdecimal() and int(name) not in kept:
                if os.stat(f"/proc/{name}").st_uid == os.getuid():
                    yield int(name)
        except FileNotFoundError:
            pass
tell("watching")
stopped = []
while not __import__("select").select([sys.stdin], [], [], 0)[0]:
    for pid in mine():
        os.kill(pid, 19)
        stopped.append(pid)
tell(stopped)
""",
        CAROL,
    )
    client = service.stranger(
        """
wait()
c = connect(SOCKET)
for _ in range(50):
    kind, body = start(c, hz=99)
    ask(c, STOP)
    time.sleep(0.01)
tell(kind)
""",
        CAROL,
    )
    watcher.process.stdin.write(str(client.process.pid))
    watcher.go_on()
    assert watcher.said() == "watching"
    # WHEN access is checked again and again
    client.go_on()
    assert client.said() == 64
    watcher.go_on()
    # THEN none came up
    assert watcher.said() == []


def test_a_recording_ends_when_its_target_takes_another_users_rights(service, public_folder):
    # GIVEN a target of ALICE's that she records
    python = set_user_id_python(public_folder)
    burn = "import time\nprint(1, flush=True)\nwhile time.sleep(0) is None: sum(range(9999))"
    program = (
        f"tell(os.getpid())\nwait()\nburn(0.5)\nos.execv({python!r}, ['python', '-c', {burn!r}])"
    )
    target = service.stranger(program, ALICE)
    client = service.stranger(
        f"c = connect(SOCKET)\nfile = memory_file()\n"
        f"tell(start(c, file, pid={target.said()}, hz=4999)[0])\nwait()\n"
        "while (body := ask(c, FLUSH)[1])['recording']: time.sleep(0.006)\n"
        "tell(body)\ntell(ask(c, STOP)[1])\n"
        "written = os.pread(file, 1 << 24, 0)\n"
        "tell([b'libc.so' in written, PROGRAM in written])".replace(
            "PROGRAM", repr(python.encode())
        ),
        ALICE,
    )
    assert client.said() == 64
    # WHEN it executes a program that runs with BOB's rights
    target.go_on()
    target.process.stdout.readline()
    client.go_on()
    # THEN nothing of that program is seen, and the client hears why
    assert client.said()["result"]["reason"] == "access-denied"
    ended = client.said()
    assert ended["reason"] == "access-denied"
    assert "another user" in ended["message"]
    lost = ended["lost_by_cause"]
    assert set(lost) == {
        "ring-buffer-full",
        "disk-full",
        "rights-changed",
        "calls-not-copied",
        "calls-disk-full",
    }
    # What was seen of that program before the rights were checked again was dropped.
    assert sum(lost.values()) == lost["rights-changed"]
    # Nothing that the file says of files comes from that program's memory map.
    assert client.said() == [True, False]


def test_a_recording_goes_on_when_its_target_executes_another_program(service):
    burn = "import time\nprint(1, flush=True)\nwhile time.sleep(0) is None: sum(range(9999))"
    program = (
        f"tell(os.getpid())\nwait()\nos.execv('/usr/bin/python3', ['python3', '-c', {burn!r}])"
    )
    target = service.stranger(program, ALICE)
    client = service.stranger(
        f"c = connect(SOCKET)\ntell(start(c, pid={target.said()})[0])\nwait()\n"
        "time.sleep(0.5)\ntell(ask(c, STOP)[1])",
        ALICE,
    )
    assert client.said() == 64
    target.go_on()
    target.process.stdout.readline()
    client.go_on()
    ended = client.said()
    assert ended["reason"] == "stopped"
    assert ended["notes"][-1] == "the target executed another program"


def test_a_target_that_executes_many_programs_makes_no_endless_story(service):
    again = "import os, sys; n = int(sys.argv[1]); n and os.execv(sys.executable, [sys.executable, '-c', sys.argv[2], str(n - 1), sys.argv[2]]); print(flush=True); input()"  # noqa: E501
    program = f"tell(os.getpid())\nwait()\nos.execv('/usr/bin/python3', ['python3', '-c', {again!r}, '20', {again!r}])"  # noqa: E501
    target = service.stranger(program, ALICE)
    client = service.stranger(
        f"c = connect(SOCKET)\ntell(start(c, pid={target.said()})[0])\nwait()\n"
        "time.sleep(0.3)\ntell(ask(c, STOP)[1])",
        ALICE,
    )
    assert client.said() == 64
    target.go_on()
    target.process.stdout.readline()
    client.go_on()
    assert client.said()["notes"].count("the target executed another program") == 1


def test_a_target_that_exits_ends_the_recording_and_keeps_it(service):
    target = service.stranger("tell(os.getpid())\nwait()\nburn(0.5)", ALICE)
    program = f"""
c = connect(SOCKET)
tell(start(c, pid={target.said()})[0])
while ask(c, FLUSH)[1]["recording"]:
    time.sleep(0.05)
tell(ask(c, STOP)[1])
tell(start(c)[0])
"""
    client = service.stranger(program, ALICE)
    first = client.said()
    target.go_on()
    ended, again = client.finish()
    assert (first, again) == (64, 64)
    assert ended["reason"] == "target-exited"
    assert ended["hits"] > 0
    assert "ended while it was recorded" in ended["message"]


def test_a_program_may_be_recorded_before_its_interpreter_is_there(service):
    program = """
held, go = os.pipe()
child = os.fork()
if child == 0:
    os.read(held, 1)
    os.execv("/usr/bin/python3", ["python3", "-c", "for _ in range(3000): sum(range(9999))"])
c = connect(SOCKET)
tell(start(c, pid=child, wait_python=True)[0])
os.write(go, b"!")
while ask(c, FLUSH)[1]["recording"]:
    time.sleep(0.05)
tell(ask(c, STOP)[1])
"""
    started, ended = service.stranger(program, ALICE).finish()
    assert started == 64
    assert ended["reason"] == "target-exited"
    assert ended["hits"] > 0


@pytest.mark.parametrize(
    ("descriptor", "reason"),
    [
        ("os.pipe()[1]", "local file system"),
        ("os.open('/dev/null', os.O_WRONLY)", "local file system|regular file"),
        ("connect(SOCKET).detach()", "local file system"),
        ("os.open('/proc/self/oom_score_adj', os.O_RDWR)", "local file system"),
        ("os.open('/', os.O_RDONLY)", "regular file"),
        ("os.open(FOREIGN, os.O_RDWR)", "another user"),
        ("os.open(OWN, os.O_RDONLY)", "open for writing"),
        ("os.open(OWN, os.O_PATH)", "open for writing"),
        ("os.open(OWN, os.O_RDWR | os.O_DIRECT)", "O_DIRECT"),
        ("os.memfd_create('unsealed')", "sealed against shrinking"),
    ],
)
def test_nothing_is_written_where_the_client_could_not_write_itself(
    service, public_folder, descriptor, reason
):
    foreign, own = public_folder / "foreign", public_folder / "own"
    foreign.touch()
    foreign.chmod(0o666)
    own.touch()
    os.chown(own, ALICE, ALICE)
    program = f"""
OWN, FOREIGN = {str(own)!r}, {str(foreign)!r}
tell(start(connect(SOCKET), {descriptor})[1])
"""
    (body,) = service.stranger(program, ALICE).finish()
    assert body["error"] == "bad-descriptor"
    assert any(part in body["message"] for part in reason.split("|"))
    assert foreign.stat().st_size == own.stat().st_size == 0


def test_a_recording_grows_no_further_than_the_clients_own_files_may(service, public_folder):
    own = public_folder / "own"
    own.touch()
    os.chown(own, ALICE, ALICE)
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
c = connect(SOCKET)
tell(start(c, os.open({str(own)!r}, os.O_RDWR), hz=5000)[0])
for _ in range(1000):
    burn(0.05)
    if not ask(c, FLUSH)[1]["recording"]:
        break
tell(ask(c, STOP)[1])
"""
    started, ended = service.stranger(program, ALICE).finish()
    assert started == 64
    assert ended["reason"] == "spool-full"
    assert 0 < own.stat().st_size <= 8192
    # The header, which a client of ours would have written first.
    spool = b"PYSTACK\n" + struct.pack("<II", 1, 16) + own.read_bytes()
    kept = PyStackProfiler.parse_stack_data(spool).samples
    assert len(kept) + sum(ended["lost_by_cause"].values()) == ended["hits"]


def set_user_id_python(folder):
    """A Python that runs with BOB's rights, whoever starts it."""
    python = folder / "python"
    shutil.copy("/usr/bin/python3", python)
    os.chown(python, BOB, BOB)
    python.chmod(0o755 | stat.S_ISUID)
    return str(python)
