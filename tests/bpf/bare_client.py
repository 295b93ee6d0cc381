"""A client of the collector in the standard library alone, written from the protocol's description.

Tests run it under another user's identity, with a line or two of their own behind it, as
``python3 -I -c``: that user may be able to read neither this checkout nor its environment.
"""

import fcntl
import json
import os
import socket
import struct
import sys
import time


HELLO, PREPARE, START, STOP, FLUSH, BYE, OK, ERROR = 1, 2, 3, 4, 5, 6, 64, 65
F_ADD_SEALS, F_SEAL_SHRINK = 1033, 2


def connect(path):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.settimeout(30)
    return connection


def message(kind, body, magic=b"PSTC", version=2, length=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(data) if length is None else length
    return struct.pack("<4sBBHI", magic, version, kind, 0, length) + data


def receive(connection):
    head = take(connection, 12)
    if not head:
        return None
    _, _, kind, _, length = struct.unpack("<4sBBHI", head)
    return kind, json.loads(take(connection, length))


def take(connection, size):
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def ask(connection, kind, body=None, fds=()):
    socket.send_fds(connection, [message(kind, body or {})], fds)
    return receive(connection)


def start(connection, fd=None, **options):
    fd = memory_file() if fd is None else fd
    return ask(connection, START, {"hz": 199, **options}, [fd])


def memory_file():
    fd = os.memfd_create("recording", os.MFD_ALLOW_SEALING)
    fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK)
    return fd


def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def tell(value):
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def wait():
    sys.stdin.readline()
