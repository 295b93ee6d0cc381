"""A real recording in each of its forms; Perfetto's own engine reads the trace."""

from __future__ import annotations

import ast
import threading
import time

from pathlib import Path

import pandas as pd
import pytest

from trace_processor import TraceProcessor

from pystack_nb import PyStackProfiler, load


CPU_SECONDS = 0.2


def parse_sources():
    source = Path(ast.__file__).read_text()
    while time.thread_time() < CPU_SECONDS:
        for _ in ast.walk(ast.parse(source)):
            pass


def sum_squares():
    while time.thread_time() < CPU_SECONDS:
        sum(x * x for x in range(1000))


def ask_the_kernel():
    while time.thread_time() < CPU_SECONDS:
        Path("/proc/self/maps").read_bytes()


@pytest.fixture(scope="module")
def recording():
    """Busy threads with unlike stacks, and a pause."""
    works = (parse_sources, sum_squares, ask_the_kernel)
    with PyStackProfiler(hz=1999) as profiler:
        threads = [threading.Thread(target=work) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.1)
    return profiler.recording


@pytest.fixture(scope="module")
def trace(recording, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "real.pftrace"
    recording.to_perfetto(path)
    with TraceProcessor(path.read_bytes()) as trace:
        yield trace


def test_the_trace_processor_finds_nothing_wrong_with_a_real_trace(trace, recording):
    assert recording.info["lost"] == 0
    assert trace.errors() == []


def test_the_versions_of_everything_that_took_part_are_kept(recording):
    versions = recording.info["versions"]
    assert set(versions) == {*("pystack_nb", "python", "target_python", "kernel", "bcc", "libbcc")}
    assert all(versions.values())


def test_sql_counts_the_samples_of_the_recording(trace, recording):
    assert recording.info["samples"] == len(recording.samples) > 500
    assert trace.rows("select count() from perf_sample") == [(len(recording.samples),)]


def test_sql_counts_the_samples_of_each_thread(trace, recording):
    rows = trace.rows(
        "select t.tid, count() from perf_sample s join thread t using (utid) group by t.tid"
    )
    assert len(rows) >= 3
    assert dict(rows) == recording.samples["tid"].value_counts().to_dict()


def test_sql_finds_each_sample_at_its_time_and_processor(trace, recording):
    rows = trace.rows("select ts, cpu from perf_sample")
    samples = recording.samples[["ts_ns", "cpu"]]
    assert sorted(rows) == sorted(samples.itertuples(index=False, name=None))


@pytest.mark.parametrize("function", ["parse_sources", "sum_squares", "walk"])
def test_sql_finds_a_function_on_as_many_stacks_as_the_recording(trace, recording, function):
    rows = trace.rows(f"""
        with recursive up(sample, parent, frame) as (
            select p.id, c.parent_id, c.frame_id
            from perf_sample p join stack_profile_callsite c on c.id = p.callsite_id
            union all
            select up.sample, c.parent_id, c.frame_id
            from up join stack_profile_callsite c on c.id = up.parent
        )
        select count(distinct up.sample)
        from up join stack_profile_frame f on f.id = up.frame
        where f.name glob '{function} (*'
    """)
    frames = recording.stacks
    stacks = frames.loc[
        (frames["function"] == function) & (frames["kind"] == "python"), "stack_id"
    ].unique()
    assert rows == [(recording.samples["stack_id"].isin(stacks).sum(),)]
    assert rows[0][0] > 0


@pytest.mark.parametrize("name", ["real", "real.json"])
def test_what_is_read_back_equals_what_was_recorded(recording, tmp_path, name):
    path = tmp_path / name
    recording.to_json(path) if path.suffix else recording.save(path)
    back = load(path)
    for table in ("samples", "frames", "events"):
        pd.testing.assert_frame_equal(getattr(back, table), getattr(recording, table))
    assert back.info == recording.info
