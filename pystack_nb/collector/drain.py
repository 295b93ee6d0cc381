"""The ctypes face of ``libpystack_time.so``: the ring buffer into the recording's file.

Structures of ``bpf/pystack_time.h`` that the collector writes are packed here with `struct`; the
unit test of the layout compares them with the compiler's.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct

from typing import Any, NamedTuple

from .counters import COUNTERS
from .protocol import CollectorProblem


PST_SAMPLE = 1
PST_STATS = 4
PST_STACK = 5
PST_SYMBOL = 6
PST_META = 7
PST_ADDRESSES = 8
PST_CLOCK = 10

PST_MODULE = 0
PST_KERNEL = 1

_HEADER = struct.Struct("<IHH")
_ADDRESSES = struct.Struct("<IHHiI")
_STACK = struct.Struct("<IHHiI")
_NATIVE_FRAME = struct.Struct("<QII")
_SYMBOL = struct.Struct("<IHHIIQII")
_STATS = struct.Struct(f"<IHHQ{COUNTERS}Q")
_CLOCK = struct.Struct("<IHHI4x3Q")
_KERNEL_LAYOUT = struct.Struct("<6I")

_TAKEN_SIZE = 1 << 20


class Addresses(NamedTuple):
    """A native or kernel stack as the BPF program saw it, innermost frame first."""

    stack_id: int
    kind: int
    addresses: tuple[int, ...]


class Symbol(NamedTuple):
    """A file that is mapped, by its path, or a function of the kernel, by its name.

    Attributes
    ----------
    inode, major, minor
        Which file has that path; 0 for what is no file.
    """

    kind: int
    text: bytes
    inode: int = 0
    major: int = 0
    minor: int = 0


class Losses(ctypes.Structure):
    """What did not get into the file: ``struct pst_losses``.

    Attributes
    ----------
    samples, batches
        Those that the disk had no room for.
    refused
        Batches of calls that can't be what they say.
    """

    _fields_ = (
        ("samples", ctypes.c_uint64),
        ("batches", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
    )


class Library:
    """``libpystack_time.so``, with its functions' types declared."""

    def __init__(self, path: str) -> None:
        try:
            library = ctypes.CDLL(path)
        except OSError as error:
            raise CollectorProblem(
                "internal", f"{path} cannot be loaded ({error}): run `make -C bpf library`."
            ) from None
        pointer = ctypes.c_void_p
        self.create = _function(
            library.pst_drain_create,
            ctypes.c_int,
            (*(ctypes.c_int,) * 3, *(ctypes.c_uint,) * 2, ctypes.POINTER(pointer)),
        )
        self.destroy = _function(library.pst_drain_destroy, None, (pointer,))
        self.flush = _function(library.pst_drain_flush, None, (pointer,))
        self.append = _function(
            library.pst_drain_append, ctypes.c_int, (pointer, ctypes.c_char_p, ctypes.c_size_t)
        )
        self.addresses = _function(
            library.pst_drain_addresses,
            ctypes.c_size_t,
            (pointer, ctypes.c_char_p, ctypes.c_size_t),
        )
        self.error = _function(
            library.pst_drain_error, ctypes.c_int, (pointer, ctypes.POINTER(Losses))
        )
        self.not_copied = _function(library.pst_drain_not_copied, None, (pointer, ctypes.c_uint64))
        self.clock_pair = _function(
            library.pst_clock_pair, None, (ctypes.c_uint32, ctypes.c_uint64 * 3)
        )
        self._kernel_layout = _function(library.pst_kernel_layout, ctypes.c_int, (ctypes.c_char_p,))

    def kernel_layout(self) -> tuple[int, ...]:
        """Offsets in the kernel's structures, in the order of ``struct pst_kernel_layout``."""
        out = ctypes.create_string_buffer(_KERNEL_LAYOUT.size)
        error = self._kernel_layout(out)
        if error:
            raise CollectorProblem(
                "bpf-not-permitted",
                f"the kernel's BTF cannot be read ({os.strerror(-error)}): use a kernel built with "
                "CONFIG_DEBUG_INFO_BTF=y, so that /sys/kernel/btf/vmlinux exists.",
            )
        return _KERNEL_LAYOUT.unpack(out.raw)


class Drain:
    """One recording's way from the ring buffer to its file.

    Parameters
    ----------
    library
        The loaded C library.
    ring_fd, fd
        The ring buffer's map, and the file to append to; both stay the caller's.
    owner
        uid and gid whose file-system identity the writing thread takes.
    shared_fd
        The memory of the calls' probe, which is told what has been drained; it stays the
        caller's.
    """

    def __init__(
        self,
        library: Library,
        ring_fd: int,
        fd: int,
        owner: tuple[int, int],
        shared_fd: int = -1,
    ) -> None:
        self._library = library
        self._drain = ctypes.c_void_p()
        error = library.create(ring_fd, fd, shared_fd, *owner, ctypes.byref(self._drain))
        if error:
            raise CollectorProblem(
                "internal", f"the ring buffer cannot be drained: {os.strerror(-error)}. Try again."
            )

    def close(self) -> None:
        """Drain the rest and end the thread."""
        drain, self._drain = self._drain, ctypes.c_void_p()
        self._library.destroy(drain)

    def flush(self) -> None:
        """Return once all that the kernel gave, and all that was appended, is in the file."""
        self._library.flush(self._drain)

    def error(self) -> tuple[int, Losses]:
        """Errno of the first write that failed, or 0; and what did not get into the file."""
        lost = Losses()
        return self._library.error(self._drain, ctypes.byref(lost)), lost

    def not_copied(self, batches: int) -> None:
        """Tell how many batches of calls never came into the ring buffer, so far."""
        self._library.not_copied(self._drain, batches)

    def addresses(self) -> list[Addresses]:
        """Take the stacks that the BPF program saw for the first time since the last call."""
        out = ctypes.create_string_buffer(_TAKEN_SIZE)
        found = []
        while size := self._library.addresses(self._drain, out, _TAKEN_SIZE):
            data, at = memoryview(out.raw)[:size], 0
            while at < size:
                length, _, kind, stack_id, count = _ADDRESSES.unpack_from(data, at)
                addresses = struct.unpack_from(f"<{count}Q", data, at + _ADDRESSES.size)
                found.append(Addresses(stack_id, kind, addresses))
                at += length
        return found

    def append_meta(self, meta: dict[str, Any]) -> None:
        """Append a ``PST_META`` record."""
        data = json.dumps(meta, separators=(",", ":")).encode()
        self.append(_HEADER.pack(_HEADER.size + len(data), PST_META, 0) + data)

    def append_stats(self, ts_ns: int, counters: list[int]) -> None:
        """Append a ``PST_STATS`` record."""
        self.append(_STATS.pack(_STATS.size, PST_STATS, 0, ts_ns, *counters))

    def append_clock(self, clock: int) -> None:
        """Append a ``PST_CLOCK`` record: this ``enum pst_clock_source`` beside CLOCK_MONOTONIC."""
        pair = (ctypes.c_uint64 * 3)()
        self._library.clock_pair(clock, pair)
        self.append(_CLOCK.pack(_CLOCK.size, PST_CLOCK, 0, clock, *pair))

    def append_symbol(self, symbol_id: int, symbol: Symbol) -> None:
        """Append a ``PST_SYMBOL`` record."""
        kind, text, *file = symbol
        size = _SYMBOL.size + len(text)
        self.append(_SYMBOL.pack(size, PST_SYMBOL, kind, symbol_id, len(text), *file) + text)

    def append_stack(self, stack_id: int, kind: int, frames: list[tuple[int, int]]) -> None:
        """Append a ``PST_STACK`` record; frames are (offset, symbol id), innermost first."""
        size = _STACK.size + _NATIVE_FRAME.size * len(frames)
        self.append(
            _STACK.pack(size, PST_STACK, kind, stack_id, len(frames))
            + b"".join(_NATIVE_FRAME.pack(offset, symbol, 0) for offset, symbol in frames)
        )

    def append(self, record: bytes) -> None:
        """Put a record, with its header, behind what the kernel gave.

        Raises
        ------
        CollectorProblem
            When it is larger than any can be.
        """
        # -ENOBUFS only: the thread empties the buffer each time it looks.
        if self._library.append(self._drain, record, len(record)):
            self.flush()
            if error := self._library.append(self._drain, record, len(record)):
                raise CollectorProblem(
                    "internal", f"a record cannot be appended: {os.strerror(-error)}. Try again."
                )


def _function(function: Any, result: Any, arguments: tuple[Any, ...]) -> Any:
    function.restype = result
    function.argtypes = arguments
    return function
