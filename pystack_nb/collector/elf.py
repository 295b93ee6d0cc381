"""Reads what the collector needs from an ELF file that belongs to someone else.

Only 64-bit little-endian files, and of these only the program headers, named symbols and named
sections.  Every offset and size is compared with the size of the file before it is used, so that a
file made to harm its reader costs a bounded amount of memory and gets an `ElfError`.

Source of the structures: elf(5).
"""

from __future__ import annotations

import os
import struct

from array import array
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from collections.abc import Iterable

ET_EXEC = 2
ET_DYN = 3
PT_LOAD = 1
PF_X = 1
SHT_SYMTAB = 2
SHT_NOBITS = 8
SHT_DYNSYM = 11
SHN_UNDEF = 0
PAGE_SIZE = 4096

_MAX_PROGRAM_HEADERS = 256
_MAX_SECTIONS = 4096
_MAX_TABLE = 64 << 20  # bytes of one symbol or string table: Blender's has 20 MiB
_MAX_MATCHES = 8  # places in a string table where one name may stand
_MAX_SECTION_NAME = 64

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_WORDS = _SYMBOL.size // 4


class ElfError(Exception):
    """The file is not an ELF file that this reader understands."""


class Segment(NamedTuple):
    """One PT_LOAD program header."""

    flags: int
    offset: int
    address: int
    file_size: int
    memory_size: int


class Section(NamedTuple):
    """One section header."""

    name: bytes
    kind: int
    address: int
    offset: int
    size: int
    link: int
    entry_size: int


class ElfFile:
    """An open ELF file; the descriptor stays the caller's.

    Parameters
    ----------
    fd
        A descriptor of a regular file, open for reading.

    Raises
    ------
    ElfError
        When the file is cut short, of another class or byte order, or contradicts itself.

    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        (
            ident,
            self.kind,
            _,
            _,
            _,
            program_offset,
            self._section_offset,
            _,
            _,
            program_entry,
            program_count,
            self._section_entry,
            self._section_count,
            self._section_names,
        ) = _HEADER.unpack(self._read(0, _HEADER.size))
        if ident[:6] != b"\x7fELF\x02\x01":
            raise ElfError("not a 64-bit little-endian ELF file")
        if self.kind not in {ET_EXEC, ET_DYN}:
            raise ElfError("neither an executable nor a shared object")
        if program_entry != _PROGRAM_HEADER.size or program_count > _MAX_PROGRAM_HEADERS:
            raise ElfError("program headers of an unknown form")
        table = self._read(program_offset, program_count * program_entry)
        self.segments = tuple(
            Segment(flags, offset, address, file_size, memory_size)
            for kind, flags, offset, address, _, file_size, memory_size, _ in (
                _PROGRAM_HEADER.iter_unpack(table)
            )
            if kind == PT_LOAD
        )

    def _read(self, offset: int, size: int) -> bytes:
        if size > _MAX_TABLE or offset + size > self._size:
            raise ElfError("a table lies outside of the file")
        pieces = []
        while size:
            try:
                piece = os.pread(self._fd, size, offset)
            except OSError as error:
                raise ElfError(str(error)) from error
            if not piece:
                raise ElfError("the file was cut short while it was read")
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def sections(self) -> tuple[Section, ...]:
        """All section headers, with their names; empty for a file stripped of them."""
        if not self._section_count:
            return ()
        if self._section_entry != _SECTION_HEADER.size or self._section_count > _MAX_SECTIONS:
            raise ElfError("section headers of an unknown form")
        headers = list(
            _SECTION_HEADER.iter_unpack(
                self._read(self._section_offset, self._section_count * self._section_entry)
            )
        )
        if self._section_names >= len(headers):
            raise ElfError("no section holds the names of the sections")
        names = self._read(*headers[self._section_names][4:6])
        return tuple(
            Section(_name_at(names, name), kind, address, offset, size, link, entry_size)
            for name, kind, _, address, offset, size, link, _, _, entry_size in headers
        )

    def symbols(self, names: Iterable[str]) -> dict[str, int]:
        """Find defined symbols, in .dynsym first and in .symtab for what is not there.

        Parameters
        ----------
        names
            Names of symbols.

        Returns
        -------
        dict
            Value (address before relocation) of each symbol that was found.

        """
        found: dict[str, int] = {}
        sections = self.sections()
        for kind in (SHT_DYNSYM, SHT_SYMTAB):
            missing = [name for name in names if name not in found]
            table = next((section for section in sections if section.kind == kind), None)
            if table and missing:
                found |= self._find(table, sections, missing)
        return found

    def _find(
        self, section: Section, sections: tuple[Section, ...], names: list[str]
    ) -> dict[str, int]:
        if section.entry_size != _SYMBOL.size or section.link >= len(sections):
            raise ElfError("a symbol table of an unknown form")
        count = section.size // _SYMBOL.size
        table = self._read(section.offset, count * _SYMBOL.size)
        strings = self._read(sections[section.link].offset, sections[section.link].size)
        name_column = array("I", table)[::_SYMBOL_WORDS]
        found = {}
        for name in names:
            for place in _places(strings, name.encode()):
                value = _value(table, name_column, place)
                if value is not None:
                    found[name] = value
                    break
        return found


def _name_at(strings: bytes, place: int) -> bytes:
    end = strings.find(b"\0", place, place + _MAX_SECTION_NAME)
    return strings[place:end] if end >= 0 else b""


def _places(strings: bytes, name: bytes) -> list[int]:
    """Where a name ends a string; linkers let a short name be the tail of a longer one."""
    places: list[int] = []
    place = strings.find(name + b"\0")
    while place >= 0 and len(places) < _MAX_MATCHES:
        places.append(place)
        place = strings.find(name + b"\0", place + 1)
    return places


def _value(table: bytes, name_column: array[int], place: int) -> int | None:
    start = 0
    for _ in range(_MAX_MATCHES):
        try:
            index = name_column.index(place, start)
        except ValueError:
            return None
        _, _, _, section, value, _ = _SYMBOL.unpack_from(table, index * _SYMBOL.size)
        if section != SHN_UNDEF:
            return int(value)
        start = index + 1
    return None
