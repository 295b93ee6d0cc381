"""Recordings as JSON; that they are read back equal is tested in test_recording.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from pathlib import Path

import pytest
import spools

from hypothesis import given, settings
from hypothesis import strategies as st

from pystack_nb import tables
from pystack_nb.convert_to_json import convert_to_json
from pystack_nb.decode import decode
from pystack_nb.errors import ExportPathError, RecordingFormatError
from pystack_nb.recording import Recording, load


DOCUMENTATION = Path(__file__).resolve().parents[2] / "docs" / "json-format.md"


@pytest.fixture
def recording():
    """Three samples of two functions."""
    return Recording(
        *decode(
            spools.spool(
                spools.client(),
                *spools.code(1, "outer", "a.py", 10, spools.lines(0, 1)),
                *spools.code(2, "inner", "a.py", 20, spools.lines(0, 1)),
                spools.sample(10, [(1, 0)]),
                spools.sample(20, [(2, 1), (1, 1)]),
                spools.sample(30, flags=8),
            )
        )
    )


def refuse(constant):
    raise ValueError(constant)


def test_the_json_is_strict_versioned_and_says_what_the_tables_say(recording):
    document = json.loads(convert_to_json(recording), parse_constant=refuse)
    assert (document["format"], document["version"]) == ("pystack_nb", 2)
    strings = document["strings"]
    samples = document["samples"]
    assert samples["ts_ns"] == [10, 20, 30]
    assert [strings[x] if x >= 0 else None for x in samples["function"]] == ["outer", "inner", None]
    assert [strings[x] for x in document["frames"]["filename"]] == ["a.py"] * 3
    assert document["info"]["samples"] == 3


def test_each_table_has_the_columns_of_the_contract_all_of_one_length(recording):
    document = json.loads(convert_to_json(recording))
    for name in ("samples", "frames", "events", "calls", "counts"):
        assert list(document[name]) == list(getattr(tables, name.upper()))
        assert {len(x) for x in document[name].values()} == {len(getattr(recording, name))}


def test_the_documentation_names_the_version_and_every_column():
    text = DOCUMENTATION.read_text()
    assert "version 2" in text.lower()
    for name in ("SAMPLES", "FRAMES", "EVENTS", "CALLS", "COUNTS"):
        assert all(f"`{x}`" in text for x in getattr(tables, name)), name
    example = re.search(r"```json\n(.*?)```", text, re.DOTALL)[1]
    assert json.loads(example)["version"] == 2


def test_the_documentation_s_example_can_be_loaded(tmp_path):
    example = re.search(r"```json\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)[1]
    (tmp_path / "example.json").write_text(example)
    rec = load(tmp_path / "example.json")
    assert (len(rec.samples), len(rec.calls), len(rec.counts)) == (2, 2, 1)
    functions = rec.functions().set_index("function")
    assert functions["ncalls"].to_dict() == {"<module>": 1, "work": 1, "leaf": 3000}
    assert functions["samples"].to_dict() == {"<module>": 2, "work": 2, "leaf": 0}


def test_a_document_of_version_1_is_one_without_calls(recording, tmp_path):
    document = json.loads(convert_to_json(recording))
    document["version"] = 1
    del document["calls"], document["counts"]
    (tmp_path / "x.json").write_text(json.dumps(document))
    rec = load(tmp_path / "x.json")
    assert rec.to_traces() == recording.to_traces()
    assert rec.calls.empty


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_name_survives(function, filename):
    rec = Recording(*decode(spools.FILE_HEADER))
    frames = rec.frames.reindex([0]).assign(
        stack_id=0, depth=0, kind="python", function=function, filename=filename
    )
    frames = frames.fillna({"line_number": 0, "first_line": 0})
    text = convert_to_json(Recording(rec.samples, frames))
    assert text.isascii()
    document = json.loads(text)
    read = {x: document["strings"][document["frames"][x][0]] for x in ("function", "filename")}
    assert read == {"function": function, "filename": filename}


def test_the_list_of_stack_traces_is_taken_too(recording, tmp_path):
    (tmp_path / "x.json").write_text(convert_to_json(recording.to_traces()))
    assert load(tmp_path / "x.json").to_traces() == recording.to_traces()


def edited(document, path, value):
    *way, last = path
    for name in way:
        document = document[name]
    if value is None:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "something else"),
        (["version"], 3),
        (["version"], None),
        (["info"], []),
        (["strings"], [1]),
        (["strings"], []),
        (["samples"], None),
        (["samples"], []),
        (["samples", "tid"], None),
        (["samples", "tid"], [1, 2]),
        (["samples", "tid"], [1, 2, "three"]),
        (["samples", "tid"], [1, 2, 3.5]),
        (["samples", "tid"], [1, 2, 2**40]),
        (["samples", "tid"], [1, 2, 2**80]),
        (["samples", "tid"], [[1], [2], [3]]),
        (["samples", "function"], [0, 1, 10**6]),
        (["samples", "function"], [0, 1, -2]),
        (["events", "args"], [{}]),
        (["calls"], None),
        (["calls", "complete"], [1]),
        (["counts", "ncalls"], None),
    ],
)
def test_json_that_is_no_whole_recording_is_an_error_with_what_to_do(
    recording, tmp_path, path, value
):
    document = json.loads(convert_to_json(recording))
    edited(document, path, value)
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(RecordingFormatError, match="write it again"):
        load(tmp_path / "x.json")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 200_000])
def test_a_file_of_something_else_is_an_error_with_what_to_do(tmp_path, data):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(RecordingFormatError, match="give a file"):
        load(tmp_path / "x.json")


def test_a_file_cut_short_is_an_error_with_what_to_do(recording, tmp_path):
    text = convert_to_json(recording)
    for size in (1, len(text) // 2, len(text) - 2):
        (tmp_path / "x.json").write_text(text[:size])
        with pytest.raises(RecordingFormatError, match="write it again"):
            load(tmp_path / "x.json")


def test_an_error_in_the_middle_leaves_nothing_and_keeps_the_old_file(
    recording, tmp_path, monkeypatch
):
    def fail(*_):
        yield '{"format":'
        raise OSError(28, "No space left on device")

    (tmp_path / "x.json").write_text("old")
    monkeypatch.setattr("pystack_nb.convert_to_json._pieces", fail)
    with pytest.raises(ExportPathError, match="No space left on device; name a place"):
        recording.to_json(tmp_path / "x.json")
    assert [x.read_text() for x in tmp_path.iterdir()] == ["old"]


def test_it_runs_as_a_program(recording, tmp_path):
    recording.save(tmp_path / "saved")
    command = [sys.executable, "-m", "pystack_nb.convert_to_json", tmp_path / "saved"]
    subprocess.run([*command, tmp_path / "x.json"], check=True)
    assert load(tmp_path / "x.json").to_traces() == recording.to_traces()
