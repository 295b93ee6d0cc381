"""The records of a spool file, found by their sizes and gathered by kind.

A file may end anywhere, since whoever wrote it may have been killed, and any byte of it may
be wrong: every length is checked before anything is read by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from pystack_nb import wire
from pystack_nb.errors import RecordingFormatError


if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from pystack_nb.ragged import Ints

Heads: TypeAlias = "np.ndarray[Any, np.dtype[np.void]]"
_WORD = 8
_LARGEST_FILE_HEADER = 4096


@dataclass(frozen=True)
class Kind:
    """The records of one kind, in the order of the file.

    Attributes
    ----------
    heads : numpy.ndarray
        The fixed part of each record.
    starts : numpy.ndarray of int64
        Where each record begins, in words of 8 bytes.
    tails : numpy.ndarray of int64
        Bytes that follow the fixed part.
    """

    heads: Heads
    starts: Ints
    tails: Ints

    def take(self, chosen: NDArray[Any]) -> Kind:
        """Choose some of the records, by number or by mask."""
        return Kind(self.heads[chosen], self.starts[chosen], self.tails[chosen])


class Records:
    """All records of a spool file.

    Parameters
    ----------
    buffer : bytes-like
        The file; a block cut short still gives its whole records.

    Attributes
    ----------
    words : numpy.ndarray of uint64
        The file's bytes.
    problems : list of str
        What is wrong with the file; empty if nothing is.

    Raises
    ------
    RecordingFormatError
        If this is no spool file at all, or one of another version.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._bytes = memoryview(buffer).cast("B")
        size = len(self._bytes)
        self.words: NDArray[np.uint64] = np.frombuffer(self._bytes, "<u8", size // _WORD)
        self.problems: list[str] = []
        blocks = list(self._blocks(_file_header_size(self._bytes)))
        starts = np.concatenate([x for x, _ in blocks]) if blocks else np.zeros(0, np.int64)
        padded = np.concatenate([x for _, x in blocks]) if blocks else starts
        self._starts = starts // _WORD
        header = self.words[self._starts]
        self._size = (header & np.uint64(0xFFFFFFFF)).astype(np.int64)
        self._type = (header >> np.uint64(32)).astype(np.uint16)
        self._whole = (self._size >= wire.HEADER.itemsize) & (self._size <= padded)
        self._note_damage(~self._whole)

    def of(self, kind: wire.RecordType, head: np.dtype[Any]) -> Kind:
        """Gather the records of one kind whose fixed part is `head`."""
        wanted = (self._type == kind) & self._whole
        long_enough = wanted & (self._size >= head.itemsize)
        self._note_damage(wanted & ~long_enough)
        at = np.flatnonzero(long_enough)
        starts = self._starts[at]
        gathered = self.words[starts[:, np.newaxis] + np.arange(head.itemsize // _WORD)]
        heads = gathered.view(head).reshape(-1) if len(at) else np.zeros(0, head)
        return Kind(heads, starts, self._size[at] - head.itemsize)

    def keep(self, kind: Kind, valid: NDArray[np.bool_]) -> Kind:
        """Drop the records that are not `valid`, and note how many there were."""
        self._note_damage(~valid)
        return kind.take(valid)

    def tail(self, kind: Kind, n: int) -> bytes:
        """Copy the bytes behind the fixed part of record `n`."""
        start = int(kind.starts[n]) * _WORD + kind.heads.dtype.itemsize
        return bytes(self._bytes[start : start + int(kind.tails[n])])

    def _note_damage(self, damaged: NDArray[np.bool_]) -> None:
        if damaged.any():
            self.problems.append(
                f"{np.count_nonzero(damaged)} records are damaged and were left out"
            )

    def _blocks(self, position: int) -> Iterator[tuple[Ints, Ints]]:
        """Give each block's records: where they start, and their sizes."""
        end = len(self._bytes)
        while position < end:
            data = position + wire.BLOCK_HEADER.itemsize
            if data > end:
                self.problems.append("the file is cut short")
                return
            magic, count, data_size = np.frombuffer(self._bytes, wire.BLOCK_HEADER, 1, position)[
                0
            ].item()
            if magic != wire.BLOCK_MAGIC:
                self.problems.append(
                    f"there is no block at byte {position}: nothing after it is read"
                )
                return
            sizes_at, data = data, data + (4 * count + 7) // 8 * 8
            if data > end:
                self.problems.append("the file is cut short")
                return
            sizes = np.frombuffer(self._bytes, "<u4", count, sizes_at).astype(np.int64)
            ends = data + np.cumsum(sizes)
            if ((sizes % _WORD) | (sizes < wire.HEADER.itemsize)).any() or sizes.sum() != data_size:
                self.problems.append(
                    f"the block at byte {position} is damaged: nothing from it on is read"
                )
                return
            whole = ends <= end
            yield (ends - sizes)[whole], sizes[whole]
            if not whole.all():
                self.problems.append("the file is cut short")
                return
            position = data + data_size


def _file_header_size(data: memoryview) -> int:
    if len(data) < wire.FILE_HEADER.itemsize or bytes(data[:8]) != wire.FILE_MAGIC:
        raise RecordingFormatError(
            "these bytes are no recording of pystack_nb; give the bytes of a spool file unchanged"
        )
    _, version, size = np.frombuffer(data, wire.FILE_HEADER, 1)[0].item()
    if version != wire.FORMAT:
        raise RecordingFormatError(
            f"the recording has format {version} and this pystack_nb reads {wire.FORMAT}; "
            "read it with the version that wrote it"
        )
    if size % _WORD or not wire.FILE_HEADER.itemsize <= size <= _LARGEST_FILE_HEADER:
        raise RecordingFormatError(
            f"the recording's header of {size} bytes is damaged; make the recording again"
        )
    return int(size)
