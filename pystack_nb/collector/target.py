"""Finds the Python interpreter of a process, and tells the BPF program how to read it.

The way: the mappings name the executable and libpython; their ELF symbols give `_PyRuntime`,
`Py_Version` and `PyCode_Type`; the version gives the layout (`layouts`); `_PyRuntime` leads to the
thread states, and these prove where the current one hangs from the thread pointer.

That place is a POSIX thread-specific value, of the key `_PyRuntime.autoTSSkey`.  glibc on x86-64
keeps the first 32 of them in `struct pthread` itself (`nptl/descr.h`, `specific_1stblock`), and
`pthread_self()`, which is `PyThreadState.thread_id`, is the thread pointer.  The process's memory
moves while it is read; whoever contradicts himself is read again.
"""

from __future__ import annotations

import os
import re
import struct
import time

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from .elf import PAGE_SIZE, PF_X, ElfError, ElfFile
from .layouts import DEBUG_OFFSETS_SIZE, SUPPORTED, Layout, LayoutError, layout_for
from .memory import AddressSpace, UnreadableError
from .process import gone
from .protocol import CollectorProblem


if TYPE_CHECKING:
    from collections.abc import Iterator

    from .memory import Mapping

_NAME = re.compile(r"^(?:lib)?python(\d)\.(\d{1,2})(?!\d)")
_ATTEMPTS = 5
_PAUSE_S = 0.002
_MAX_IMAGES = 16
_MAX_INTERPRETERS = 64
_MAX_THREADS = 4096
_SCANNED_THREADS = 64
_MAX_TOUCHED = 64 << 20

# struct pthread of glibc, x86-64
_PTHREAD_SIZE = 0x900
_FIRST_SPECIFIC = 0x310
_SPECIFIC_SIZE = 16
_SPECIFIC_DATA = 8
_INLINE_KEYS = 32

# PyTypeObject, PyMemberDef: the same from 3.8 to 3.13
_TP_NAME = 24
_TP_BASICSIZE = 32
_TP_MEMBERS = 240
_MEMBER = struct.Struct("<QiiqQQ")
_MEMBERS = {
    b"co_firstlineno": "code_first_line",
    b"co_filename": "code_filename",
    b"co_qualname": "code_qualname",
    b"co_linetable": "code_linetable",
}
_MAX_MEMBERS = 32

_FIELDS_OF_THE_WALK = {
    "interpreters_head",
    "interpreter_next",
    "threads_head",
    "thread_next",
    "thread_interpreter",
    "tss_key",
}


@dataclass(frozen=True)
class Interpreter:
    """A CPython inside a process.

    Attributes
    ----------
    version
        As in `sys.version_info[:3]`.
    executable_path
        The file that holds it, the program or libpython, as the process sees it.
    layout
        The fields of `struct pst_layout`.

    """

    version: tuple[int, int, int]
    executable_path: str
    layout: dict[str, int]


class _Image(NamedTuple):
    """The executable or a libpython, as it lies in the process."""

    path: str
    symbols: dict[str, int]  # addresses in the process
    named_version: tuple[int, int] | None  # what the name of the file says
    has_runtime: bool
    mappings: list[Mapping]


class _ContradictionError(Exception):
    """What was read does not fit together: half-made, or changed while it was read."""


def find_interpreter(pid: int) -> Interpreter:
    """Find the interpreter of a process.

    Parameters
    ----------
    pid
        As the collector's PID namespace sees it.

    Returns
    -------
    Interpreter
        Its version and layout.  Its static data is in memory afterwards: code objects of frozen
        modules lie in pages that a BPF program could not read before something else touched them.

    Raises
    ------
    CollectorProblem
        "no-such-process", "access-denied", "not-python", "unsupported-python", or "not-ready"
        while the interpreter of a program that just started is not set up.

    """
    with AddressSpace(pid) as memory:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                return _find(memory)
            except (_ContradictionError, UnreadableError) as error:
                reason = str(error)
    raise _unsupported(pid, f"its interpreter can't be read ({reason})")


def _find(memory: AddressSpace) -> Interpreter:
    executable = memory.executable()
    mappings = memory.mapped_files(lambda path: path == executable or _is_library(path))
    if not mappings and memory.ended():
        raise gone(memory.pid)
    images = list(_images(memory, mappings))
    for image in images:
        if "_PyRuntime" in image.symbols:
            return _interpreter(memory, image)
    raise _without_runtime(memory.pid, images)


def _without_runtime(pid: int, images: list[_Image]) -> CollectorProblem:
    if any(image.has_runtime for image in images):
        return _unsupported(pid, "its Python is stripped of all symbols")
    versions = [image.named_version for image in images if image.named_version]
    if not versions:
        return CollectorProblem(
            "not-python",
            f"process {pid} runs no Python interpreter: give the pid of a Python process.",
        )
    if versions[0] in SUPPORTED:  # the dynamic loader has not mapped libpython yet
        return _not_ready(pid)
    return _unsupported(pid, "it runs Python {}.{}".format(*versions[0]))


def _unsupported(pid: int, reason: str) -> CollectorProblem:
    versions = ", ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
    return CollectorProblem(
        "unsupported-python",
        f"process {pid} can't be sampled: {reason}. Run it under an ordinary build of CPython"
        f" {versions} on x86-64 Linux with glibc.",
    )


def _not_ready(pid: int) -> CollectorProblem:
    return CollectorProblem(
        "not-ready", f"the Python of process {pid} has not started up yet: try again."
    )


def _images(memory: AddressSpace, mappings: list[Mapping]) -> Iterator[_Image]:
    by_file: dict[tuple[int, int, str], list[Mapping]] = {}
    for mapping in mappings:
        if mapping.inode:
            by_file.setdefault((mapping.device, mapping.inode, mapping.path), []).append(mapping)
    for (_, _, path), own in list(by_file.items())[:_MAX_IMAGES]:
        fd = memory.open_file(own[0])
        if fd is None:
            continue
        try:
            image = _image(fd, path, own)
        except ElfError:
            continue
        finally:
            os.close(fd)
        if image:
            yield image


def _is_library(path: str) -> bool:
    return path.rpartition("/")[2].startswith("libpython")


def _image(fd: int, path: str, mappings: list[Mapping]) -> _Image | None:
    elf = ElfFile(fd)
    bias = _bias(elf, mappings)
    if bias is None:
        return None
    symbols = elf.symbols(("_PyRuntime", "Py_Version", "PyCode_Type"))
    match = _NAME.match(path.rpartition("/")[2])
    return _Image(
        path=path,
        symbols={name: value + bias for name, value in symbols.items()},
        named_version=(int(match[1]), int(match[2])) if match else None,
        has_runtime=any(section.name == b".PyRuntime" for section in elf.sections()),
        mappings=mappings,
    )


def _bias(elf: ElfFile, mappings: list[Mapping]) -> int | None:
    """How far the file lies from the addresses in it, by its first executable segment.

    A file that is mapped only as data, by a debugger for example, has no such segment.
    """
    for segment in elf.segments:
        if segment.flags & PF_X:
            slack = segment.offset % PAGE_SIZE
            for mapping in mappings:
                if "x" in mapping.permissions and mapping.offset == segment.offset - slack:
                    return mapping.start - (segment.address - slack)
    return None


def _interpreter(memory: AddressSpace, image: _Image) -> Interpreter:
    runtime = image.symbols["_PyRuntime"]
    if "Py_Version" not in image.symbols or "PyCode_Type" not in image.symbols:
        name = ".".join(map(str, image.named_version or ("of an unknown version",)))
        raise _unsupported(memory.pid, f"it runs Python {name}")
    (number,) = struct.unpack("<Q", memory.read(image.symbols["Py_Version"], 8))
    version = (number >> 24 & 0xFF, number >> 16 & 0xFF, number >> 8 & 0xFF)
    try:
        layout = layout_for(version, memory.read(runtime, DEBUG_OFFSETS_SIZE))
        threads = list(_threads(memory, runtime, layout))
        if not threads:
            raise _not_ready(memory.pid)
        offset = _thread_state_offset(memory, runtime, layout, threads)
        _check_code_type(memory, image.symbols["PyCode_Type"], layout)
    except LayoutError as error:
        raise _unsupported(memory.pid, str(error)) from None
    _touch(memory, image.mappings)
    known = asdict(layout)
    told = {f.name: known[f.name] for f in fields(Layout) if f.name not in _FIELDS_OF_THE_WALK}
    return Interpreter(
        version=version,
        executable_path=image.path,
        layout={
            "code_type": image.symbols["PyCode_Type"],
            "thread_state_tls": offset,
            **told,
        },
    )


def _pointer(memory: AddressSpace, address: int) -> int:
    return int(struct.unpack("<Q", memory.read(address, 8))[0])


def _threads(memory: AddressSpace, runtime: int, layout: Layout) -> Iterator[tuple[int, int]]:
    """Every thread state, with the thread pointer of its thread."""
    count = 0
    interpreter = _pointer(memory, runtime + layout.interpreters_head)
    for _ in range(_MAX_INTERPRETERS):
        if not interpreter:
            return
        thread = _pointer(memory, interpreter + layout.threads_head)
        while thread and count < _MAX_THREADS:
            if _pointer(memory, thread + layout.thread_interpreter) != interpreter:
                raise _ContradictionError("a thread state does not point to its interpreter")
            yield thread, _pointer(memory, thread + layout.thread_id)
            count += 1
            thread = _pointer(memory, thread + layout.thread_next)
        interpreter = _pointer(memory, interpreter + layout.interpreter_next)


def _thread_state_offset(
    memory: AddressSpace, runtime: int, layout: Layout, threads: list[tuple[int, int]]
) -> int:
    """Where a thread's state hangs from its thread pointer, proven on a living thread."""
    initialised, key = struct.unpack("<ii", memory.read(runtime + layout.tss_key, 8))
    if not initialised:
        raise _not_ready(memory.pid)
    if 0 <= key < _INLINE_KEYS:
        offset: int = _FIRST_SPECIFIC + key * _SPECIFIC_SIZE + _SPECIFIC_DATA
        for state, pointer in threads:
            block = memory.read_some(pointer, offset + 8)
            if _is_thread_block(block, pointer) and block[offset:] == struct.pack("<Q", state):
                return offset
    for state, pointer in threads[-_SCANNED_THREADS:]:
        block = memory.read_some(pointer, _PTHREAD_SIZE)
        if _is_thread_block(block, pointer):
            place: int = block.find(struct.pack("<Q", state))
            if place >= 0 and place % 8 == 0:
                return place
    raise _ContradictionError("no thread holds its thread state where glibc keeps it")


def _is_thread_block(block: bytes, pointer: int) -> bool:
    """Whether a `tcbhead_t` is there: on x86-64 its first word is its own address."""
    return pointer != 0 and block[:8] == struct.pack("<Q", pointer)


def _check_code_type(memory: AddressSpace, code_type: int, layout: Layout) -> None:
    """Compare the layout with what the type of code objects says of its own members."""
    if memory.read_some(_pointer(memory, code_type + _TP_NAME), 5) != b"code\0":
        raise _ContradictionError("PyCode_Type is not the type of code objects")
    if _pointer(memory, code_type + _TP_BASICSIZE) != layout.code_start:
        raise LayoutError("its Python is a special build (another size of code objects)")
    address = _pointer(memory, code_type + _TP_MEMBERS)
    seen = set()
    for index in range(_MAX_MEMBERS):
        name_address, _, _, offset, _, _ = _MEMBER.unpack(
            memory.read(address + index * _MEMBER.size, _MEMBER.size)
        )
        if not name_address:
            break
        name = memory.read_some(name_address, 32).partition(b"\0")[0]
        if name in _MEMBERS:
            seen.add(name)
            if offset != getattr(layout, _MEMBERS[name]):
                raise LayoutError(f"its Python is a special build ({name.decode()} at {offset})")
    if seen != set(_MEMBERS):
        raise LayoutError("its Python is a special build (code objects without known members)")


def _touch(memory: AddressSpace, mappings: list[Mapping]) -> None:
    left = _MAX_TOUCHED
    for mapping in mappings:
        if "x" in mapping.permissions or "r" not in mapping.permissions:
            continue
        for address in range(mapping.start, mapping.end, 1 << 20):
            size = min(1 << 20, mapping.end - address, left)
            left -= len(memory.read_some(address, size)) if size else 0
