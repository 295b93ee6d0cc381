"""The demo: the quickstart from top to bottom, and what the repository keeps of it."""

from __future__ import annotations

import demos
import pandas as pd
import pytest

from trace_processor import TraceProcessor

import pystack_nb


NAME = "01_quickstart"
KEPT = demos.ROOT / "data" / "profiler_logs" / "quickstart"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """What `make demo` runs, into a folder whose name has a space."""
    out = tmp_path_factory.mktemp("demo") / "of the quickstart"
    return demos.run(NAME, out), out


@pytest.fixture(scope="module")
def recording(demo):
    return pystack_nb.load(demo[1] / "quickstart")


def samples_with(recording, function):
    frames = recording.stacks
    stacks = frames.loc[frames["function"] == function, "stack_id"]
    return recording.samples[recording.samples["stack_id"].isin(stacks)]


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_demo_runs_through_and_says_where_everything_is(demo):
    finished, out = demo
    assert (finished.returncode, finished.stderr) == (0, "")
    assert len(finished.stdout.splitlines()) == 5
    assert "missing" not in finished.stdout
    assert {path.name for path in out.iterdir()} == {
        *("01_quickstart.ipynb", "quickstart", "quickstart.json", "quickstart.pftrace"),
        "timeline.png",
    }


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_every_cell_of_the_demo_was_executed_without_an_error(demo):
    outputs = demos.outputs(demos.executed(demo[1], NAME))
    assert {x.output_type for x in outputs} == {"stream", "display_data", "execute_result"}


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_demo_shows_what_its_prose_promises(recording):
    samples = recording.samples
    assert recording.info["lost"] == 0
    # A Python-heavy stretch, a gap, and a C-heavy stretch, in this order.
    parsing, comparing = (samples_with(recording, name) for name in ("functions_of", "alike"))
    assert min(len(parsing), len(comparing)) > 100
    assert comparing["ts_ns"].min() - parsing["ts_ns"].max() > 0.5e9
    frames = recording.stacks
    native = frames.loc[frames["kind"] != "python", "stack_id"]
    assert comparing["stack_id"].isin(native).mean() > 0.9
    in_ast = {"walk", "iter_child_nodes"} & set(samples["function"])
    assert in_ast == {"walk", "iter_child_nodes"}


def test_the_notebook_is_kept_with_its_outputs():
    code = demos.executed(demos.NOTEBOOKS, NAME)
    (recorded,) = [cell for cell in code if cell.source.startswith("%%pystack")]
    assert "<svg" in recorded.outputs[-1].data["text/html"]


def test_the_recording_that_is_kept_is_the_same_in_every_form():
    raw, processed = (pystack_nb.load(KEPT / name) for name in ("quickstart", "quickstart.json"))
    for table in ("samples", "frames", "events"):
        pd.testing.assert_frame_equal(getattr(raw, table), getattr(processed, table))
    with TraceProcessor((KEPT / "quickstart.pftrace").read_bytes()) as trace:
        assert trace.errors() == []
        assert trace.rows("select count() from perf_sample") == [(len(raw.samples),)]
    assert (KEPT / "timeline.png").read_bytes().startswith(PNG)
    assert {"functions_of", "alike"} <= set(raw.functions()["function"])


def test_the_recording_that_is_kept_is_small():
    assert sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file()) < 1_000_000
