"""From where the collector imports, when root runs it."""

from __future__ import annotations

import os
import site
import sys

from pathlib import Path

import pytest

from pystack_nb.collector.trust import drop_untrusted_packages


@pytest.mark.usefixtures("needs_root")
def test_root_imports_nothing_from_a_folder_that_a_group_can_change(tmp_path, monkeypatch):
    safe, unsafe = tmp_path / "safe", tmp_path / "unsafe"
    for folder, mode in ((safe, 0o755), (unsafe, 0o775)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(unsafe), str(safe)])
    monkeypatch.setattr(sys, "path", [str(Path(os.__file__).parent), str(unsafe), str(safe)])
    drop_untrusted_packages()
    assert sys.path == [str(Path(os.__file__).parent), str(safe)]
