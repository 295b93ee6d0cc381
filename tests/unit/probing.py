"""Programs whose calls are recorded by a probe, under each interpreter that has one."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import functools
import os
import shutil
import subprocess
import sys

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pystack_nb import PyStackProfiler


if TYPE_CHECKING:
    from collections.abc import Iterator

    from pystack_nb import Recording

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
PROGRAMS = HERE / "programs"
MINORS = (11, 12, 13)
DISTRIBUTION = "distribution"  # whose CPython most users have: of another release, as a rule
_FACTS = "import os, sysconfig; print(os.path.join(sysconfig.get_path('include'), 'Python.h'))"


@functools.cache
def python(minor: int | str) -> Path:
    """Find CPython 3.`minor` or the distribution's, with headers, and build the probe for it."""
    path = Path(sys.executable) if minor == sys.version_info.minor else _other_python(minor)
    build = ["make", "-s", "-f", "native.mk", "probe", f"PYTHON={path}"]
    with _locked():
        subprocess.run(build, cwd=CHECKOUT, check=True)
    return path


@functools.cache
def greenlets(minor: int) -> Path:
    """Find a folder with the package greenlet for CPython 3.`minor`, fetched once into build/."""
    folder = CHECKOUT / "build" / "greenlet" / f"3.{minor}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    which = ["--only-binary=:all:", f"--python-version=3.{minor}", "--no-deps", "greenlet>=3"]
    with _locked():
        if folder.exists():
            return folder
        new = folder.with_name(f"{folder.name}.new")  # whole, or not there
        shutil.rmtree(new, ignore_errors=True)
        command = [*pip, f"--target={new}", *which]
        subprocess.run(command, capture_output=True, text=True, check=True)
        new.rename(folder)
    return folder


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Keep another run of the tests from building the same."""
    (CHECKOUT / "build").mkdir(exist_ok=True)
    with (CHECKOUT / "build" / "probe.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def name(minor: int | str) -> str:
    """Name a CPython in the name of a test."""
    return minor if isinstance(minor, str) else f"3.{minor}"


def _other_python(minor: int | str) -> Path:
    if minor == DISTRIBUTION:
        candidates = [Path(f"/usr/bin/python3.{x}") for x in MINORS]
    else:
        candidates = [Path(f"/usr/bin/python3.{minor}")]
    if minor != DISTRIBUTION and shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True)
        candidates += Path(root.stdout.strip()).glob(f"versions/3.{minor}.*/bin/python3.{minor}")
    for path in filter(Path.exists, candidates):
        header = subprocess.run([path, "-c", _FACTS], capture_output=True, text=True, check=True)
        if Path(header.stdout.strip()).exists():
            return path
    pytest.skip(f"there is no CPython {name(minor)} with headers here")


def start(minor: int | str, *arguments: str | Path, **options: object) -> subprocess.Popen[str]:
    """Start a program under CPython 3.`minor`, which finds the package and the programs."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = os.environ | {"PYTHONPATH": f"{CHECKOUT}{os.pathsep}{PROGRAMS}"}
    return subprocess.Popen([python(minor), *arguments], env=environment, **options)


def run(minor: int | str, text: str, folder: Path, *, status: int = 0) -> str:
    """Run the text of a program to its end; what it printed."""
    with start(minor, "-c", text, cwd=folder) as process:
        printed, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    return printed


def decode(data: bytes) -> Recording:
    """Decode a spool file whose calls must be whole: nothing lost, nothing unpaired."""
    recording = PyStackProfiler.parse_stack_data(data)
    assert recording.info["lost"] == 0
    assert recording.info["incomplete_by_cause"]["calls-unpaired"] == 0
    assert_nested(recording)
    return recording


def assert_nested(recording: Recording) -> None:
    """Look that calls lie within their callers, and that no thread's time goes back."""
    calls = recording.calls
    end = calls["ts_ns"] + calls["dur_ns"]
    for name in ("dur_ns", "self_ns"):
        assert (calls[name] >= 0).all()
    assert calls["ts_ns"].is_monotonic_increasing
    inside = calls[calls["parent"] >= 0]
    around = calls.iloc[inside["parent"]]
    assert (inside["tid"].to_numpy() == around["tid"].to_numpy()).all()
    assert (inside["depth"].to_numpy() == around["depth"].to_numpy() + 1).all()
    assert (inside["ts_ns"].to_numpy() >= around["ts_ns"].to_numpy()).all()
    assert (end[inside.index].to_numpy() <= end.iloc[inside["parent"]].to_numpy()).all()
    assert (calls.loc[calls["parent"] < 0, "depth"] == 0).all()
    # Those of one caller, in the order of time: each ends before the next one begins.
    ordered = calls.assign(end=end).sort_values(["tid", "parent", "ts_ns"], kind="stable")
    same = (ordered[["tid", "parent"]] == ordered[["tid", "parent"]].shift(-1)).all(axis=1)
    assert (ordered["end"] <= ordered["ts_ns"].shift(-1))[same].all()


def pairs(recording: Recording, filename: str) -> collections.Counter[tuple[str, str]]:
    """Count calls by caller ("" for one of another file) and function, of one file."""
    calls = recording.calls[recording.calls["kind"].isin(["call", "resume"])]
    names = recording.calls["function"].astype(str).to_numpy()
    inside = (recording.calls["filename"] == filename).to_numpy()
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for row in calls[calls["filename"] == filename].itertuples():
        direct = row.parent >= 0 and inside[row.parent]
        found[names[row.parent] if direct else "", row.function] += 1
    return found


def ncalls(recording: Recording) -> dict[str, int]:
    """Number of calls by qualified name, counts included."""
    table = recording.functions()
    return dict(zip(table["function"].astype(str), table["ncalls"], strict=True))
