"""Names of native functions, from the symbol tables of ELF files."""

from __future__ import annotations

import mmap
import os
import stat

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np


if TYPE_CHECKING:
    from typing import BinaryIO

    from elftools.elf.sections import Section
    from elftools.elf.segments import Segment
    from numpy.typing import NDArray

_SYMBOL = np.dtype(
    [
        ("name", "<u4"),
        ("info", "u1"),
        ("other", "u1"),
        ("section", "<u2"),
        ("value", "<u8"),
        ("size", "<u8"),
    ]
)
_SEGMENT = np.dtype([("offset", "<u8"), ("address", "<u8"), ("size", "<u8")])
_FUNCTION_TYPES = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_LONGEST_NAME = 4096
_LARGEST_PART = 1 << 30
# Version 1; then how three things are encoded: a 32-bit distance from here, an unsigned 32-bit
# count, and a table of pairs of 32-bit distances from the header's own address.
_EH_FRAME_HEADER = bytes([1, 0x1B, 0x03, 0x3B])


class MappedFile(NamedTuple):
    """Which file a mapping is of, as ``/proc/PID/maps`` tells it."""

    inode: int
    major: int
    minor: int


class SymbolTable(NamedTuple):
    """The functions of one ELF file.

    Attributes
    ----------
    segments : numpy.ndarray
        Loaded parts of the file: offset, address and size of each.
    symbols : numpy.ndarray
        The functions, by address; of equal addresses the global name is the last.
    names : bytes
        Where ``symbols["name"]`` points to.
    starts : numpy.ndarray of uint64
        Addresses where functions begin, with a name or without.
    """

    segments: NDArray[np.void]
    symbols: NDArray[np.void]
    names: bytes
    starts: NDArray[np.uint64]


def function_names(path: str, offsets: NDArray[np.uint64], mapped: MappedFile) -> list[str]:
    """Name the functions at offsets in a file.

    Parameters
    ----------
    path : str
        As ``/proc/PID/maps`` tells it.  What is no file, such as ``[vdso]``, is its own name.
    offsets : numpy.ndarray of uint64
        In the file.
    mapped : MappedFile
        The file that had this path then.

    Returns
    -------
    list of str
        ``libfoo.so+0x1234`` where the file can't be read, is another one by now, or has no
        symbol there: the offset of the function's first byte if that is known, else the one
        asked for.
    """
    if not path.startswith("/"):
        return [path] * len(offsets)
    table = _table(path, mapped)
    if table is None:
        return _by_offset(path, offsets)
    segments, symbols = table.segments, table.symbols
    segment = np.searchsorted(segments["offset"], offsets, side="right") - 1
    to_address = segments["address"][segment] - segments["offset"][segment]
    loaded = (segment >= 0) & (offsets - segments["offset"][segment] < segments["size"][segment])
    address = offsets + to_address

    begin = np.append(table.starts, np.uint64(0))[
        np.searchsorted(table.starts, address, side="right") - 1
    ]
    names = _by_offset(path, np.where(loaded & (begin > 0), begin - to_address, offsets))
    at = np.searchsorted(symbols["value"], address, side="right") - 1
    for n in np.flatnonzero(loaded & (at >= 0)).tolist():
        symbol = symbols[at[n]]
        if address[n] - symbol["value"] < symbol["size"]:
            names[n] = _text(table.names, int(symbol["name"]))
    return names


def _by_offset(path: str, offsets: NDArray[np.uint64]) -> list[str]:
    return [f"{os.path.basename(path)}+{x:#x}" for x in offsets.tolist()]  # noqa: PTH119


def _table(path: str, mapped: MappedFile) -> SymbolTable | None:
    try:
        status = os.stat(path)  # noqa: PTH116  (surrogates in names, and a key for the cache)
        if not stat.S_ISREG(status.st_mode):
            return None
        version = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
        here = MappedFile(status.st_ino, os.major(status.st_dev), os.minor(status.st_dev))
        if mapped != here and mapped != _map(path, version):
            return None
        return _read(path, version)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=256)
def _map(path: str, _version: tuple[int, ...]) -> MappedFile | None:
    """Ask the kernel how it tells a mapping of a file: on some file systems, not as stat does.

    Those of overlayfs are of a file below, and a subvolume of btrfs has a device of its own.
    """
    with (
        open(path, "rb") as file,  # noqa: PTH123  (surrogates in names)
        mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ) as page,
    ):
        start = b"%08x-" % np.frombuffer(page, np.uint8).ctypes.data
        for line in Path("/proc/self/maps").read_bytes().splitlines():
            if line.startswith(start):
                _, _, _, device, inode, *_ = line.split(None, 5)
                major, minor = (int(number, 16) for number in device.split(b":"))
                return MappedFile(int(inode), major, minor)
    return None


def _text(names: bytes, start: int) -> str:
    end = names.find(b"\0", start, start + _LONGEST_NAME)
    return names[start : end if end >= 0 else start + _LONGEST_NAME].decode("utf-8", "replace")


@lru_cache(maxsize=256)
def _read(path: str, _version: tuple[int, ...]) -> SymbolTable | None:
    """Read a file's symbol table; None if it is not an ELF file that can be understood."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415  (only when native frames are)

    with open(path, "rb") as file:  # noqa: PTH123  (surrogates in names)
        try:
            return _parse(file)
        except (ELFError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
            # The file may be anything that a target has mapped.
            return None


def _parse(file: BinaryIO) -> SymbolTable | None:
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415  (only when native frames are)

    elf = ELFFile(file)
    if elf.elfclass != 64 or not elf.little_endian:
        return None
    loaded = [(x["p_offset"], x["p_vaddr"], x["p_filesz"]) for x in elf.iter_segments("PT_LOAD")]
    segments = np.sort(np.array(loaded, _SEGMENT), order="offset")
    if not len(segments):
        return None
    starts = _function_starts(file, next(elf.iter_segments("PT_GNU_EH_FRAME"), None))
    ends = {n: x["sh_addr"] + x["sh_size"] for n, x in enumerate(elf.iter_sections())}
    for wanted in ("SHT_SYMTAB", "SHT_DYNSYM"):
        section = next(elf.iter_sections(wanted), None)
        if section is not None and section["sh_size"]:
            names = _bytes(file, elf.get_section(section["sh_link"]))
            return SymbolTable(segments, _functions(_bytes(file, section), ends), names, starts)
    return SymbolTable(segments, np.zeros(0, _SYMBOL), b"", starts)


def _functions(data: bytes, section_ends: dict[int, int]) -> NDArray[np.void]:
    symbols: NDArray[np.void] = np.frombuffer(data, _SYMBOL, len(data) // _SYMBOL.itemsize)
    defined = np.isin(symbols["section"], list(section_ends)) & (symbols["section"] != 0)
    symbols = symbols[np.isin(symbols["info"] & 15, _FUNCTION_TYPES) & defined]
    symbols = symbols[np.lexsort((symbols["info"] >> 4, symbols["value"]))]
    # Hand-written assembly often has no size: such a function ends where its section does;
    # where the next function begins, that one is found.
    for n in np.flatnonzero(symbols["size"] == 0).tolist():
        end = section_ends[int(symbols["section"][n])]
        symbols["size"][n] = max(end - int(symbols["value"][n]), 0)
    return symbols


def _function_starts(file: BinaryIO, segment: Segment | None) -> NDArray[np.uint64]:
    """Read where functions begin from the index of the unwinding tables.

    Even stripped files have it.  The layout is that of ``.eh_frame_hdr`` in the Linux
    Standard Base, section 10.6.2, with the encodings that every linker writes.
    """
    none = np.zeros(0, np.uint64)
    if segment is None:
        return none
    data = _bytes(file, segment)
    if data[:4] != _EH_FRAME_HEADER:
        return none
    count = min(int.from_bytes(data[8:12], "little"), (len(data) - 12) // 8)
    offsets = np.frombuffer(data, "<i4", 2 * count, 12)[::2].astype(np.int64)
    return np.sort((offsets + np.int64(segment["p_vaddr"])).astype(np.uint64))


def _bytes(file: BinaryIO, part: Section | Segment) -> bytes:
    prefix = "p" if "p_offset" in part.header else "sh"
    offset, size = part[f"{prefix}_offset"], part["p_filesz" if prefix == "p" else "sh_size"]
    if offset + size > os.fstat(file.fileno()).st_size or size > _LARGEST_PART:
        raise ValueError("a part is larger than its file, or than any real one")
    file.seek(offset)
    data: bytes = file.read(size)
    return data
