"""Spool files: where they lie, whose they are, and which are left over."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile

from pathlib import Path

import numpy as np
import pytest

from pystack_nb import spool, wire
from pystack_nb.errors import SpoolError
from pystack_nb.spool import Spool


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_a_spool_lies_in_the_runtime_folder_and_is_its_users_alone(runtime):
    made = Spool.create({})
    assert made.path.parent == runtime / "pystack_nb"
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(made.path.parent.stat().st_mode) == 0o700
    made.remove()
    assert not made.path.exists()


def test_without_a_runtime_folder_a_spool_lies_in_the_temporary_one(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert spool.spool_folder() == tmp_path / f"pystack_nb-{os.geteuid()}"


def test_a_spool_begins_with_the_header_and_the_clients_meta(runtime):
    # GIVEN and WHEN
    made = Spool.create({"hz": 499, "cell": {"code": "é"}})
    data = made.read()
    made.remove()
    # THEN each structure is as wire.py, and with it the C header, has it
    header = np.frombuffer(data, wire.FILE_HEADER, 1)[0]
    assert header["magic"] == wire.FILE_MAGIC.rstrip(b"\0")
    assert (header["format"], header["size"]) == (wire.FORMAT, wire.FILE_HEADER.itemsize)
    start = wire.FILE_HEADER.itemsize
    block = np.frombuffer(data, wire.BLOCK_HEADER, 1, start)[0]
    start += wire.BLOCK_HEADER.itemsize
    assert (block["magic"], block["record_count"]) == (wire.BLOCK_MAGIC, 1)
    [size, padding] = np.frombuffer(data, "<u4", 2, start)
    start += 8
    assert (size, padding, len(data)) == (block["data_size"], 0, start + size)
    assert size % 8 == 0
    record = np.frombuffer(data, wire.HEADER, 1, start)[0]
    assert (record["type"], record["flags"]) == (wire.RecordType.META, 0)
    meta = json.loads(data[start + wire.HEADER.itemsize : start + record["size"]])
    assert meta == {"role": "client", "hz": 499, "cell": {"code": "é"}}


@pytest.mark.usefixtures("needs_root")
def test_a_folder_that_another_user_made_in_its_place_is_gone_around(tmp_path, monkeypatch):
    # GIVEN another user's folder of that name in a temporary folder that all share
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = tmp_path / f"pystack_nb-{os.geteuid()}"
    taken.mkdir(0o700)
    os.chown(taken, 42001, 42001)
    # WHEN
    first, second = Spool.create({}), Spool.create({})
    # THEN spools lie in one of this user's own, and are found there
    folder = first.path.parent
    assert folder == second.path.parent != taken
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    left = folder / f"{os.getpid()}-1-0{spool.SUFFIX}"
    left.touch()
    assert spool.leftovers() == [left]
    assert list(taken.iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_folder_that_others_can_enter_is_refused(runtime, mode):
    folder = runtime / "pystack_nb"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(SpoolError, match="not this user's alone"):
        Spool.create({})


def test_a_link_in_the_folders_place_is_refused(runtime, tmp_path_factory):
    (runtime / "pystack_nb").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(SpoolError, match="not this user's alone"):
        Spool.create({})


def test_only_what_an_ended_process_wrote_is_left_over(runtime):
    mine = Spool.create({})
    program = "from pystack_nb.spool import Spool; print(Spool.create({}).path)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    theirs = Path(printed.stdout.decode().strip())
    assert spool.leftovers() == [theirs]
    mine.remove()


def test_a_pid_given_to_another_process_does_not_hide_what_is_left_over(runtime):
    left = spool.spool_folder() / f"{os.getpid()}-1-0{spool.SUFFIX}"
    left.touch()
    assert spool.leftovers() == [left]
