"""The NumPy face of the wire format says what the C compiler says."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess

from pathlib import Path

import numpy as np
import pytest

from pystack_nb import wire
from pystack_nb.collector import drain
from pystack_nb.collector.counters import COUNTERS, Counter


HEADER_FILE = Path(__file__).resolve().parents[2] / "bpf" / "pystack_time.h"

# name in C -> (dtype, name of the variable part, which the dtype leaves out)
STRUCTURES = {
    "pst_file_header": (wire.FILE_HEADER, None),
    "pst_block_header": (wire.BLOCK_HEADER, None),
    "pst_header": (wire.HEADER, None),
    "pst_frame": (wire.FRAME, None),
    "pst_sample": (wire.SAMPLE, "frames"),
    "pst_code": (wire.CODE, None),
    "pst_text": (wire.TEXT, "data"),
    "pst_stats": (wire.STATS, None),
    "pst_symbol": (wire.SYMBOL, None),
    "pst_native_frame": (wire.NATIVE_FRAME, None),
    "pst_stack": (wire.STACK, "frames"),
    "pst_pair": (wire.PAIR, None),
    "pst_batch": (wire.BATCH, "words"),
    "pst_calls": (wire.CALLS, "batch.words"),
    "pst_clock": (wire.CLOCK, None),
    "pst_count": (wire.COUNT, None),
    "pst_code_count": (wire.CODE_COUNT, None),
    "pst_counts": (wire.COUNTS, "codes"),
}
CONSTANTS = {
    "PST_FORMAT": wire.FORMAT,
    "PST_BLOCK_MAGIC": wire.BLOCK_MAGIC,
    "PST_MAX_FRAMES": wire.MAX_FRAMES,
    "PST_COMM_SIZE": wire.COMM_SIZE,
    "PST_CHUNK_SIZE": wire.CHUNK_SIZE,
    "PST_MAX_NATIVE": wire.MAX_NATIVE,
    "PST_BATCH_WORDS": wire.BATCH_WORDS,
    "PST_COUNTED": wire.COUNTED,
    "PST_TIME_BITS": wire.TIME_BITS,
    "PST_OPERAND_BITS": wire.OPERAND_BITS,
    "PST_KIND_SHIFT": wire.KIND_SHIFT,
    "PST_COUNTERS": COUNTERS,
    "PST_CALL_COUNTERS": wire.CALL_COUNTERS,
    "PST_PARTS": len(wire.TextPart),
    **{f"PST_{x.name}": x.value for x in wire.RecordType},
    **{f"PST_{x.name}": x.value for x in wire.SampleFlag},
    **{f"PST_CALLS_{x.name}": x.value for x in wire.CallsFlag},
    **{f"PST_CALLS_{x.name}": x.value for x in wire.CallCounter},
    **{f"PST_{x.name}": x.value for x in wire.ClockSource},
    **{f"PST_{x.name}": x.value for x in wire.Word},
    "PST_RETURNED": wire.Leave.RETURNED,
    **{f"PST_{x.name}": x.value for x in wire.Leave},
    **{f"PST_WORD_{x.name}": x.value for x in wire.OtherWord},
    **{f"PST_COUNT_{x.name}": x.value for x in Counter},
    **{f"PST_{x.name}": x.value for x in wire.TextPart},
    **{f"PST_{x.name}": x.value for x in wire.SymbolKind},
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What a C program that includes the header prints about it."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed, as for the build"
    lines = []
    for name, (dtype, variable) in STRUCTURES.items():
        end = f"offsetof(struct {name}, {variable})" if variable else f"sizeof(struct {name})"
        lines.append(f'printf("\\"{name}\\": %zu,", {end});')
        for field in dtype.names:
            size = f"sizeof(((struct {name} *)0)->{field})"
            if variable and variable.startswith(f"{field}."):
                size = f"{end} - offsetof(struct {name}, {field})"
            offset = f"offsetof(struct {name}, {field})"
            lines.append(f'printf("\\"{name}.{field}\\": [%zu, %zu],", {offset}, {size});')
    lines += [f'printf("\\"{name}\\": %lld,", (long long){name});' for name in CONSTANTS]
    source = tmp_path_factory.mktemp("wire") / "layout.c"
    body = "\n\t".join(lines)
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER_FILE}"\n'
        f'int main(void)\n{{\n\tprintf("{{");\n\t{body}\n\tprintf("\\"end\\": 0}}");\n}}\n'
    )
    program = source.with_suffix("")
    subprocess.run([compiler, "-o", program, source], check=True)
    return json.loads(subprocess.run([program], check=True, capture_output=True).stdout)


@pytest.mark.parametrize("name", STRUCTURES)
def test_each_field_lies_where_the_compiler_puts_it(compiled, name):
    dtype, _ = STRUCTURES[name]
    expected = {field: [dtype.fields[field][1], dtype[field].itemsize] for field in dtype.names}
    assert {field: compiled[f"{name}.{field}"] for field in dtype.names} == expected
    assert compiled[name] == dtype.itemsize


@pytest.mark.parametrize(
    ("packed", "dtype"),
    [
        (drain._HEADER, wire.HEADER),
        (drain._STACK, wire.STACK),
        (drain._NATIVE_FRAME, wire.NATIVE_FRAME),
        (drain._SYMBOL, wire.SYMBOL),
        (drain._STATS, wire.STATS),
    ],
)
def test_what_the_collector_packs_is_read_field_by_field(packed, dtype):
    data = bytes(range(1, packed.size + 1))
    assert packed.size == dtype.itemsize
    read = np.frombuffer(data, dtype)[0].item()
    assert packed.unpack(data) == tuple(flat(read))


def flat(value):
    for each in value:
        yield from flat(each) if isinstance(each, tuple | np.ndarray) else (int(each),)


@pytest.mark.parametrize("name", CONSTANTS)
def test_each_constant_has_the_header_s_value(compiled, name):
    assert compiled[name] == CONSTANTS[name]


def test_the_file_magic_is_the_one_the_header_tells():
    assert f'"{wire.FILE_MAGIC.decode()[:-1]}\\n"' in HEADER_FILE.read_text()


def test_what_the_probe_is_tried_with_reads_the_same_layout():
    # It runs where there may be no NumPy, and so not with these dtypes.
    check = importlib.import_module("pystack_nb.probe.check")  # a function has that name, too
    fields = wire.BATCH.fields
    assert check._TIME_BITS == wire.TIME_BITS
    assert check._OPERAND == (1 << wire.OPERAND_BITS) - 1
    assert check._KIND_SHIFT == wire.KIND_SHIFT
    assert (check._ENTER, check._LEAVE, check._RESUME) == (
        wire.Word.ENTER,
        wire.Word.LEAVE,
        wire.Word.RESUME,
    )
    assert (check._WORD_TIME, check._WORD_CODE) == (wire.OtherWord.TIME, wire.OtherWord.CODE)
    sizes_of_one_record = 2 * 4  # with the padding
    assert check._BLOCK.size == wire.BLOCK_HEADER.itemsize + sizes_of_one_record
    assert check._BLOCK.unpack(wire_bytes(wire.BLOCK_HEADER, data_size=7) + bytes(8))[2] == 7
    assert check._RECORD.unpack(wire_bytes(wire.HEADER, type=wire.RecordType.CALLS))[1] == (
        check._CALLS_RECORD
    )
    assert wire.CALLS.fields["batch"][1] + fields["tid"][1] == check._TID_AT
    assert fields["count"][1] == fields["tid"][1] + 4
    assert wire.CALLS.itemsize == check._WORDS_AT


def wire_bytes(dtype, **values):
    one = np.zeros((), dtype)
    for name, value in values.items():
        one[name] = value
    return one.tobytes()
