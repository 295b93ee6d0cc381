"""The notebook's side of the socket, against a collector played by the test."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from pystack_nb.collector import client as client_module
from pystack_nb.collector.client import CollectorClient, connect
from pystack_nb.collector.protocol import Decoder, MessageType, encode
from pystack_nb.errors import (
    CollectorError,
    CollectorUnavailableError,
    ProfilerStateError,
    RateError,
)


HELLO = encode(MessageType.OK, {"versions": {"kernel": "6"}})


def answering(*answers: bytes):
    """A client whose requests get these answers, after that for HELLO; b"": it is left."""
    ours, theirs = socket.socketpair()

    def play():
        with theirs, contextlib.suppress(ConnectionError):
            for answer in (HELLO, *answers):
                decoder = Decoder()
                while not decoder.next():
                    data, fds, _, _ = socket.recv_fds(theirs, 65536, 4)
                    for fd in fds:
                        os.close(fd)
                    if not data:
                        return
                    decoder.feed(data)
                if not answer:
                    return
                theirs.sendall(answer)
            theirs.recv(1)  # until the client leaves

    thread = threading.Thread(target=play)
    thread.start()
    client = CollectorClient(ours)
    return client, thread


@pytest.fixture
def descriptor(tmp_path):
    with (tmp_path / "spool").open("wb") as file:
        yield file.fileno()


def test_an_error_of_the_collector_becomes_the_exception_of_its_code(descriptor):
    error = encode(MessageType.ERROR, {"error": "bad-rate", "message": "choose another."})
    client, thread = answering(error)
    with pytest.raises(RateError, match="choose another"):
        client.start(descriptor, hz=0)
    assert client.usable
    assert not client.recording
    client.close()
    thread.join()


def test_a_collector_that_leaves_in_the_middle_is_an_error_that_says_what_to_do():
    client, thread = answering(b"")
    with pytest.raises(CollectorError, match="pystack-nb doctor"):
        client.flush()
    assert not client.usable
    thread.join()


def test_rubbish_from_the_other_end_closes_the_connection():
    client, thread = answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(CollectorError, match="malformed"):
        client.flush()
    assert not client.usable
    thread.join()


def test_an_interrupt_between_question_and_answer_leaves_no_answer_for_the_next(monkeypatch):
    client, thread = answering(encode(MessageType.OK, {}))

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        client.flush()
    assert not client.usable
    thread.join()


def test_one_connection_records_one_thing_at_a_time(descriptor):
    client, thread = answering(encode(MessageType.OK, {"versions": {}}))
    client.start(descriptor)
    with pytest.raises(ProfilerStateError, match="stop it first"):
        client.start(descriptor)
    client.close()
    thread.join()


@pytest.fixture
def pool(monkeypatch):
    """A pool of its own, of connections to collectors played by the test."""
    pool = client_module._Pool()
    monkeypatch.setattr(client_module, "_pool", pool)
    threads = []

    def connect_to_played(_):
        client, thread = answering(
            encode(MessageType.OK, {"versions": {}}),
            encode(MessageType.OK, {"reason": "stopped"}),
            encode(MessageType.ERROR, {"error": "bad-rate", "message": "choose another."}),
        )
        threads.append(thread)
        return client

    monkeypatch.setattr(client_module, "_connect", connect_to_played)
    yield pool
    pool.close()
    for thread in threads:
        thread.join()


def test_two_who_ask_before_either_has_started_get_a_connection_each(pool):
    first, second = connect(), connect()
    assert first is not second
    second.release()
    assert connect() is second


def test_a_connection_is_free_again_after_a_stop_and_after_a_failed_start(pool, descriptor):
    client = connect()
    client.start(descriptor)
    assert connect() is not client
    client.stop()
    assert connect() is client
    assert client.taken
    with pytest.raises(RateError):
        client.start(descriptor, hz=0)
    assert not client.taken


def test_a_recording_goes_on_until_the_answer_to_stop(descriptor, monkeypatch):
    client, thread = answering(encode(MessageType.OK, {"versions": {}}))
    client.start(descriptor)
    seen = []
    monkeypatch.setattr(client, "_call", lambda *_: seen.append(client.recording))
    client.stop()
    assert (seen, client.recording) == ([True], False)
    client.close()
    thread.join()


def test_a_socket_where_nobody_listens_is_told_with_the_three_ways(monkeypatch, tmp_path):
    monkeypatch.setenv("PYSTACK_NB_SOCKET", str(tmp_path / "nobody.sock"))
    with pytest.raises(CollectorUnavailableError) as raised:
        connect()
    for way in ("as root", "sudo", "collector install", "PYSTACK_NB_SOCKET"):
        assert way in str(raised.value)


def test_without_root_sudo_and_service_the_three_ways_are_named(monkeypatch, tmp_path):
    def refuse():
        raise CollectorUnavailableError("sudo asks for a password.")

    monkeypatch.delenv("PYSTACK_NB_SOCKET", raising=False)
    monkeypatch.setattr(client_module, "launch", refuse)
    monkeypatch.setattr(client_module, "SERVICE_SOCKET", tmp_path / "nobody.sock")
    with pytest.raises(CollectorUnavailableError) as raised:
        client_module._connect("")
    for way in ("asks for a password", "as root", "collector install"):
        assert way in str(raised.value)
    # A service is found without it.
    assert "set PYSTACK_NB_SOCKET" not in str(raised.value)


def test_an_installed_service_is_found_without_the_variable(monkeypatch, tmp_path):
    def refuse():
        raise CollectorUnavailableError("sudo asks for a password.")

    path = tmp_path / "collector.sock"
    path.touch()
    monkeypatch.setattr(client_module, "launch", refuse)
    monkeypatch.setattr(client_module, "SERVICE_SOCKET", path)
    monkeypatch.setattr(client_module, "_connect_to", lambda asked: asked)
    assert client_module._connect("") == path


def test_a_socket_of_another_user_is_not_trusted(monkeypatch, tmp_path):
    path = tmp_path / "trap.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    monkeypatch.setenv("PYSTACK_NB_SOCKET", str(path))
    monkeypatch.setattr(client_module, "credentials", lambda _: (1, 42001, 42001))
    listener.listen()
    with listener, pytest.raises(CollectorUnavailableError, match="neither root nor you"):
        connect()
