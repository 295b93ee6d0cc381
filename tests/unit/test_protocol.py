"""Messages between notebook and collector, cut out of a stream of bytes."""

from __future__ import annotations

import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb.collector.protocol import (
    MAX_BODY,
    CollectorProblem,
    Decoder,
    MessageType,
    encode,
)


bodies = st.dictionaries(
    st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
)
messages = st.lists(st.tuples(st.sampled_from(MessageType), bodies), max_size=5)


def problem_of(decoder):
    """The code of the problem that a stream ends with, if it does."""
    try:
        while decoder.next():
            pass
    except CollectorProblem as problem:
        return problem.code
    return None


@given(messages, st.integers(1, 50))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(sent, piece):
    data = b"".join(encode(kind, body) for kind, body in sent)
    decoder = Decoder()
    received = []
    for start in range(0, len(data), piece):
        decoder.feed(data[start : start + piece])
        while message := decoder.next():
            received.append(message)
    assert received == sent


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_a_problem_of_the_protocol(data):
    decoder = Decoder()
    decoder.feed(data)
    assert problem_of(decoder) in (None, "protocol")


@given(st.binary(min_size=1, max_size=12), st.integers(0, 11))
def test_a_message_that_was_changed_is_never_taken_for_another_kind_of_error(noise, start):
    data = bytearray(encode(MessageType.HELLO, {"a": 1}))
    data[start : start + len(noise)] = noise
    decoder = Decoder()
    decoder.feed(bytes(data))
    assert problem_of(decoder) in (None, "protocol")


def test_a_length_beyond_the_limit_is_refused_before_the_body_has_come():
    data = bytearray(encode(MessageType.HELLO, {}))
    data[8:12] = (MAX_BODY + 1).to_bytes(4, "little")
    decoder = Decoder()
    decoder.feed(bytes(data[:12]))
    with pytest.raises(CollectorProblem, match="more than the 65536 allowed"):
        decoder.next()


def test_another_version_is_told_what_to_do():
    data = bytearray(encode(MessageType.HELLO, {}))
    data[4] = 7
    decoder = Decoder()
    decoder.feed(bytes(data))
    with pytest.raises(CollectorProblem, match=r"version 7.*install the same version"):
        decoder.next()


def test_a_body_beyond_the_limit_is_not_sent():
    with pytest.raises(CollectorProblem, match="shorten it"):
        encode(MessageType.HELLO, {"text": "x" * MAX_BODY})


@pytest.mark.parametrize("body", [b"[1]", b"null", b"{", b"\xff", b"[" * 50_000, b'{"a":Infinity}'])
def test_a_body_that_is_no_json_object_is_malformed(body):
    header = encode(MessageType.HELLO, {})[:8]
    decoder = Decoder()
    decoder.feed(header + len(body).to_bytes(4, "little") + body)
    with pytest.raises(CollectorProblem, match="malformed message"):
        decoder.next()
