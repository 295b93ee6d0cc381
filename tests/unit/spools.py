"""A small writer of spool files, structure by structure, for tests of what reads them."""

from __future__ import annotations

import json
import struct


SAMPLE, CODE, TEXT, STATS, STACK, SYMBOL, META = range(1, 8)
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


def stats(ts_ns, *, ticks=0, hits=0, ring_full=0, denied=0, name_lost=0, map_full=0, disk_full=0):
    """The counters."""
    counters = (ticks, hits, ring_full, denied, name_lost, map_full, disk_full, 0)
    return record(STATS, struct.pack("<9Q", ts_ns, *counters))


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
