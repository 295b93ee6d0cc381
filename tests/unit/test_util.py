"""Conversions and files that several modules share."""

from __future__ import annotations

import json
import os
import stat

import numpy as np
import pytest

from hypothesis import given
from hypothesis import strategies as st

from pystack_nb import util
from pystack_nb.errors import ExportPathError


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(),
    lambda x: st.lists(x) | st.dictionaries(st.text() | st.integers(), x) | st.tuples(x, x),
)


@given(VALUES)
def test_any_value_becomes_strict_json(value):
    json.dumps(util.to_jsonable(value), allow_nan=False).encode("ascii")


def test_numpy_values_become_python_s():
    assert util.to_jsonable({"a": np.int64(1), "b": np.array([1.5, np.nan])}) == {
        "a": 1,
        "b": [1.5, None],
    }


@given(st.text(st.characters(exclude_categories=[])))
def test_printable_text_can_be_encoded_and_only_surrogates_change(text):
    assert util.printable(text).encode().decode() == util.printable(text)
    if not any(0xD800 <= ord(x) <= 0xDFFF for x in text):
        assert util.printable(text) == text


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.json", "json"),
        ("x.JSON", "json"),
        ("x.pftrace", "perfetto"),
        ("x.perfetto-trace", "perfetto"),
        ("folder", "parquet"),
        ("v3.12.1", "parquet"),
        (".hidden", "parquet"),
    ],
)
def test_a_path_that_can_be_written_is_told_by_its_format_and_left_clean(tmp_path, name, kind):
    assert util.check_export_path(tmp_path / name) == kind
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run.csv/", "x.json/"])
def test_a_path_with_a_slash_at_its_end_is_a_folder_whatever_its_suffix(tmp_path, name):
    assert util.check_export_path(f"{tmp_path}/{name}") == "parquet"


@pytest.mark.parametrize("name", ["x.csv", "x.json.gz", "nowhere/x.json", "folder.json", "file"])
def test_a_path_that_can_t_be_written_is_an_error_with_what_to_do(tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ExportPathError, match=r"; (name|end)"):
        util.check_export_path(tmp_path / name)


@pytest.mark.parametrize("path", ["/proc/x.json", "/proc/folder"])
def test_a_file_system_that_takes_no_files_is_found_out(path):
    with pytest.raises(ExportPathError, match="name a place"):
        util.check_export_path(path)


def test_a_device_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(ExportPathError, match="name a regular file"):
        util.check_export_path(tmp_path / "x.json")
    with pytest.raises(ExportPathError), util.atomic_file(tmp_path / "x.json"):
        pass
    assert stat.S_ISFIFO((tmp_path / "x.json").stat().st_mode)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    with util.atomic_file(tmp_path / "x") as file:
        file.write(b"whole")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x").read_bytes() == b"whole"


RECORDING = ("info.json", "samples.parquet", "stacks.parquet", "events.parquet")


def test_a_recordings_folder_is_replaced_as_a_whole_also_behind_a_link(tmp_path):
    folder, link = tmp_path / "folder", tmp_path / "link"
    folder.mkdir()
    for name in RECORDING:
        (folder / name).write_text("old")
    link.symlink_to(folder)
    with util.atomic_folder(link) as new:
        (new / "info.json").write_text("new")
    assert link.is_symlink()
    assert {x.name: x.read_text() for x in folder.iterdir()} == {"info.json": "new"}
    assert {x.name for x in tmp_path.iterdir()} == {"folder", "link"}


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "samples.parquet.bak"])
@pytest.mark.parametrize("ours", [(), RECORDING])
def test_a_folder_that_holds_anything_of_the_users_is_never_replaced(tmp_path, name, ours):
    folder = tmp_path / "folder"
    folder.mkdir()
    for each in (name, *ours):
        (folder / each).write_text("kept")
    with pytest.raises(ExportPathError, match=f"such as {name}; name a new folder"):
        util.check_export_path(folder)
    with pytest.raises(ExportPathError), util.atomic_folder(folder):
        pass
    assert {x.name for x in folder.iterdir()} == {name, *ours}


def test_what_is_put_into_a_folder_meanwhile_is_kept(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()

    def write():
        with util.atomic_folder(folder):
            (folder / "notes.txt").touch()

    with pytest.raises(ExportPathError):
        write()
    assert [x.name for x in tmp_path.rglob("*")] == ["folder", "notes.txt"]


def write_half_a_file(path, error):
    with util.atomic_file(path) as file:
        file.write(b"half")
        raise error


def write_half_a_folder(path, error):
    with util.atomic_folder(path) as folder:
        (folder / "info.json").touch()
        raise error


@pytest.mark.parametrize("write", [write_half_a_file, write_half_a_folder])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_file_or_folder_leaves_nothing(tmp_path, write, error):
    with pytest.raises(error):
        write(tmp_path / "x", error)
    assert list(tmp_path.iterdir()) == []
