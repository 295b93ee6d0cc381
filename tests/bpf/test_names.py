"""Names and executing lines, on every supported interpreter of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import time

from pathlib import Path

import pytest

from pystack_nb import PyStackProfiler
from tests.bpf.test_target import supported


PROGRAM = Path(__file__).with_name("programs") / "names.py"
LINES = PROGRAM.read_text().splitlines()


def line_of(text: str) -> int:
    return next(n for n, line in enumerate(LINES, 1) if text in line)


def cpu_seconds(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module", params=supported(), ids=lambda path: path.parent.parent.name)
def recording(request):
    """Some seconds of the program's processor time under one interpreter."""
    with subprocess.Popen([request.param, PROGRAM], stdout=subprocess.PIPE) as program:
        try:
            program.stdout.readline()
            profiler = PyStackProfiler(hz=1999)
            profiler.start_profiling(program.pid)
            begun = cpu_seconds(program.pid)
            while cpu_seconds(program.pid) < begun + 2.5:
                time.sleep(0.05)
            yield profiler.stop_profiling()
        finally:
            program.kill()


@pytest.fixture(scope="module")
def frames(recording):
    return recording.frames[recording.frames["kind"] == "python"]


def test_nothing_is_lost_and_next_to_nothing_incomplete(recording):
    assert recording.info["lost_by_cause"] == dict.fromkeys(recording.info["lost_by_cause"], 0)
    assert len(recording.samples) > 2000
    # A page that the kernel is moving, as it does under load, can't be read just then.
    causes = recording.info["incomplete_by_cause"]
    moving = {x: causes[x] for x in ("memory-not-readable", "code-not-named")}
    assert causes == dict.fromkeys(causes, 0) | moving
    assert sum(moving.values()) <= len(recording.samples) / 1000


def test_functions_made_in_a_loop_at_the_same_address_keep_name_file_and_line_apart(frames):
    found = set()
    for row in frames[frames["function"].str.fullmatch(r"f_\d+")].itertuples():
        made = int(row.function[2:])
        found.add(made)
        assert row.filename == f"<made {made:03}>"
        assert row.first_line == made + 2
        assert made + 2 <= row.line_number <= made + 6
    assert len(found) > 30


def test_a_made_function_is_called_by_the_module_it_was_made_in(frames):
    for _, stack in frames[frames["filename"].str.startswith("<made")].groupby("stack_id"):
        assert stack["filename"].nunique() == 1
        caller = stack.iloc[0]
        assert caller["function"] == "<module>"
        made = int(re.sub(r"\D", "", caller["filename"]))
        if len(stack) > 1:
            assert caller["line_number"] == made + 7


def test_names_that_are_not_ascii_are_whole(frames):
    names = set(frames["function"])
    assert {"Żółw.π", "漢字", "漢字.<locals>.inner_字"} <= names


def test_a_long_path_is_whole(frames):
    paths = set(frames.loc[frames["function"] == "long", "filename"])
    assert paths == {f"/long/{'d' * 200}/{'e' * 250}/{'f' * 250}/x.py"}


def test_the_line_of_a_function_with_a_huge_line_table_is_right(recording):
    samples = recording.samples[recording.samples["function"] == "long"]
    # 20,000 assignments are soon done; then 50,000 rounds of the loop behind them.
    assert (samples["line_number"] >= 20002).mean() > 0.5
    assert samples["line_number"].between(1, 20003).all()  # 1: it is being entered


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        ("burn", ["for i in range(rounds)", "total += i * i"]),
        ("made", ["source = TEMPLATE", "exec(compile(source"]),
        ("generate", ["burn(rounds)"]),
    ],
)
def test_the_executing_line_is_one_that_burns_time(recording, function, lines):
    frames = recording.frames
    per_stack = recording.samples["stack_id"].value_counts()
    rows = frames[(frames["function"] == function) & (frames["filename"] == str(PROGRAM))]
    weights = rows["stack_id"].map(per_stack)
    expected = [line_of(text) for text in lines]
    if function == "generate":
        expected = [line_of("def generate") + 2]
    assert weights[rows["line_number"].isin(expected)].sum() > 0.9 * weights.sum()


def test_each_stack_begins_in_the_program(frames):
    roots = frames[(frames["depth"] == 0) & (frames["function"] != "[not named]")]
    assert set(roots["function"]) == {"<module>"}
    assert set(roots["filename"]) == {str(PROGRAM)}
