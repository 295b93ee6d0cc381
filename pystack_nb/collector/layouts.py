"""Where CPython keeps what the sampler and `target` read: byte offsets, for each minor version.

x86-64, release builds with the GIL.  The numbers are `offsetof` in CPython's own headers, as the
DWARF of 3.11.7, 3.12.1 and 3.13.0 gives them:

* `Include/internal/pycore_runtime.h` (`_PyRuntimeState`, `_Py_DebugOffsets`), `pycore_interp.h`,
  `Include/cpython/pystate.h` (`PyThreadState`, `_PyCFrame`);
* `Include/internal/pycore_frame.h` (`_PyInterpreterFrame`, `enum _frameowner`);
* `Include/cpython/code.h` (`PyCodeObject`), `unicodeobject.h`, `bytesobject.h`.

A minor version's layout does not change between its patch releases; `target` checks what can be
checked against the live interpreter all the same.
"""

from __future__ import annotations

import struct

from dataclasses import dataclass, replace


SUPPORTED = ((3, 11), (3, 12), (3, 13))
OWNER_NONE = 255

DEBUG_OFFSETS_SIZE = 584
_DEBUG_COOKIE = b"xdebugpy"
_MAX_OFFSET = 1 << 16
# Index of a field of `_Py_DebugOffsets` (3.13), in units of 8 bytes.
_DEBUG_FIELDS = {
    "interpreters_head": 5,
    "interpreter_next": 8,
    "threads_head": 9,
    "thread_next": 21,
    "thread_interpreter": 22,
    "current_frame": 23,
    "thread_id": 24,
    "frame_previous": 29,
    "frame_code": 30,
    "frame_instruction": 31,
    "frame_owner": 33,
    "code_filename": 35,
    "code_qualname": 37,
    "code_linetable": 38,
    "code_first_line": 39,
    "code_start": 43,
    "bytes_data": 66,
    "ascii_data": 70,
}


@dataclass(frozen=True)
class Layout:
    """Byte offsets of one minor version of CPython.

    The fields from `cframe` to `bytes_data` are those of `struct pst_layout`; the others are what
    it takes to walk from `_PyRuntime` to the thread states.
    """

    interpreters_head: int  # _PyRuntime -> first interpreter
    interpreter_next: int
    threads_head: int  # interpreter -> first thread state
    thread_next: int
    thread_interpreter: int
    tss_key: int  # _PyRuntime -> autoTSSkey
    cframe: int
    current_frame: int
    thread_id: int
    frame_code: int
    frame_previous: int
    frame_instruction: int
    frame_owner: int
    frame_entry: int
    owner_cstack: int
    code_first_line: int
    code_filename: int
    code_qualname: int
    code_linetable: int
    code_version: int
    code_start: int
    ascii_data: int
    compact_data: int
    bytes_data: int


_3_11 = Layout(
    interpreters_head=0x28,
    interpreter_next=0,
    threads_head=16,
    thread_next=8,
    thread_interpreter=16,
    tss_key=0x250,
    cframe=56,
    current_frame=8,
    thread_id=152,
    frame_code=32,
    frame_previous=48,
    frame_instruction=56,
    frame_owner=69,
    frame_entry=68,
    owner_cstack=OWNER_NONE,
    code_first_line=72,
    code_filename=112,
    code_qualname=128,
    code_linetable=136,
    code_version=0,
    code_start=184,
    ascii_data=48,
    compact_data=72,
    bytes_data=32,
)
_3_12 = replace(
    _3_11,
    threads_head=72,
    tss_key=0x608,
    current_frame=0,
    thread_id=136,
    frame_code=0,
    frame_previous=8,
    frame_owner=70,
    frame_entry=0,
    owner_cstack=3,
    code_first_line=68,
    code_version=92,
    code_start=192,
    ascii_data=40,
    compact_data=56,
)
_3_13 = replace(
    _3_12,
    interpreters_head=0x278,
    interpreter_next=7264,
    threads_head=7344,
    tss_key=0x870,
    cframe=0,
    current_frame=72,
    thread_id=152,
    code_start=200,
)
_TABLE = dict(zip(SUPPORTED, (_3_11, _3_12, _3_13), strict=True))


class LayoutError(Exception):
    """A build of CPython is laid out in another way than its version says."""


def layout_for(version: tuple[int, int, int], debug_offsets: bytes) -> Layout:
    """Find the layout of one CPython.

    Parameters
    ----------
    version
        As in `sys.version_info[:3]`.
    debug_offsets
        The first `DEBUG_OFFSETS_SIZE` bytes of `_PyRuntime`; looked at from 3.13 on, where they
        tell most offsets and whether the build has no GIL.

    Returns
    -------
    Layout
        The offsets.

    Raises
    ------
    LayoutError
        When the version is not supported, or the build is not an ordinary one.

    """
    minor = version[:2]
    name = ".".join(map(str, version))
    if minor not in _TABLE:
        raise LayoutError(f"CPython {name} is not supported")
    table = _TABLE[minor]
    return table if minor < (3, 13) else _from_debug_offsets(name, table, debug_offsets)


def _from_debug_offsets(name: str, table: Layout, debug_offsets: bytes) -> Layout:
    """Take the offsets that the interpreter tells, where the table agrees on their frame.

    `PyInterpreterState` and `_PyRuntimeState` differ between builds (debug, statistics), and here
    what the interpreter says holds.  The structures that the BPF program reads do not, so that
    another value there is the sign of a build that nobody has tried.
    """
    if len(debug_offsets) < DEBUG_OFFSETS_SIZE or debug_offsets[:8] != _DEBUG_COOKIE:
        raise LayoutError(f"this CPython {name} does not describe its own layout")
    words = struct.unpack_from(f"<{DEBUG_OFFSETS_SIZE // 8}Q", debug_offsets)
    if words[2]:
        raise LayoutError(f"this CPython {name} is a free-threaded build")
    told = {field: words[index] for field, index in _DEBUG_FIELDS.items()}
    walk = {"interpreters_head", "interpreter_next", "threads_head"}
    for field, offset in told.items():
        expected = getattr(table, field)
        if offset >= _MAX_OFFSET or (field not in walk and offset != expected):
            raise LayoutError(f"this CPython {name} has {field} at {offset} instead of {expected}")
    return replace(table, **{field: told[field] for field in walk})
