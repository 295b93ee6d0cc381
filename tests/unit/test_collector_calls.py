"""The memory of the calls' probe, as the collector reads it."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess

from pathlib import Path

import pytest

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystack_nb.collector import calls, drain
from pystack_nb.collector.calls import SharedCalls


HEADER_FILE = Path(__file__).resolve().parents[2] / "bpf" / "pystack_time.h"
# What C says -> what the collector says.
EXPECTED = {
    "offsetof(struct pst_shared, sent)": calls._SHARED.size,
    "offsetof(struct pst_shared, counters)": calls._COUNTERS_AT,
    "sizeof(((struct pst_shared *)0)->counters)": calls._COUNTERS.size,
    "offsetof(struct pst_batch, words)": calls._BATCH.size,
    "offsetof(struct pst_calls, batch)": calls._CALLS.size,
    "offsetof(struct pst_counts, codes)": calls._COUNTS.size,
    "sizeof(struct pst_code_count)": calls._CODE_COUNT.size,
    "sizeof(struct pst_clock)": drain._CLOCK.size,
    "PST_CLOCK": drain.PST_CLOCK,
    **{name: value for name, value in vars(calls).items() if name.startswith("PST_")},
}
HEAD = struct.Struct("<Q4I")
BATCH = struct.Struct("<4I4Q")


def test_the_collector_and_the_compiler_agree(tmp_path):
    lines = [f'printf("\\"{name}\\": %llu,", (unsigned long long){name});' for name in EXPECTED]
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER_FILE}"\n'
        'int main(void)\n{\nprintf("{");\n' + "\n".join(lines) + '\nprintf("\\"end\\": 0}");\n}\n'
    )
    program = source.with_suffix("")
    subprocess.run(["cc", "-o", program, source], check=True)
    told = json.loads(subprocess.run([program], check=True, capture_output=True).stdout)
    assert {name: told[name] for name in EXPECTED} == EXPECTED


@pytest.fixture
def memory():
    fd = os.memfd_create("calls", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, calls.PST_SHARED_SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    yield fd
    os.close(fd)


words = st.integers(0, 2**32 - 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(used=words, heads=st.lists(st.tuples(words, words, words, words), max_size=5))
def test_whatever_stands_in_it_each_record_is_as_long_as_it_says_and_no_longer(memory, used, heads):
    os.pwrite(memory, HEAD.pack(calls.PST_SHARED_MAGIC, calls.PST_FORMAT, 0, used, 1), 0)
    for n, head in enumerate(heads):
        at = calls.PST_BATCHES_AT + n * calls.PST_BATCH_SIZE
        os.pwrite(memory, BATCH.pack(*head, 0, 0, 0, 0), at)
    *batches, counts = SharedCalls(memory, os.getuid()).records(7)
    assert len(batches) <= min(used, calls.PST_BATCHES)
    for record in batches:
        size, kind, flags = struct.unpack_from("<IHH", record)
        thread, _, count, _, *_ = BATCH.unpack_from(record, calls._CALLS.size)
        assert (kind, flags) == (calls.PST_CALLS, calls.PST_CALLS_REST)
        assert size == len(record) == calls._CALLS.size + calls._BATCH.size + 8 * count
        assert thread
        assert 0 < count <= calls.PST_BATCH_WORDS
    assert struct.unpack_from("<IHHI", counts) == (len(counts), calls.PST_COUNTS, 0, 0)


def test_every_code_object_may_have_a_count(memory):
    os.pwrite(memory, HEAD.pack(calls.PST_SHARED_MAGIC, calls.PST_FORMAT, 0, 0, 1), 0)
    os.pwrite(memory, struct.pack("<QQ", 3, 5) * calls.PST_COUNTED, calls.PST_COUNTS_AT)
    (counts,) = SharedCalls(memory, os.getuid()).records(7)
    assert struct.unpack_from("<I", counts, 8) == (calls.PST_COUNTED,)
    codes = list(struct.iter_unpack("<IIQQ", counts[calls._COUNTS.size :]))
    assert codes == [(code_id, 0, 3, 5) for code_id in range(calls.PST_COUNTED)]
