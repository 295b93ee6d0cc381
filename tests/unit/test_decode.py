"""From the bytes of a spool file to tables."""

from __future__ import annotations

import struct

import numpy as np
import pandas as pd
import pytest
import spools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pystack_nb import natives, tables
from pystack_nb.decode import decode
from pystack_nb.errors import RecordingFormatError
from pystack_nb.recording import Recording


TWO_FUNCTIONS = [
    *spools.code(1, "outer", "a.py", 10, spools.lines(0, 1, 1)),
    *spools.code(2, "Class.inner", "b.py", 20, spools.lines(0, 5)),
]


def recording(*records):
    """A Recording of these records and a client's META."""
    return Recording(*decode(spools.spool(spools.client(), *records)))


def stack_of(rec, row):
    """The stack of sample `row`, outermost first."""
    frames = rec.frames[rec.frames["stack_id"] == rec.samples["stack_id"][row]]
    assert frames["depth"].tolist() == list(range(len(frames)))
    return list(
        frames[["kind", "function", "filename", "line_number"]].itertuples(index=False, name=None)
    )


def test_a_sample_has_its_frames_outermost_first_with_the_executing_lines():
    rec = recording(*TWO_FUNCTIONS, spools.sample(5, [(2, 1), (1, 2)], tid=8, cpu=3))
    assert stack_of(rec, 0) == [
        ("python", "outer", "a.py", 12),
        ("python", "Class.inner", "b.py", 25),
    ]
    assert rec.frames["first_line"].tolist() == [10, 20]
    assert rec.samples.iloc[0].to_dict() == {
        "ts_ns": 5,
        "pid": 7,
        "tid": 8,
        "comm": "python",
        "cpu": 3,
        "state": "on-cpu",
        "weight_ns": 1_000_000,
        "stack_id": 0,
        "function": "Class.inner",
        "filename": "b.py",
        "line_number": 25,
    }
    assert rec.info["incomplete"] == 0


def test_names_may_arrive_after_the_samples_that_use_them():
    rec = recording(spools.sample(5, [(1, 0)]), *TWO_FUNCTIONS)
    assert stack_of(rec, 0) == [("python", "outer", "a.py", 10)]


def test_samples_of_several_cpus_are_put_in_order_of_time():
    rec = recording(
        *TWO_FUNCTIONS,
        spools.sample(30, [(1, 0)], cpu=0),
        spools.sample(10, [(2, 0)], cpu=1),
        spools.sample(20, [(1, 0)], cpu=1),
    )
    assert rec.samples["ts_ns"].tolist() == [10, 20, 30]
    assert rec.samples["function"].tolist() == ["Class.inner", "outer", "outer"]


def test_two_code_objects_of_the_same_name_file_and_line_are_one_function():
    again = spools.code(3, "outer", "a.py", 10, spools.lines(0, 1, 1))
    rec = recording(*TWO_FUNCTIONS, *again, spools.sample(1, [(1, 2)]), spools.sample(2, [(3, 2)]))
    assert rec.samples["stack_id"].tolist() == [0, 0]
    assert len(rec.frames) == 1


def test_instructions_of_the_same_line_make_the_same_stack():
    code = spools.code(1, "f", "a.py", 1, spools.lines(1, 0, 1))
    rec = recording(*code, *(spools.sample(n, [(1, n)]) for n in range(3)))
    assert rec.samples["stack_id"].tolist() == [0, 0, 1]
    assert rec.samples["line_number"].tolist() == [2, 2, 3]


def test_a_frame_that_has_not_begun_stands_at_its_first_line():
    rec = recording(*TWO_FUNCTIONS, spools.sample(1, [(2, -1)]))
    assert stack_of(rec, 0) == [("python", "Class.inner", "b.py", 20)]
    assert rec.info["incomplete"] == 0


@pytest.mark.parametrize(
    ("text", "char_size"),
    [("naïve", 1), ("функция", 2), ("関数", 2), ("f\U0001d453", 4)],
)
def test_names_in_each_of_cpython_s_widths_are_read(text, char_size):
    encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[char_size]
    records = [
        *spools.code(1, "", "a.py", 1, spools.lines(0))[:2],
        *spools.text(1, 1, text.encode(encoding), char_size=char_size),
        *spools.text(1, 2, spools.lines(0)),
    ]
    rec = recording(*records, spools.sample(1, [(1, 0)]))
    assert rec.samples["function"].tolist() == [text]


def test_a_lone_surrogate_in_a_name_is_written_out():
    records = [
        *spools.code(1, "", "a.py", 1, spools.lines(0))[:2],
        *spools.text(1, 1, b"x\xff\xdc", char_size=2)[:0],
        *spools.text(1, 1, b"x\x00\xff\xdc", char_size=2),
        *spools.text(1, 2, spools.lines(0)),
    ]
    rec = recording(*records, spools.sample(1, [(1, 0)]))
    assert rec.samples["function"].tolist() == ["x\\udcff"]


def test_long_texts_come_in_pieces_in_any_order_and_even_twice():
    name = "very" * 1000
    records = spools.code(1, name, "a.py", 1, spools.lines(*[1] * 3000))
    rec = recording(*records[::-1], *records, spools.sample(1, [(1, 2999)]))
    assert rec.samples[["function", "line_number"]].to_numpy().tolist() == [[name, 3001]]
    assert rec.info["incomplete"] == 0


@pytest.mark.parametrize(
    "missing", ["id is 0", "code", "filename", "qualname", "piece", "bad encoding"]
)
def test_a_frame_that_can_t_be_named_is_kept_and_counted(missing):
    pieces = spools.code(1, "name" * 500, "a.py", 1, spools.lines(0))
    assert len(pieces) == 5
    records = {
        "id is 0": pieces,
        "code": pieces[1:],
        "filename": [pieces[0], *pieces[2:]],
        "qualname": [*pieces[:2], pieces[4]],
        "piece": [*pieces[:2], *pieces[3:]],
        "bad encoding": [*pieces[:2], *spools.text(1, 1, b"\xff" * 8, char_size=4), pieces[4]],
    }[missing]
    frame = (0, 0) if missing == "id is 0" else (1, 0)
    rec = recording(
        *records,
        *spools.code(2, "outer", "b.py", 3, spools.lines(0)),
        spools.sample(1, [frame, (2, 0)]),
    )
    assert stack_of(rec, 0) == [("python", "outer", "b.py", 3), ("python", "[not named]", "", 0)]
    assert rec.info["incomplete"] == 1
    assert rec.info["incomplete_by_cause"]["code-not-named"] == 1


@pytest.mark.parametrize("linetable", [None, spools.lines(0)])
def test_a_frame_whose_line_is_not_known_keeps_its_name_and_is_counted(linetable):
    records = spools.code(1, "f", "a.py", 4, linetable or b"")
    rec = recording(*(records if linetable else records[:3]), spools.sample(1, [(1, 5)]))
    assert stack_of(rec, 0) == [("python", "f", "a.py", 0)]
    assert rec.info["incomplete_by_cause"]["code-not-named"] == 1


def test_an_instruction_without_a_line_has_line_0_and_is_not_counted():
    rec = recording(*spools.code(1, linetable=bytes([0x80 | 15 << 3])), spools.sample(1, [(1, 0)]))
    assert rec.samples["line_number"].tolist() == [0]
    assert rec.info["incomplete"] == 0


def test_each_cause_of_incompleteness_is_counted_once_a_sample():
    flags = {"too-deep": 1, "memory-not-readable": 2, "code-not-named": 4}
    flags |= {"native-stack-missing": 16, "kernel-stack-missing": 32, "map-full": 128}
    whole = sum(flags.values())
    rec = recording(*(spools.sample(n, flags=x) for n, x in enumerate([*flags.values(), whole, 0])))
    assert rec.info["incomplete_by_cause"] == dict.fromkeys(flags, 2)
    assert rec.info["incomplete"] == 7


def test_what_was_lost_is_the_newest_count_by_cause():
    rec = recording(
        spools.stats(10, ring_full=1),
        spools.stats(30, ring_full=5, disk_full=7, denied=8, hits=99),
        spools.stats(20, ring_full=2),
    )
    assert rec.info["lost_by_cause"] == {
        "ring-buffer-full": 5,
        "disk-full": 7,
        "rights-changed": 8,
    }
    assert rec.info["lost"] == 20
    assert rec.info["counters"]["hits"] == 99


def test_a_full_map_loses_a_name_and_no_sample():
    flag = spools.sample(5, [(0, 0)], flags=128)
    rec = recording(flag, spools.stats(10, hits=1, map_full=3), spools.end(reason="stopped"))
    assert rec.info["incomplete_by_cause"]["map-full"] == 1
    assert rec.info["incomplete"] == 1
    assert rec.info["lost"] == sum(rec.info["lost_by_cause"].values()) == 0
    assert rec.info["counters"]["hits"] == len(rec.samples) + rec.info["lost"]
    assert rec.info["counters"]["map_full"] == 3
    assert any("map of code objects was full" in note for note in rec.info["notes"])


# Native and kernel frames.


@pytest.fixture
def named_natives(monkeypatch):
    """Native functions named after their offsets, by a table instead of an ELF file."""
    names = {1: "_PyEval_EvalFrameDefault", 2: "_PyEval_EvalFrameDefault.cold"}
    monkeypatch.setattr(
        natives,
        "function_names",
        lambda path, offsets, _: [names.get(x, f"{path}:{x}") for x in offsets.tolist()],
    )


SYMBOLS = [spools.symbol(1, "/lib/a.so"), spools.symbol(2, "vfs_read", spools.KERNEL)]


def test_native_frames_inside_the_interpreter_follow_the_python_frames(named_natives):
    rec = recording(
        *TWO_FUNCTIONS,
        *SYMBOLS,
        spools.stack(5, [(50, 1), (40, 1), (2, 1), (30, 1), (1, 1), (20, 1)]),
        spools.stack(6, [(0, 2)], spools.KERNEL),
        spools.sample(1, [(2, 0), (1, 0)], native=5, kernel=6),
    )
    assert stack_of(rec, 0) == [
        ("python", "outer", "a.py", 10),
        ("python", "Class.inner", "b.py", 20),
        ("native", "/lib/a.so:40", "/lib/a.so", 0),
        ("native", "/lib/a.so:50", "/lib/a.so", 0),
        ("kernel", "vfs_read", "[kernel]", 0),
    ]
    assert rec.samples["function"].tolist() == ["Class.inner"]


def test_a_thread_without_python_keeps_all_its_native_frames(named_natives):
    rec = recording(
        *SYMBOLS,
        spools.stack(5, [(50, 1), (1, 1), (20, 1)]),
        spools.sample(1, native=5, flags=8),
    )
    assert [x[1] for x in stack_of(rec, 0)] == [
        "/lib/a.so:20",
        "_PyEval_EvalFrameDefault",
        "/lib/a.so:50",
    ]
    assert rec.samples["function"].isna().tolist() == [True]
    assert rec.samples["filename"].isna().tolist() == [True]
    assert rec.samples["line_number"].tolist() == [0]
    assert rec.info["incomplete"] == 0


def test_a_native_stack_without_the_interpreter_is_kept_below_python(named_natives):
    rec = recording(
        *TWO_FUNCTIONS,
        *SYMBOLS,
        spools.stack(5, [(50, 1), (40, 1)]),
        spools.sample(1, [(1, 0)], native=5),
    )
    assert [x[1] for x in stack_of(rec, 0)] == ["outer", "/lib/a.so:40", "/lib/a.so:50"]


@pytest.mark.parametrize("told", [[], [spools.stack(5, [])], [spools.stack(5, [(1, 99)])]])
def test_a_stack_that_nobody_told_is_counted_and_the_sample_kept(told):
    rec = recording(*TWO_FUNCTIONS, *told, spools.sample(1, [(1, 0)], native=5, kernel=5))
    assert [x[1] for x in stack_of(rec, 0)] == ["outer"]
    assert rec.info["incomplete"] == 1
    assert rec.info["incomplete_by_cause"]["native-stack-missing"] == 1
    assert rec.info["incomplete_by_cause"]["kernel-stack-missing"] == 1


# What the recording says about itself.


def test_the_rate_reached_is_samples_per_second_of_the_target_s_cpu_time():
    rec = recording(spools.end(hits=1999, cpu_ns=2_000_000_000, start_ns=5, end_ns=25))
    assert rec.info["hz"] == {"asked": 1000, "reached": 999.5}
    assert rec.info["wall_ns"] == 20
    assert rec.info["complete"] is True


@pytest.mark.parametrize("facts", [{"hits": 9, "cpu_ns": 10**7}, {"hits": 100, "cpu_ns": 0}])
def test_no_rate_is_told_where_too_little_was_seen(facts):
    assert recording(spools.end(**facts)).info["hz"]["reached"] is None


def test_a_recording_without_an_end_goes_up_to_its_newest_counters():
    rec = recording(spools.start(start_ns=10), spools.sample(20), spools.stats(50, ticks=1980))
    assert (rec.info["start_ns"], rec.info["end_ns"], rec.info["wall_ns"]) == (10, 50, 40)
    assert rec.info["hz"]["reached"] is None
    assert rec.info["complete"] is False


def test_facts_of_both_sides_come_together():
    rec = recording(
        spools.meta(role="client", versions={"python": "3.13"}, thread_names={"8": "worker"}),
        spools.start(versions={"bcc": "0.26"}, target_python="3.12.1", notes=["no kernel frames"]),
        spools.meta(role="collector", event="note", text="another program"),
        spools.sample(1, tid=7, comm=b"early"),
        spools.sample(2, tid=7, comm=b"late"),
        spools.end(
            reason="target-exited", message="it ended; start it again", notes=["another program"]
        ),
    )
    info = rec.info
    assert info["versions"] == {"python": "3.13", "bcc": "0.26", "target_python": "3.12.1"}
    assert info["thread_names"] == {"7": "late", "8": "worker"}
    assert info["notes"] == ["no kernel frames", "another program"]
    assert info["error"] == "it ended; start it again"
    assert info["complete"] is False
    assert info["pids"] == [7]


@pytest.mark.parametrize("reason", ["stopped", "client-gone"])
def test_an_end_as_asked_for_is_no_error(reason):
    rec = recording(spools.end(reason=reason, message=None, error=None))
    assert rec.info["error"] is None
    assert rec.info["complete"] is True


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"\xff", b'{"role":"collector","hz":NaN}', b"[" * 100_000]
)
def test_a_damaged_meta_record_is_left_out(data):
    rec = recording(spools.record(spools.META, data), spools.sample(1))
    assert len(rec.samples) == 1
    assert rec.info["hz"]["asked"] == 1000


def test_an_empty_recording_has_all_columns_with_their_dtypes():
    rec = Recording(*decode(spools.FILE_HEADER))
    for name in ("samples", "frames", "events"):
        table = getattr(rec, name)
        expected = tables.empty(getattr(tables, name.upper()))
        pd.testing.assert_frame_equal(table, expected)
    assert rec.info["samples"] == 0
    assert rec.functions().empty


# Files that are cut short, damaged or none.

WHOLE = spools.spool(
    spools.client(), *TWO_FUNCTIONS, *(spools.sample(n, [(1, 0)]) for n in range(5))
)


def test_a_block_cut_short_gives_its_whole_records():
    rec = Recording(*decode(WHOLE[:-70]))
    assert len(rec.samples) == 3
    assert rec.samples["function"].tolist() == ["outer"] * 3
    assert rec.info["complete"] is False
    assert "cut short" in rec.info["notes"][0]


def test_garbage_after_a_block_leaves_what_came_before():
    rec = Recording(*decode(WHOLE + b"garbage garbage garbage" + WHOLE[16:]))
    assert len(rec.samples) == 5
    assert "no block" in rec.info["notes"][0]


def test_blocks_follow_each_other():
    rec = Recording(*decode(WHOLE + spools.block(spools.sample(9)) + spools.block()))
    assert len(rec.samples) == 6


def test_a_record_with_impossible_lengths_is_left_out_and_noted():
    too_many_frames = struct.pack("<QIIiiII16s", 1, 7, 7, -1, -1, 0, 129, b"x")
    rec = recording(
        spools.record(spools.SAMPLE, too_many_frames + bytes(129 * 8)),
        spools.record(spools.SAMPLE, struct.pack("<QIIiiII16s", 1, 7, 7, -1, -1, 0, 2, b"x")),
        spools.record(spools.SAMPLE, b"short"),
        struct.pack("<IHH", 1 << 30, spools.SAMPLE, 0),
        spools.record(spools.STACK, struct.pack("<iI", 3, 127)),
        spools.record(spools.SYMBOL, struct.pack("<II", 3, 1 << 31)),
        spools.record(99, b"of a later version"),
        spools.sample(1),
    )
    assert len(rec.samples) == 1
    assert all("damaged" in x for x in rec.info["notes"])
    assert rec.info["complete"] is False


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PYSTACK",
        b"PK\x03\x04" + bytes(100),
        struct.pack("<8sII", b"PYSTACK\n", 2, 16),
        struct.pack("<8sII", b"PYSTACK\n", 1, 13),
        struct.pack("<8sII", b"PYSTACK\n", 1, 1 << 31),
    ],
)
def test_what_is_no_spool_file_is_refused_with_what_to_do(data):
    with pytest.raises(RecordingFormatError, match=";"):
        decode(data)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_no_damage_makes_decoding_fail_in_another_way(data):
    whole = bytearray(
        spools.spool(
            spools.client(),
            *TWO_FUNCTIONS,
            *SYMBOLS,
            spools.stack(5, [(50, 1), (40, 1)]),
            spools.stack(6, [(0, 2)], spools.KERNEL),
            *(spools.sample(n, [(2, 1), (1, 0)], native=5, kernel=6) for n in range(3)),
            spools.stats(9, ticks=3),
            spools.end(ticks=1, cpus=1, start_ns=0, end_ns=1),
        )
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(16, len(whole) - 4))
        value = data.draw(st.binary(min_size=1, max_size=4))
        whole[at : at + len(value)] = value
    cut = data.draw(st.integers(16, len(whole)))
    rec = Recording(*decode(bytes(whole[:cut])))
    assert len(rec.samples) <= 3
    assert rec.to_traces() is not None
    assert rec.functions() is not None


# Against a decoder that does it the slow way.

FRAMES = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=5)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), FRAMES, st.integers(0, 2)), max_size=30))
def test_samples_are_what_decoding_them_one_by_one_gives(given_samples):
    codes = {n: (f"f{n % 3}", "a.py", 10 * (n % 3)) for n in range(1, 5)}
    records = [x for n, y in codes.items() for x in spools.code(n, *y, spools.lines(1, 0, 1, 1))]
    records += [spools.sample(ts, frames, tid=tid) for ts, frames, tid in given_samples]
    rec = recording(*records)

    expected = sorted(given_samples, key=lambda x: x[0])
    assert rec.samples["ts_ns"].tolist() == [x[0] for x in expected]
    assert rec.samples["tid"].tolist() == [x[2] for x in expected]
    stacks = [
        tuple(
            ("python", codes[code][0], "a.py", codes[code][2] + (1, 1, 2, 3)[instruction])
            for code, instruction in reversed(frames)
        )
        for _, frames, _ in expected
    ]
    assert [tuple(stack_of(rec, n)) for n in range(len(rec.samples))] == stacks
    assert rec.samples["stack_id"].nunique() == len(set(stacks))
    leaf = [x[-1][1] if x else None for x in stacks]
    assert (
        rec.samples["function"].astype(object).where(rec.samples["function"].notna(), None).tolist()
        == leaf
    )
    assert rec.samples["line_number"].tolist() == [x[-1][3] if x else 0 for x in stacks]
    np.testing.assert_array_equal(rec.samples["stack_id"], pd.factorize(pd.Series(stacks))[0])


def test_a_file_may_end_with_a_native_stack():
    rec = recording(
        spools.sample(5, native=9), spools.symbol(1, "/nowhere/lib.so"), spools.stack(9, [(16, 1)])
    )
    assert stack_of(rec, 0) == [("native", "lib.so+0x10", "/nowhere/lib.so", 0)]
