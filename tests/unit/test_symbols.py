"""Names of native functions, from real ELF files and from damaged ones."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess

from pathlib import Path

import numpy as np
import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystack_nb import symbols
from pystack_nb.symbols import MappedFile


SOURCE = """
__attribute__((noinline)) int first_function(int x) { return x * 3 + 1; }
static __attribute__((noinline, used)) int hidden_function(int x) { return x ^ 5; }
int last_function(int x) { return first_function(x) + hidden_function(x); }
__asm__(".text\\n.globl bare\\n.type bare, @function\\nbare:\\nnop\\nnop\\nret\\n");
int variable = 7;
"""


def mapped(path):
    """What a mapping of the file of this name is of; of no file, if there is none."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return MappedFile(0, 0, 0)
    return MappedFile(status.st_ino, os.major(status.st_dev), os.minor(status.st_dev))


def function_names(path, offsets):
    """Names in the file of this name, unreplaced."""
    return symbols.function_names(path, offsets, mapped(path))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small shared library with a symbol table."""
    folder = tmp_path_factory.mktemp("elf")
    (folder / "small.c").write_text(SOURCE)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    path = folder / "libsmall.so"
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", path, folder / "small.c"], check=True
    )
    return path


def functions_of(path):
    """What readelf tells: name -> (offset in the file, size)."""
    text = subprocess.run(
        ["readelf", "-W", "-l", "-s", path], check=True, capture_output=True, text=True
    ).stdout
    segments = [
        [int(x, 16) for x in found]
        for found in re.findall(r"LOAD +(0x\w+) (0x\w+) 0x\w+ (0x\w+)", text)
    ]
    functions = {}
    for address, size, name in re.findall(r"\d+: (\w+) +(\w+) FUNC .* \d+ (\S+)\n", text):
        value = int(address, 16)
        for offset, start, length in segments:
            if start <= value < start + length:
                functions[name] = value - start + offset, int(size, 0)
    return functions


def test_first_and_last_byte_of_each_function_have_its_name(library):
    functions = functions_of(library)
    assert {"first_function", "hidden_function", "last_function"} <= set(functions)
    for name in ("first_function", "hidden_function", "last_function"):
        offset, size = functions[name]
        offsets = np.array([offset, offset + size - 1], np.uint64)
        assert function_names(str(library), offsets) == [name, name]


def test_a_function_of_no_size_ends_where_the_next_begins(library):
    offset, size = functions_of(library)["bare"]
    assert size == 0
    assert function_names(str(library), np.array([offset + 1], np.uint64)) == ["bare"]


def test_an_offset_outside_of_all_functions_keeps_its_number(library):
    offsets = np.array([0, 1 << 40, 2**64 - 1], np.uint64)
    numbers = [f"libsmall.so+{x:#x}" for x in offsets.tolist()]
    assert function_names(str(library), offsets) == numbers


def test_a_stripped_library_has_its_exported_names_and_where_its_other_functions_begin(
    library, tmp_path
):
    functions = functions_of(library)
    stripped = tmp_path / "libstripped.so"
    subprocess.run(["strip", "-o", stripped, library], check=True)
    known, (hidden, size) = functions["first_function"][0], functions["hidden_function"]
    offsets = np.array([known, hidden, hidden + 1, hidden + size - 1], np.uint64)
    assert function_names(str(stripped), offsets) == [
        "first_function",
        *[f"libstripped.so+{hidden:#x}"] * 3,
    ]


@pytest.mark.parametrize("name", ["[vdso]", "[anonymous]", "", "relative/lib.so"])
def test_what_is_no_file_is_its_own_name(name):
    assert function_names(name, np.array([1, 2], np.uint64)) == [name, name]


def test_a_file_that_is_gone_keeps_the_offset():
    assert function_names("/nowhere/libx.so (deleted)", np.array([16], np.uint64)) == [
        "libx.so (deleted)+0x10"
    ]


def test_a_pipe_of_that_name_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "lib.so")
    assert function_names(str(tmp_path / "lib.so"), np.array([1], np.uint64)) == ["lib.so+0x1"]


def test_a_changed_file_is_read_again(library, tmp_path):
    path = tmp_path / "lib.so"
    path.write_bytes(b"not an ELF file")
    offset = np.array([functions_of(library)["first_function"][0]], np.uint64)
    assert function_names(str(path), offset) == [f"lib.so+{int(offset[0]):#x}"]
    shutil.copy(library, path)
    assert function_names(str(path), offset) == ["first_function"]


def test_another_file_under_the_same_path_gives_no_names(library, tmp_path):
    path = tmp_path / "lib.so"
    shutil.copy(library, path)
    then = mapped(path)
    offset = np.array([functions_of(library)["first_function"][0]], np.uint64)
    assert symbols.function_names(str(path), offset, then) == ["first_function"]
    # GIVEN that the library is built again while a process still has the old one
    path.rename(tmp_path / "old.so")
    shutil.copy(library, path)
    # THEN its symbols are not those of the old one
    assert symbols.function_names(str(path), offset, then) == [f"lib.so+{int(offset[0]):#x}"]
    assert symbols.function_names(str(path), offset, mapped(path)) == ["first_function"]


def test_a_mapping_that_the_kernel_tells_otherwise_than_stat_is_recognised(library, monkeypatch):
    """As on overlayfs, where a mapping is of a file below."""
    below = MappedFile(4711, 0, 99)
    offset = np.array([functions_of(library)["first_function"][0]], np.uint64)
    number = [f"libsmall.so+{int(offset[0]):#x}"]
    assert symbols.function_names(str(library), offset, below) == number
    monkeypatch.setattr(symbols, "_map", lambda *_: below)
    assert symbols.function_names(str(library), offset, below) == ["first_function"]


def test_the_kernel_s_word_for_a_mapping_is_that_of_the_maps_file(library):
    loaded = ctypes.CDLL(str(library))
    lines = [x.split() for x in Path("/proc/self/maps").read_text().splitlines()]
    device, inode = next(x[3:5] for x in lines if x[5:] == [str(library)])
    told = symbols._map(str(library), (1,))
    assert (f"{told.major:02x}:{told.minor:02x}", str(told.inode)) == (device, inode)
    assert loaded


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300
)
@given(st.data())
def test_no_damage_to_a_file_makes_naming_fail(library, tmp_path, data):
    whole = bytearray(library.read_bytes())
    header_at = int.from_bytes(whole[40:48], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.sampled_from([16, 64, header_at]))
        at = min(start + data.draw(st.integers(0, 600)), len(whole) - 8)
        value = data.draw(st.sampled_from([b"\0", b"\xff" * 8, b"\x01", b"\xff\xff\xff\x7f"]))
        whole[at : at + len(value)] = value
    path = tmp_path / f"lib{hash(bytes(whole))}.so"
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), 63, 100, len(whole) // 2]))])
    names = function_names(str(path), np.array([0, 0x1100, 2**63], np.uint64))
    path.unlink()
    assert all(isinstance(x, str) and x for x in names)
