"""The memory that the probe of calls mode shares with the collector: checked, and copied out of.

The recorded process may write to it at any moment, also what makes no sense.  Nothing is read in
place, therefore: each piece is copied first, and then what the copy says is checked.

Structures of ``bpf/pystack_time.h``, below "Calls mode" there.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct

from pathlib import Path
from typing import TYPE_CHECKING

from .descriptor import F_SEAL_FUTURE_WRITE
from .linux import file_system_type
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PST_FORMAT = 1
PST_CALLS = 9
PST_CLOCK = 10
PST_COUNTS = 11
PST_CALLS_REST = 1

PST_BATCH_SIZE = 16384
PST_BATCH_WORDS = 2042
PST_BATCHES = 1024
PST_BATCHES_AT = 4096
PST_COUNTED = 65536
PST_COUNTS_AT = PST_BATCHES_AT + PST_BATCHES * PST_BATCH_SIZE
PST_SHARED_SIZE = PST_COUNTS_AT + PST_COUNTED * 16
PST_SHARED_MAGIC = 0x534C4C4143545350

_CALL_COUNTERS = 16
_TMPFS = 0x01021994  # linux/magic.h; of memfds too, but not of those in huge pages

# Up to where `sent` begins, the counters alone, and a batch up to its words.
_SHARED = struct.Struct("<Q4I")
_COUNTERS = struct.Struct(f"<{_CALL_COUNTERS}Q")
_COUNTERS_AT = _SHARED.size + 16
_BATCH = struct.Struct("<4I4Q")

_CALLS = struct.Struct("<IHHQ4I16x")
_CLOCK = struct.Struct("<IHHI4x")
_PAIR = struct.Struct("<3Q")
_COUNTS = struct.Struct(f"<IHHI4x{_CALL_COUNTERS}Q")
_CODE_COUNT = struct.Struct("<I4xQQ")

_COUNTS_AT_ONCE = 1024
_NO_COUNTS = bytes(16 * _COUNTS_AT_ONCE)


class SharedCalls:
    """What a probe has stored and not sent, or only counted.

    Parameters
    ----------
    fd
        The memfd; it stays the caller's.
    uid
        Who must own it; None: a file of the reader's own, which nobody writes to any more.

    Attributes
    ----------
    clock : int
        ``enum pst_clock_source``.

    Raises
    ------
    CollectorProblem
        ``bad-descriptor``, saying what is wrong.
    """

    def __init__(self, fd: int, uid: int | None) -> None:
        if uid is not None:
            _check(fd, uid)
        self.fd = fd
        magic, number, self.clock, _, _ = self._header()
        if (magic, number) != (PST_SHARED_MAGIC, PST_FORMAT):
            raise _refuse("a probe of another version wrote it")

    def records(self, pid: int) -> Iterator[bytes]:
        """Give each batch that holds calls as a ``PST_CALLS``, and one ``PST_COUNTS``.

        Parameters
        ----------
        pid
            As the recorded process itself knows it.
        """
        *_, used, _ = self._header()
        for index in range(min(used, PST_BATCHES)):
            data = os.pread(self.fd, PST_BATCH_SIZE, PST_BATCHES_AT + index * PST_BATCH_SIZE)
            thread, tid, count, *_ = _BATCH.unpack_from(data)
            if thread and 0 < count <= PST_BATCH_WORDS:
                data = data[: _BATCH.size + 8 * count]
                size = _CALLS.size + len(data)
                yield _CALLS.pack(size, PST_CALLS, PST_CALLS_REST, 0, pid, tid, 0, 0) + data
        yield self._counts()

    def _header(self) -> tuple[int, ...]:
        return _SHARED.unpack(os.pread(self.fd, _SHARED.size, 0))

    def clock_records(self, now: Callable[[], tuple[int, int, int] | None]) -> Iterator[bytes]:
        """Give the pair of times of the recording's start as a ``PST_CLOCK``, and one of now.

        Parameters
        ----------
        now
            Reads the processor's counter, CLOCK_MONOTONIC and the counter again.
        """
        start = _PAIR.unpack(os.pread(self.fd, _PAIR.size, _COUNTERS_AT + _COUNTERS.size))
        yield self._clock(start)
        pair = now() if self.clock else None
        if pair and start[1] < pair[1]:  # else the machine has been started anew
            yield self._clock(pair)

    def _clock(self, pair: tuple[int, ...]) -> bytes:
        size = _CLOCK.size + _PAIR.size
        return _CLOCK.pack(size, PST_CLOCK, 0, self.clock) + _PAIR.pack(*pair)

    def _counts(self) -> bytes:
        counters = os.pread(self.fd, _COUNTERS.size, _COUNTERS_AT)
        codes = []
        for first in range(0, PST_COUNTED, _COUNTS_AT_ONCE):
            data = os.pread(self.fd, len(_NO_COUNTS), PST_COUNTS_AT + 16 * first)
            if data == _NO_COUNTS:  # as most are: there are fewer functions
                continue
            words = memoryview(data).cast("Q")
            codes += [
                _CODE_COUNT.pack(code_id, calls, words[2 * (code_id - first) + 1])
                for code_id, calls in enumerate(words[::2], first)
                if calls
            ]
        size = _COUNTS.size + len(codes) * _CODE_COUNT.size
        head = _COUNTS.pack(size, PST_COUNTS, 0, len(codes), *_COUNTERS.unpack(counters))
        return head + b"".join(codes)


def _check(fd: int, uid: int) -> None:
    if file_system_type(fd) != _TMPFS or not _is_memfd(fd):
        raise _refuse("it is not a memfd")
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size != PST_SHARED_SIZE:
        raise _refuse(f"it is not {PST_SHARED_SIZE} bytes long")
    if status.st_uid != uid:
        raise _refuse("it belongs to another user")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise _refuse("it is not open for reading and writing")
    # Whoever shrinks what another process has mapped kills that process.
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    if not (seals & fcntl.F_SEAL_SHRINK and seals & fcntl.F_SEAL_GROW):
        raise _refuse("it is not sealed against shrinking and growing")
    if seals & (fcntl.F_SEAL_WRITE | F_SEAL_FUTURE_WRITE):
        raise _refuse("it is sealed against writing")


def _is_memfd(fd: int) -> bool:
    return str(Path(f"/proc/self/fd/{fd}").readlink()).startswith("/memfd:")


def _refuse(reason: str) -> CollectorProblem:
    return CollectorProblem(
        "bad-descriptor",
        f"the memory of the calls' probe is refused, {reason}: install the same version of "
        "pystack_nb on both sides.",
    )
