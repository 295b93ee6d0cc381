"""The ELF reader: right about well-made files, bounded and polite about all others."""

from __future__ import annotations

import os
import struct
import sys

from pathlib import Path

import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb.collector.elf import ET_DYN, ElfError, ElfFile


HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
IDENT = b"\x7fELF\x02\x01\x01" + bytes(9)
NAMES = b"\0.dynsym\0.dynstr\0.shstrtab\0.PyRuntime\0"


def make_elf(symbols: list[tuple[int, int, int]], strings: bytes) -> bytes:
    """Make a shared object of one code segment and these (name, section, value) symbols."""
    program = struct.pack("<IIQQQQQQ", 1, 5, 0x1000, 0x2000, 0, 0x800, 0x900, 0x1000)
    table = b"".join(
        struct.pack("<IBBHQQ", name, 0x11, 0, section, value, 8) for name, section, value in symbols
    )
    place = HEADER.size + len(program)
    sections = [(0, 0, 0, 0, 0, 0, 0)]
    body = b""
    for name, kind, content, link, entry in (
        (b".dynsym", 11, table, 2, 24),
        (b".dynstr", 3, strings, 0, 0),
        (b".shstrtab", 3, NAMES, 0, 0),
        (b".PyRuntime", 1, b"", 0, 0),
    ):
        at = place + len(body)
        sections.append((NAMES.index(name), kind, 0x5000, at, len(content), link, entry))
        body += content
    headers = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, address, at, size, link, 0, 8, entry)
        for name, kind, address, at, size, link, entry in sections
    )
    header = HEADER.pack(
        IDENT,
        ET_DYN,
        62,
        1,
        0,
        HEADER.size,
        place + len(body),
        0,
        HEADER.size,
        56,
        1,
        64,
        len(sections),
        3,
    )
    return header + program + body + headers


STRINGS = b"\0x_PyRuntime\0Py_Version\0"
GOOD = make_elf([(0, 0, 0), (2, 9, 0x1234), (13, 0, 0), (13, 9, 0x99)], STRINGS)


def read(data: bytes) -> tuple[ElfFile, dict[str, int], list[bytes]]:
    fd = os.memfd_create("elf")
    try:
        os.write(fd, data)
        elf = ElfFile(fd)
        names = ("_PyRuntime", "Py_Version", "PyCode_Type")
        return elf, elf.symbols(names), [section.name for section in elf.sections()]
    finally:
        os.close(fd)


def test_a_name_that_is_the_tail_of_another_is_found() -> None:
    _, symbols, _ = read(GOOD)
    assert symbols["_PyRuntime"] == 0x1234


def test_a_symbol_that_is_only_used_is_not_taken_for_the_one_that_is_defined() -> None:
    _, symbols, _ = read(GOOD)
    assert symbols["Py_Version"] == 0x99


def test_a_symbol_that_is_not_there_is_left_out() -> None:
    _, symbols, _ = read(GOOD)
    assert "PyCode_Type" not in symbols


def test_segments_and_sections_are_told() -> None:
    elf, _, sections = read(GOOD)
    assert elf.segments == ((5, 0x1000, 0x2000, 0x800, 0x900),)
    assert sections == [b"", b".dynsym", b".dynstr", b".shstrtab", b".PyRuntime"]


def test_the_running_interpreter_has_a_code_segment() -> None:
    with Path(sys.executable).open("rb") as file:
        assert any(segment.flags & 1 for segment in ElfFile(file.fileno()).segments)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, b"MZ"), (4, b"\x01"), (5, b"\x02"), (16, b"\x04"), (54, b"\x10")],
    ids=["magic", "32 bits", "big-endian", "core dump", "size of a program header"],
)
def test_another_kind_of_file_is_refused(place: int, value: bytes) -> None:
    with pytest.raises(ElfError):
        read(GOOD[:place] + value + GOOD[place + len(value) :])


@pytest.mark.parametrize("offset", [32, 40], ids=["program headers", "section headers"])
def test_a_table_outside_of_the_file_is_refused(offset: int) -> None:
    for value in (len(GOOD), 1 << 62, (1 << 64) - 1):
        with pytest.raises(ElfError, match="outside"):
            read(GOOD[:offset] + struct.pack("<Q", value) + GOOD[offset + 8 :])


def test_a_symbol_table_that_names_no_strings_is_refused() -> None:
    (sections,) = struct.unpack_from("<Q", GOOD, 40)
    link = sections + 64 + 40
    with pytest.raises(ElfError, match="symbol table"):
        read(GOOD[:link] + struct.pack("<I", 77) + GOOD[link + 4 :])


def test_a_file_that_claims_a_huge_table_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (sections,) = struct.unpack_from("<Q", GOOD, 40)
    size = sections + 64 + 32
    path = tmp_path / "huge"
    path.write_bytes(GOOD[:size] + struct.pack("<Q", 1 << 40) + GOOD[size + 8 :])
    os.truncate(path, 1 << 41)
    with path.open("rb") as file, pytest.raises(ElfError):
        ElfFile(file.fileno()).symbols(["_PyRuntime"])


@given(st.integers(0, len(GOOD)))
def test_a_file_cut_short_gives_an_elf_error_or_nothing_wrong(length: int) -> None:
    try:
        read(GOOD[:length])
    except ElfError:
        return
    assert length == len(GOOD)


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=12))
def test_any_damage_gives_an_elf_error_or_an_answer(damage: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for place, value in damage:
        data[place] = value
    try:
        read(bytes(data))
    except ElfError:
        return


@given(st.binary(max_size=400))
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(ElfError):
        read(data)
