"""The calls that the probe records, against those that the interpreter itself tells."""

from __future__ import annotations

import collections
import json

import pytest

from probing import DISTRIBUTION, MINORS, PROGRAMS, decode, name, pairs, start


PROGRAM = str(PROGRAMS / "call_programs.py")
NAMES = """
    exceptions generators coroutines callbacks objects finalizers signals threads made_code
    odd_names frees_itself long_stack mixed
""".split()  # noqa: SIM905 - a test sees that these are all
TEXT_PART = 4000  # bytes of a name that the probe keeps


@pytest.fixture(scope="module", params=(*MINORS, DISTRIBUTION), ids=name)
def recorded(request, tmp_path_factory):
    """A folder with each program's recording, and its calls as the interpreter counts them."""
    folder = tmp_path_factory.mktemp("recorded")
    with start(request.param, PROGRAMS / "record_calls.py", folder, cwd=folder) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return folder


def shown(name: str) -> str:
    """Tell how a recording has a name."""
    data = name.replace("\0", " ").encode("utf-8", "backslashreplace")
    cut = data[:TEXT_PART].decode(errors="ignore")
    return cut if len(data) <= TEXT_PART else f"{cut}…"


@pytest.mark.parametrize("program", NAMES)
def test_every_call_is_recorded_once_under_its_caller(recorded, program):
    recording = decode((recorded / f"{program}.pst").read_bytes())
    told = json.loads((recorded / f"{program}.json").read_text())
    expected = collections.Counter()
    found = pairs(recording, PROGRAM)
    for caller, function, calls in told:
        expected[shown(caller), shown(function)] += calls
    if program == "finalizers":
        # From 3.12 on, a frame's objects end before its call does, and the hook says after it.
        found, expected = (functions_of(counter) for counter in (found, expected))
    assert found == expected
    assert sum(found.values()) > 10
    calls = recording.calls
    assert calls.loc[calls["filename"] == PROGRAM, "complete"].all()
    assert recording.info["incomplete"] == 0


def functions_of(counter):
    """Sum over the callers."""
    sums = collections.Counter()
    for (_, function), calls in counter.items():
        sums[function] += calls
    return sums


def test_every_program_is_there(recorded):
    assert {path.stem for path in recorded.iterdir()} == {*NAMES}


def test_lines_beyond_16_bits_are_right(recorded):
    calls = decode((recorded / "odd_names.pst").read_bytes()).calls
    lines = calls.loc[calls["function"].isin(["a.<locals>.b", "𝄞"]), "line_number"]
    assert sorted(lines) == [200_004, 200_005]


def test_each_thread_has_its_own_calls(recorded):
    calls = decode((recorded / "threads.pst").read_bytes()).calls
    fibs = calls[(calls["function"] == "fib") & (calls["filename"] == PROGRAM)]
    per_thread = fibs.groupby("tid").size()
    assert sorted(per_thread) == [25 * n for n in range(1, 9)]


def test_objects_that_end_with_a_thread_s_outermost_call_are_not_in_another_place(probed):
    probed.run(
        "import _thread\n"
        "ended = threading.Event()\n"
        "class Ends:\n    def __del__(self): leaf(); ended.set()\n"
        "def outermost(): kept = Ends()\n"
        "def program():\n"
        "    _thread.start_new_thread(outermost, ())\n"
        "    ended.wait()\n"
        "    while _thread._count(): time.sleep(0)\n"
        "keep(record(program))\n"
    )
    calls = probed.recording().calls
    ends = calls[calls["function"] == "Ends.__del__"]
    outermost = calls[calls["function"] == "outermost"]
    assert len(ends) == len(outermost) == 1
    # Up to 3.11, they end after it.
    assert list(ends["parent"]) == ([-1] if probed.minor == 11 else list(outermost.index))
    assert outermost["complete"].all()
    assert list(outermost["depth"]) == [0]
