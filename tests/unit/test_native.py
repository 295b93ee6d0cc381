"""What native stacks stand for, from the memory map of a living process."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import threading

from pathlib import Path

import pytest

from pystack_nb.collector import native
from pystack_nb.collector.drain import PST_KERNEL, PST_MODULE, Addresses
from pystack_nb.collector.kernel_names import KernelNames
from pystack_nb.collector.native import Symbols


class Drained:
    """Keeps what is appended to a recording."""

    def __init__(self):
        self.paths = {}
        self.stacks = {}

    def append_symbol(self, symbol_id, symbol):
        self.paths[symbol_id] = os.fsdecode(symbol.text)

    def append_stack(self, stack_id, _, frames):
        self.stacks[stack_id] = [self.paths[symbol] for _, symbol in frames]


def maps_of(pid):
    return os.open(f"/proc/{pid}/maps", os.O_RDONLY)


def symbols_of(pid, kernel_name=lambda _: b""):
    drained = Drained()
    return Symbols(drained, maps_of(pid), KernelNames(kernel_name)), drained


def executable(pid, part):
    """Some address inside the executable mapping of a file."""
    for line in os.fsdecode(Path(f"/proc/{pid}/maps").read_bytes()).split("\n"):
        if part in line and line.split()[1][2] == "x":
            return int(line.partition("-")[0], 16) + 64
    pytest.fail(f"{part} is not mapped")


def map_file(path):
    """Map a file as a library is mapped, and return an address in it."""
    path.write_bytes(bytes(mmap.PAGESIZE))
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
    return mapped, executable(os.getpid(), path.name)


@contextlib.contextmanager
def two_programs():
    """Yield a process that is a shell, and a function that makes it a Python."""
    program = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        ["sh", "-c", 'echo; read x; exec "$@"', "sh", *program], stdin=-1, stdout=-1, text=True
    ) as child:
        child.stdout.readline()

        def go_on():
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()

        yield child.pid, go_on
        child.communicate("\n")


def test_the_files_of_another_program_in_its_place_are_not_looked_at():
    # GIVEN what was seen of a program
    with two_programs() as (pid, go_on):
        symbols, drained = symbols_of(pid)
        before = executable(pid, "libc.so")
        # WHEN another one takes its place
        go_on()
        after = executable(pid, "/python")
        symbols.refresh()
        symbols.tell(
            [Addresses(1, PST_MODULE, (before,)), Addresses(2, PST_MODULE, (after,))], last=True
        )
    # THEN the first one's addresses have their names still, and the other one's none
    assert drained.stacks[1][0].endswith("libc.so.6")
    assert drained.stacks[2] == []


def test_what_comes_while_the_program_changes_is_named_by_the_one_that_it_is_of():
    with two_programs() as (pid, go_on):
        symbols, drained = symbols_of(pid)
        before = executable(pid, "libc.so")
        go_on()
        after = executable(pid, "/python")
        symbols.follow(
            maps_of(pid),
            [Addresses(1, PST_MODULE, (before,)), Addresses(2, PST_MODULE, (after,))],
        )
        symbols.tell([])
    assert drained.stacks[1][0].endswith("libc.so.6")
    assert "python" in Path(drained.stacks[2][0]).name


def test_native_stacks_do_not_wait_for_the_kernels_names():
    # GIVEN a table of the kernel's functions that is being read still
    read = threading.Event()
    symbols, drained = symbols_of(os.getpid(), lambda _: b"schedule" if read.wait(10) else b"")
    symbols._kernel_names.begin()
    native_address = executable(os.getpid(), "libc.so")
    # WHEN stacks of both kinds come
    symbols.tell(
        [Addresses(1, PST_KERNEL, (2**64 - 4096,)), Addresses(2, PST_MODULE, (native_address,))],
        last=True,
    )
    # THEN the kernel's is told when its names are there
    assert list(drained.stacks) == [2]
    read.set()
    symbols.tell_kernel()
    assert drained.stacks[1] == ["schedule"]


def test_a_folder_may_have_a_carriage_return_in_its_name(tmp_path):
    folder = tmp_path / "a\rb"
    folder.mkdir()
    mapped, address = map_file(folder / "library.so")
    symbols, drained = symbols_of(os.getpid())
    symbols.tell([Addresses(1, PST_MODULE, (address,))])
    mapped.close()
    assert drained.stacks == {1: [str(folder / "library.so")]}


def test_a_library_loaded_meanwhile_is_named_wherever_it_is_in_a_stack(tmp_path):
    symbols, drained = symbols_of(os.getpid())
    old = executable(os.getpid(), "libc.so")
    mapped, new = map_file(tmp_path / "library.so")
    symbols.tell([Addresses(1, PST_MODULE, (old, new))], last=True)
    mapped.close()
    assert [Path(path).name for path in drained.stacks[1]] == ["libc.so.6", "library.so"]


def test_a_stack_waits_for_the_next_look_at_the_map_but_not_for_the_end(tmp_path, monkeypatch):
    symbols, drained = symbols_of(os.getpid())
    monkeypatch.setattr(symbols, "_next_look", float("inf"))
    old = executable(os.getpid(), "libc.so")
    mapped, new = map_file(tmp_path / "library.so")
    symbols.tell([Addresses(1, PST_MODULE, (old,)), Addresses(2, PST_MODULE, (old, new))])
    assert list(drained.stacks) == [1]
    symbols.tell([], last=True)
    mapped.close()
    assert len(drained.stacks[2]) == 2


def test_an_address_that_is_none_ends_its_stack_without_a_look_at_the_map(monkeypatch):
    symbols, drained = symbols_of(os.getpid())
    monkeypatch.setattr(symbols, "refresh", pytest.fail)
    old = executable(os.getpid(), "libc.so")
    symbols.tell([Addresses(1, PST_MODULE, (old, 7, old)), Addresses(2, PST_MODULE, (2**63, old))])
    assert [len(frames) for frames in drained.stacks.values()] == [1, 0]


def test_of_a_map_without_end_only_the_beginning_is_read(monkeypatch):
    monkeypatch.setattr(native, "_MAX_MAPS", 200)
    symbols, drained = symbols_of(os.getpid())
    last = executable(os.getpid(), "[vdso]")
    symbols.tell([Addresses(1, PST_MODULE, (last,))])
    assert drained.stacks == {1: []}


def test_kernel_names_are_read_where_no_thread_could_be_had_before(monkeypatch):
    names = KernelNames(lambda _: b"")

    def start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            names.begin()
    assert not names.ready
    names.wait()
    assert names.ready
