"""The notebook about calls, from top to bottom, and whether what it says is so."""

from __future__ import annotations

import demos
import pytest

from trace_processor import TraceProcessor


NAME = "02_every_call"

CALLS = """
    select count() from slice
    where category = 'call' and name not glob 'DisplayHook.*' and name != '<module>'
"""

# How many additions had how many constraints satisfied, and recalculated, during them.
ADDITIONS = """
    select satisfied, recalculated, count() from (
        select
            (select count() from descendant_slice(s.id) d where d.name = 'Constraint.satisfy')
                as satisfied,
            (select count() from descendant_slice(s.id) d where d.name glob '*.recalculate')
                as recalculated
        from slice s where s.name = 'Planner.incremental_add'
    ) group by satisfied, recalculated order by satisfied, recalculated
"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("every_call") / "out"
    return demos.run(NAME, out), out


@pytest.fixture(scope="module")
def cells(demo):
    return {cell.id: cell for cell in demos.executed(demo[1], NAME)}


@pytest.fixture(scope="module")
def trace(demo):
    with TraceProcessor((demo[1] / "every_call.pftrace").read_bytes()) as loaded:
        yield loaded


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_notebook_runs_through_and_leaves_a_trace(demo):
    finished, out = demo
    assert (finished.returncode, finished.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {f"{NAME}.ipynb", "every_call.pftrace"}


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_notebook_counts_calls_as_cprofile_does(cells):
    assert "lost: 0\nas cProfile counts them: True\n" in demos.text(cells["same"])


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_trace_of_the_notebook_has_every_call(cells, trace):
    assert trace.errors() == []
    [(calls,)] = trace.rows(CALLS)
    assert f", {calls:,} calls, " in demos.text(cells["same"])


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_four_additions_do_as_much_as_the_notebook_says(trace):
    many = [row for row in trace.rows(ADDITIONS) if row[1] > 2]
    assert many == [(1, 101, 2), (101, 101, 1), (102, 101, 1)]


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_what_never_happens_in_the_notebook_does_once_the_program_is_repaired(cells):
    as_ported, as_meant = (demos.text(cells[name]) for name in ("never", "again"))
    assert "Strength.next_weaker" in as_ported
    assert "incremental_add" not in as_ported
    assert "Planner.incremental_add" in as_meant


@pytest.mark.bpf
@pytest.mark.timeout(400)
def test_the_figures_of_the_notebook_are_shown(cells):
    shown = [x.get("data", {}) for x in demos.outputs([cells["record"]])]
    assert "<svg" in shown[-1]["text/html"]
    for name in ("timeline", "zoom", "lengths"):
        assert any("image/png" in x.data for x in cells[name].outputs)


def test_the_notebook_about_calls_is_kept_with_its_outputs_and_small():
    kept = demos.executed(demos.NOTEBOOKS, NAME)
    assert all(x.outputs for x in kept if x.id in {"record", "calls", "same", "timeline", "never"})
    assert (demos.NOTEBOOKS / f"{NAME}.ipynb").stat().st_size < 500_000
