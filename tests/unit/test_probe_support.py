"""Interpreters that the probe is not made for: the rest is built, and the error says what to do."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
import sysconfig

from pathlib import Path

import pytest

from IPython.core.interactiveshell import InteractiveShell

from pystack_nb import PyStackProfiler, probe
from pystack_nb.cell_recording import CellRecording
from pystack_nb.errors import ProbeError
from pystack_nb.options import Options
from pystack_nb.probe import supported


ROOT = Path(__file__).parents[2]
REASON = "there is no probe for this one"


def change(monkeypatch, what):
    match what:
        case "3.14":
            monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        case "free-threaded":
            monkeypatch.setattr(sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED")
        case other:
            name = "machine" if other == "aarch64" else "python_implementation"
            monkeypatch.setattr(platform, name, lambda: other)


def test_there_is_a_probe_for_this_interpreter():
    assert supported.why_not() is None


@pytest.mark.parametrize("what", ["3.14", "free-threaded", "aarch64", "PyPy"])
def test_there_is_none_for_others_and_why(monkeypatch, what):
    change(monkeypatch, what)

    assert what in supported.why_not().split(", only for ")[0]


@pytest.fixture
def without_probe(monkeypatch):
    """An interpreter that no probe was built for."""
    imported = importlib.import_module

    def import_module(name, *rest):
        if name.endswith("._probe"):
            raise ImportError(name=name)
        return imported(name, *rest)

    monkeypatch.setattr(importlib, "import_module", import_module)
    monkeypatch.setattr(probe, "_known", {})
    change(monkeypatch, "aarch64")


@pytest.mark.parametrize("mode", ["calls", "sample,calls"])
def test_asked_for_calls_it_is_an_error_that_names_the_other_mode(without_probe, mode):
    with pytest.raises(ProbeError, match=r"on aarch64, only for .*: use --mode sample\.$"):
        PyStackProfiler(mode=mode).start_profiling()


def test_a_cell_is_not_recorded_by_halves(without_probe):
    with pytest.raises(ProbeError, match=r"use --mode sample\.$"):
        CellRecording(InteractiveShell(), Options(), "<cell>").start()


@pytest.fixture
def other_python(tmp_path):
    """Make an interpreter out of this one that says that there is no probe for it."""
    path = tmp_path / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *supported.py) echo {REASON}; exit ;; esac\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def run(*command, **options):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_make_builds_the_rest_for_it_and_says_so(other_python):
    changed = ("-W", "pystack_nb/_pairing.c", "-W", "pystack_nb/probe/_probe.c")
    built = run("make", "--dry-run", "-f", "native.mk", *changed, f"PYTHON={other_python}")

    assert built.returncode == 0, built.stderr
    assert "_pairing.c" in built.stdout
    assert "_probe.c" not in built.stdout
    assert f"{REASON}: calls can't be recorded" in built.stdout


def test_make_refuses_to_build_the_probe_for_it(other_python):
    built = run("make", "-f", "native.mk", "probe", f"PYTHON={other_python}")

    assert built.returncode == 2
    assert f"{REASON}; name such an interpreter" in built.stderr


def test_a_wheel_for_it_is_built_without_the_probe(other_python, tmp_path):
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    build = tmp_path / "build"
    configured = run("cmake", *generator, "-B", build, f"-DPython_EXECUTABLE={other_python}")

    assert configured.returncode == 0, configured.stderr
    assert f"{REASON}: calls can't be recorded" in " ".join(configured.stderr.split())
    targets = run("cmake", "--build", build, "--target", "help").stdout
    assert "pairing" in targets
    assert "probe" not in targets
