"""A small writer of spool files, structure by structure, for tests of what reads them."""

from __future__ import annotations

import json
import struct


SAMPLE, CODE, TEXT, STATS, STACK, SYMBOL, META = range(1, 8)
CALLS, CLOCK, COUNTS = range(9, 12)
MODULE, KERNEL = 0, 1
FILE_HEADER = struct.pack("<8sII", b"PYSTACK\n", 1, 16)


def record(kind, body, flags=0):
    """One record with its header, without padding."""
    return struct.pack("<IHH", 8 + len(body), kind, flags) + body


def block(*records):
    """A block of records, each padded to 8 bytes."""
    padded = [x + bytes(-len(x) % 8) for x in records]
    sizes = struct.pack(f"<{len(padded)}I", *map(len, padded))
    head = struct.pack("<IIQ", 0x42545350, len(padded), sum(map(len, padded)))
    return head + sizes + bytes(-len(sizes) % 8) + b"".join(padded)


def spool(*records):
    """A file of one block."""
    return FILE_HEADER + block(*records)


def sample(ts_ns, frames=(), *, tid=7, pid=7, cpu=0, native=-1, kernel=-1, comm=b"python", flags=0):
    """A sample; frames are (code id, instruction), innermost first."""
    body = struct.pack("<QIIiiII16s", ts_ns, pid, tid, native, kernel, cpu, len(frames), comm)
    return record(SAMPLE, body + b"".join(struct.pack("<Ii", *x) for x in frames), flags)


def text(code_id, part, data, *, char_size=1, piece=1024):
    """The pieces of one string of a code object."""
    head = struct.Struct("<IHHII")
    return [
        record(TEXT, head.pack(code_id, part, char_size, at, len(data)) + data[at : at + piece])
        for at in range(0, max(len(data), 1), piece)
    ]


def code(code_id, qualname="f", filename="a.py", first_line=1, linetable=b"", **options):
    """All records of a code object; Latin-1 names."""
    return [
        record(CODE, struct.pack("<Ii", code_id, first_line)),
        *text(code_id, 0, filename.encode("latin-1"), **options),
        *text(code_id, 1, qualname.encode("latin-1"), **options),
        *text(code_id, 2, linetable, **options),
    ]


def lines(*deltas):
    """A location table with one code unit an entry, each so many lines further."""
    table = bytearray()
    for delta in deltas:
        value = delta << 1 if delta >= 0 else -delta << 1 | 1
        table.append(0x80 | 13 << 3)
        while value > 63:
            table.append(value & 63 | 64)
            value >>= 6
        table.append(value)
    return bytes(table)


COUNTERS = (
    "ticks",
    "hits",
    "ring_full",
    "denied",
    "name_lost",
    "map_full",
    "disk_full",
    "calls_lost",
)


def stats(ts_ns, **counters):
    """The counters."""
    assert set(counters) <= set(COUNTERS)
    return record(STATS, struct.pack("<9Q", ts_ns, *(counters.get(x, 0) for x in COUNTERS)))


def symbol(symbol_id, name, kind=MODULE, file=(0, 0, 0)):
    """A module, with inode and device of its file, or a kernel function."""
    data = name.encode()
    return record(SYMBOL, struct.pack("<IIQII", symbol_id, len(data), *file) + data, kind)


def stack(stack_id, frames, kind=MODULE):
    """A native or kernel stack; frames are (offset, symbol id), innermost first."""
    body = struct.pack("<iI", stack_id, len(frames))
    return record(STACK, body + b"".join(struct.pack("<QII", *x, 0) for x in frames), kind)


def meta(**fields):
    """A META record."""
    return record(META, json.dumps(fields).encode())


def client(hz=1000, **fields):
    """What the client writes first."""
    return meta(role="client", hz=hz, mode="sample", **fields)


def start(**fields):
    """What the collector writes when it begins."""
    return meta(role="collector", event="start", **fields)


def end(**fields):
    """What the collector writes at the end."""
    return meta(role="collector", event="end", **fields)


# Calls. A word says what happened and when.


def word(kind, operand, time=0):
    """An event: kind, operand and the low bits of the time."""
    return kind << 62 | operand << 40 | time & (1 << 40) - 1


def enter(code_id, time):
    """A call begins."""
    return word(0, code_id, time)


def leave(time, how=0):
    """The innermost call ends."""
    return word(1, how, time)


def resume(code_id, time):
    """A generator goes on."""
    return word(2, code_id, time)


def other(kind, time=0, argument=0):
    """Any other event, by its number in ``enum pst_other``."""
    return word(3, kind | argument << 4, time)


def whole_time(time):
    """The words that tell the whole time of the next one."""
    return [other(0), time]


def switch(stack, time):
    """The thread goes on on another stack."""
    return other(2, time, stack)


def defined(code_id, function="f", filename="a.py", line=1, *, is_c=False):
    """The words that name a function."""
    data = f"{filename}\0{function}\0{line}\0".encode()
    data += bytes(-len(data) % 8)
    text = struct.unpack(f"<{len(data) // 8}Q", data)
    return [other(1, code_id | is_c << 39, len(text)), *text]


def batch(words, *, thread=1, tid=7, pid=7, sequence=0, pair=(1, 1, 1), rest=False, comm=b"py"):
    """A batch of a thread's words, as the probe sent it or as it was found at the end."""
    head = struct.pack("<QIIII16s", 0, pid, 0 if rest else tid, 0, 0, comm)
    head += struct.pack("<IIIIQQQQ", thread, tid, len(words), 0, sequence, *pair)
    return record(CALLS, head + struct.pack(f"<{len(words)}Q", *words), int(rest))


def clock(*pair, tsc=False):
    """The counter before, CLOCK_MONOTONIC and the counter after."""
    return record(CLOCK, struct.pack("<IIQQQ", tsc, 0, *pair))


CALL_COUNTERS = (
    "no_batch",
    "deep",
    "max_events",
    "waited_ns",
    "gave_up",
    "interpreters",
    "forks",
    "stopped",
    "no_id",
    "c_stopped",
    "replaced",
    "hook_taken",
    "init_unseen",
)


def counts(codes=(), **counters):
    """Calls and ticks of code ids, and what the probe had to do without."""
    assert set(counters) <= set(CALL_COUNTERS)
    numbers = [counters.get(x, 0) for x in CALL_COUNTERS]
    body = struct.pack("<II16Q", len(codes), 0, *numbers, *[0] * (16 - len(numbers)))
    return record(COUNTS, body + b"".join(struct.pack("<IIQQ", x, 0, *y) for x, y in codes))
