"""When the tests that need real probes, or root, are run, skipped or failed."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys

from pathlib import Path
from typing import NoReturn

import pytest


# A shell lets what it starts in the background ignore Ctrl-C, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

HERE = Path(__file__).parent
MODES = ("auto", "require", "off")

# Attaches real probes to itself for a moment. Says nothing but why this machine can't do it; any
# other failure is a bug, and comes out as the traceback that it is.
ATTEMPT = """
import sys
from pystack_nb import PyStackProfiler, errors
try:
    with PyStackProfiler():
        pass
except (
    errors.BccMissingError,
    errors.BpfNotPermittedError,
    errors.CollectorUnavailableError,
) as error:
    sys.exit(f"unavailable: {error}")
"""


def bpf_mode() -> str:
    return os.environ.get("PYSTACK_NB_BPF_TESTS", "auto")


@functools.cache
def why_no_bpf() -> str | None:
    """Why real probes can't be had on this machine; None when they can."""
    attempt = subprocess.run(
        [sys.executable, "-c", ATTEMPT], capture_output=True, text=True, timeout=60, check=False
    )
    if attempt.returncode == 0:
        return None
    if attempt.stderr.startswith("unavailable: "):
        return attempt.stderr.removeprefix("unavailable: ").strip()
    pytest.fail(f"probes can't be attached, for no good reason:\n{attempt.stderr}", pytrace=False)


def pytest_configure() -> None:
    if bpf_mode() not in MODES:
        message = f"PYSTACK_NB_BPF_TESTS is {bpf_mode()!r}; set it to one of {', '.join(MODES)}."
        raise pytest.UsageError(message)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE / "bpf"):
            item.add_marker("bpf")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("bpf") is None:
        return
    if bpf_mode() == "off":
        pytest.skip("PYSTACK_NB_BPF_TESTS=off")
    if reason := why_no_bpf():
        lacking(reason)


def lacking(reason: str) -> NoReturn:
    """Leave a test that can't be run here."""
    if bpf_mode() == "require":
        pytest.fail(f"PYSTACK_NB_BPF_TESTS=require, but: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def leave():
    """For fixtures that find out by trying that something is lacking: call it with the reason."""
    return lacking


@pytest.fixture(scope="session")
def needs_root():
    """For tests that play several users, mount something, or give up rights."""
    if os.geteuid() != 0:
        lacking("only root can do what this test does: run the tests as root.")


@pytest.fixture(scope="session")
def needs_bpftool():
    """For tests that hand the kernel an object file."""
    found = shutil.which("bpftool")
    # Ubuntu has it as a script that looks for the running kernel's.
    if not found or subprocess.run([found, "version"], capture_output=True, check=False).returncode:
        lacking("there is no bpftool: install the package bpftool or linux-tools-KERNEL.")
