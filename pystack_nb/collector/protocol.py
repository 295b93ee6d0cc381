"""Messages between notebook and collector: framing and names, used by both sides.

A message is a fixed header (magic, version, type, zero, length of the body) and a body, one
JSON object in UTF-8.  Each request has exactly one reply, ``OK`` or ``ERROR``.  ``START``
carries file descriptors as ancillary data, that of the recording's file and, when its body has
``calls``, that of the memory which the probe shares; no other message carries any.
"""

from __future__ import annotations

import enum
import json
import struct

from typing import Any, NoReturn


VERSION = 2
MAX_BODY = 64 * 1024

_MAGIC = b"PSTC"
_HEADER = struct.Struct("<4sBBHI")


class MessageType(enum.IntEnum):
    """What a message asks for, or answers."""

    HELLO = 1
    PREPARE = 2
    START = 3
    STOP = 4
    FLUSH = 5
    BYE = 6
    OK = 64
    ERROR = 65


class CollectorProblem(Exception):  # noqa: N818 - crosses the socket as a reply, not as an error
    """Something that the collector tells its client, instead of doing what was asked.

    Parameters
    ----------
    code
        One of the codes that `pystack_nb.errors.from_collector` knows.
    message
        What is wrong, ending with what the user can do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def encode(kind: MessageType, body: dict[str, Any]) -> bytes:
    """Return the bytes of one message.

    Raises
    ------
    CollectorProblem
        When the body is longer than `MAX_BODY` bytes.
    """
    data = json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    if len(data) > MAX_BODY:
        raise CollectorProblem("protocol", f"a message of {len(data)} bytes: shorten it.")
    return _HEADER.pack(_MAGIC, VERSION, kind, 0, len(data)) + data


class Decoder:
    """Cut a stream of bytes into messages, trusting none of them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what was received."""
        self._buffer += data

    def next(self) -> tuple[MessageType, dict[str, Any]] | None:
        """Return the next whole message, or None until more is received.

        Raises
        ------
        CollectorProblem
            When the bytes are no message of this version.
        """
        if len(self._buffer) < _HEADER.size:
            return None
        magic, version, number, zero, length = _HEADER.unpack_from(self._buffer)
        if magic != _MAGIC or zero:
            raise _malformed("it does not begin like a message")
        if version != VERSION:
            raise CollectorProblem(
                "protocol",
                f"the other side speaks version {version} of the protocol, this one {VERSION}: "
                "install the same version of pystack_nb on both sides.",
            )
        if length > MAX_BODY:
            raise _malformed(f"{length} bytes are more than the {MAX_BODY} allowed")
        try:
            kind = MessageType(number)
        except ValueError:
            raise _malformed(f"there is no type {number}") from None
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        body = _parse(bytes(self._buffer[_HEADER.size : end]))
        del self._buffer[:end]
        return kind, body


def _parse(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise _malformed("its body is not JSON") from None
    if not isinstance(body, dict):
        raise _malformed("its body is not an object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _malformed(reason: str) -> CollectorProblem:
    return CollectorProblem(
        "protocol", f"malformed message: {reason}. Connect with pystack_nb's own client."
    )
