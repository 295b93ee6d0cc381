"""The structures of ``bpf/pystack_time.h`` as NumPy dtypes and Python enumerations.

The header file is where they are declared; ``tests/unit/test_wire_layout.py`` lets the C
compiler say each offset and each constant, and compares.  A dtype ends where the C
structure's variable part begins: frames, text and JSON are read behind it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

from pystack_nb.collector.counters import COUNTERS


FILE_MAGIC = b"PYSTACK\n"
FORMAT = 1
BLOCK_MAGIC = 0x42545350
MAX_FRAMES = 128
COMM_SIZE = 16
CHUNK_SIZE = 1024
MAX_NATIVE = 127
BATCH_WORDS = 2042
COUNTED = 65536
TIME_BITS = 40
OPERAND_BITS = 22
KIND_SHIFT = 62


class RecordType(IntEnum):
    """What a record is: ``enum pst_record_type``."""

    SAMPLE = 1
    CODE = 2
    TEXT = 3
    STATS = 4
    STACK = 5
    SYMBOL = 6
    META = 7
    CALLS = 9
    CLOCK = 10
    COUNTS = 11


class SampleFlag(IntFlag):
    """What is missing from a sample: ``enum pst_sample_flag``."""

    TOO_DEEP = 1 << 0
    UNREADABLE = 1 << 1
    UNNAMED = 1 << 2
    NO_PYTHON = 1 << 3
    NATIVE_MISSING = 1 << 4
    KERNEL_MISSING = 1 << 5
    KERNEL_MODE = 1 << 6
    MAP_FULL = 1 << 7


class CallsFlag(IntFlag):
    """How a batch of calls came: ``enum pst_calls_flag``."""

    REST = 1 << 0


class ClockSource(IntEnum):
    """What the probe's counter is: ``enum pst_clock_source``."""

    MONOTONIC = 0
    TSC = 1


class CallCounter(IntEnum):
    """Index into the counters of a counts record: ``enum pst_call_counter``."""

    NO_BATCH = 0
    DEEP = 1
    MAX_EVENTS = 2
    WAITED_NS = 3
    GAVE_UP = 4
    INTERPRETERS = 5
    FORKS = 6
    STOPPED = 7
    NO_ID = 8
    C_STOPPED = 9
    REPLACED = 10
    HOOK_TAKEN = 11
    INIT_UNSEEN = 12


CALL_COUNTERS = 16


class Word(IntEnum):
    """What an event of a batch is: ``enum pst_word``."""

    ENTER = 0
    LEAVE = 1
    RESUME = 2
    OTHER = 3


class Leave(IntFlag):
    """How a call ended: ``enum pst_leave``."""

    RETURNED = 0
    RAISED = 1
    SHORT = 2


class OtherWord(IntEnum):
    """What an event is that is neither an entry nor an exit: ``enum pst_other``."""

    TIME = 0
    CODE = 1
    SWITCH = 2
    DEMOTE = 3
    PROMOTE = 4
    GAP = 5
    GAP_END = 6


class TextPart(IntEnum):
    """Which string of a code object a piece belongs to: ``enum pst_text_part``."""

    FILENAME = 0
    QUALNAME = 1
    LINETABLE = 2


class SymbolKind(IntEnum):
    """What a symbol record names: ``enum pst_symbol_kind``."""

    MODULE = 0
    KERNEL = 1


FILE_HEADER = np.dtype([("magic", "S8"), ("format", "<u4"), ("size", "<u4")])
BLOCK_HEADER = np.dtype([("magic", "<u4"), ("record_count", "<u4"), ("data_size", "<u8")])
HEADER = np.dtype([("size", "<u4"), ("type", "<u2"), ("flags", "<u2")])
FRAME = np.dtype([("code_id", "<u4"), ("instruction", "<i4")])
SAMPLE = np.dtype(
    [
        ("header", HEADER),
        ("ts_ns", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("native_stack", "<i4"),
        ("kernel_stack", "<i4"),
        ("cpu", "<u4"),
        ("frame_count", "<u4"),
        ("comm", f"S{COMM_SIZE}"),
    ]
)
CODE = np.dtype([("header", HEADER), ("code_id", "<u4"), ("first_line", "<i4")])
TEXT = np.dtype(
    [
        ("header", HEADER),
        ("code_id", "<u4"),
        ("part", "<u2"),
        ("char_size", "<u2"),
        ("offset", "<u4"),
        ("total", "<u4"),
    ]
)
STATS = np.dtype([("header", HEADER), ("ts_ns", "<u8"), ("counters", "<u8", (COUNTERS,))])
SYMBOL = np.dtype(
    [
        ("header", HEADER),
        ("symbol_id", "<u4"),
        ("length", "<u4"),
        ("inode", "<u8"),
        ("device_major", "<u4"),
        ("device_minor", "<u4"),
    ]
)
NATIVE_FRAME = np.dtype([("offset", "<u8"), ("symbol_id", "<u4"), ("reserved", "<u4")])
STACK = np.dtype([("header", HEADER), ("stack_id", "<i4"), ("frame_count", "<u4")])
PAIR = np.dtype([("before", "<u8"), ("ns", "<u8"), ("after", "<u8")])
BATCH = np.dtype(
    [
        ("thread", "<u4"),
        ("tid", "<u4"),
        ("count", "<u4"),
        ("flags", "<u4"),
        ("sequence", "<u8"),
        ("pair", PAIR),
    ]
)
CALLS = np.dtype(
    [
        ("header", HEADER),
        ("ts_ns", "<u8"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("cpu", "<u4"),
        ("reserved", "<u4"),
        ("comm", f"S{COMM_SIZE}"),
        ("batch", BATCH),
    ]
)
CLOCK = np.dtype([("header", HEADER), ("clock", "<u4"), ("reserved", "<u4"), ("pair", PAIR)])
COUNTS = np.dtype(
    [
        ("header", HEADER),
        ("count", "<u4"),
        ("reserved", "<u4"),
        ("counters", "<u8", (CALL_COUNTERS,)),
    ]
)
COUNT = np.dtype([("calls", "<u8"), ("ticks", "<u8")])
CODE_COUNT = np.dtype([("code_id", "<u4"), ("reserved", "<u4"), ("count", COUNT)])
