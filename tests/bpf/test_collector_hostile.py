"""Clients that send rubbish, and what they do to others: nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


ALICE, BOB = 42001, 42002

RECORD_UNTIL_TOLD = """
c = connect(SOCKET)
tell(start(c))
while not __import__("select").select([sys.stdin], [], [], 0)[0]:
    burn(0.05)
tell(ask(c, STOP))
"""


@pytest.fixture(scope="module")
def service(shared_service):
    """A service with another user, whose recording goes on meanwhile and comes out whole."""
    bob = shared_service.stranger(RECORD_UNTIL_TOLD, BOB)
    assert bob.said()[0] == 64
    yield shared_service
    bob.go_on()
    ((kind, facts),) = bob.finish()
    assert kind == 64
    assert facts["reason"] == "stopped"
    assert facts["hits"] > 0
    assert set(facts["lost_by_cause"].values()) == {0}


@pytest.fixture(autouse=True)
def _only_the_neighbour(service, eventually):
    """Each test finds the neighbour's worker alone, and leaves it so."""
    eventually(lambda: len(service.workers()) == 1)
    yield
    for stranger in service.strangers[1:]:
        stranger.kill()
    eventually(lambda: len(service.workers()) == 1)


@pytest.mark.parametrize(
    "sent",
    [
        "b'GET / HTTP/1.1\\r\\n\\r\\n'",
        "os.urandom(100_000)",
        "message(HELLO, {}, magic=b'PSTX')",
        "message(HELLO, {}, version=1)",
        "message(HELLO, {}, length=2**32 - 1)",
        "message(HELLO, {}, length=64 * 1024 + 1)",
        "message(99, {})",
        "message(OK, {})",
        "message(ERROR, {})",
        "message(HELLO, [])",
        "message(HELLO, b'')",
        "message(HELLO, b'\\xff')",
        "message(HELLO, b'{\"a\": NaN}')",
        "message(HELLO, b'[' * 60_000)",
        "message(HELLO, b'1' * 60_000)",
        "message(HELLO, {'unexpected': 1})",
        "message(STOP, {})",
        "message(FLUSH, {})",
        "message(START, {'hz': 99})",
        "message(HELLO, {})[:5] + b'\\xff' * 50",
    ],
)
def test_rubbish_is_answered_with_an_error_and_ends_its_connection(service, sent):
    program = f"""
c = connect(SOCKET)
c.sendall({sent})
try:
    while (answer := receive(c)) is not None:
        tell(answer)
except ConnectionResetError:
    pass  # what was sent behind the rubbish is thrown away unread
"""
    ((kind, body),) = service.stranger(program, ALICE).finish()
    assert (kind, body["error"]) == (65, "protocol")
    assert body["message"].endswith(".")


@pytest.mark.parametrize(
    "options",
    [
        {"hz": 99, "pid": "1"},
        {"hz": 99, "pid": 1.5},
        {"hz": 99, "pid": True},
        {"hz": 99, "wait_python": 1},
        {"hz": 99, "kernel_stacks": None},
        {"hz": 99, "unknown": 1},
    ],
)
def test_a_malformed_start_ends_its_connection(service, options):
    program = f"c = connect(SOCKET)\ntell(start(c, **{options!r}))\ntell(receive(c))"
    (_, body), after = service.stranger(program, ALICE).finish()
    assert body["error"] == "protocol"
    assert after is None


def test_rates_that_the_kernel_does_not_allow_are_refused_and_then_another_one_taken(service):
    program = """
c = connect(SOCKET)
for hz in (0, -1, 20_001, 10**9, 10**30, 99.5, "99", True, None):
    tell(start(c, hz=hz)[1])
tell(start(c, hz=99)[0])
"""
    *refused, accepted = service.stranger(program, ALICE).finish()
    assert {answer["error"] for answer in refused} == {"bad-rate"}
    assert all("from 1 to 20000 Hz" in answer["message"] for answer in refused)
    assert accepted == 64


def test_a_flood_ends_its_connection(service):
    program = """
c = connect(SOCKET)
try:
    while True:
        answer = ask(c, HELLO)
        if answer is None or answer[0] == ERROR:
            tell(answer)
            break
except OSError:
    tell("closed")
"""
    ((kind, body),) = service.stranger(program, ALICE).finish()
    assert (kind, body["error"]) == (65, "protocol")
    assert "too many messages" in body["message"]


def test_a_client_that_never_reads_is_left(service):
    program = """
c = connect(SOCKET)
try:
    while True:
        c.sendall(message(HELLO, {}))
        time.sleep(0.006)
except OSError as error:
    tell(type(error).__name__)
"""
    (ended,) = service.stranger(program, ALICE).finish()
    assert ended in ("BrokenPipeError", "ConnectionResetError")


def test_a_client_that_leaves_in_the_middle_of_a_message_leaves_nothing(service):
    program = "c = connect(SOCKET)\nc.sendall(message(HELLO, {})[:7])"
    assert service.stranger(program, ALICE).finish() == []


def test_a_client_that_leaves_without_an_answer_leaves_nothing(service):
    program = (
        "c = connect(SOCKET)\nsocket.send_fds(c, [message(START, {'hz': 99})], [memory_file()])"
    )
    assert service.stranger(program, ALICE).finish() == []


@pytest.mark.parametrize("count", [2, 4, 200])
def test_more_than_one_descriptor_ends_the_connection(service, count):
    program = f"c = connect(SOCKET)\ntell(ask(c, START, {{'hz': 99}}, [memory_file()] * {count}))"
    ((_, body),) = service.stranger(program, ALICE).finish()
    assert body["error"] == "protocol"
    assert "too many descriptors" in body["message"]


def test_a_descriptor_without_a_start_ends_the_connection(service):
    program = "tell(ask(connect(SOCKET), HELLO, {}, [memory_file()]))"
    ((_, body),) = service.stranger(program, ALICE).finish()
    assert body["error"] == "protocol"


def test_a_second_start_is_refused_and_the_first_recording_goes_on(service):
    program = """
c = connect(SOCKET)
tell(start(c)[0])
tell(start(c)[1]["error"])
burn(0.1)
tell(ask(c, STOP)[1]["reason"])
"""
    assert service.stranger(program, ALICE).finish() == [64, "busy", "stopped"]


def test_descriptors_of_refused_starts_are_closed(service):
    program = """
c = connect(SOCKET)
for hz in (0,) * 40:
    assert start(c, hz=hz)[0] == ERROR
    time.sleep(0.01)
ask(c, PREPARE)
tell("ready")
wait()
"""
    client = service.stranger(program, ALICE)
    assert client.said() == "ready"
    worker = service.workers()[-1]
    assert not _files_named(worker, "recording")


def test_a_recordings_file_is_closed_when_it_has_ended(service):
    program = """
c = connect(SOCKET)
start(c)
tell(ask(c, STOP)[0])
wait()
"""
    client = service.stranger(program, ALICE)
    assert client.said() == 64
    worker = service.workers()[-1]
    assert not _files_named(worker, "recording")


def _files_named(pid, name):
    return [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if name in str(fd.readlink())]
