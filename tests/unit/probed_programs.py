"""Programs that record themselves with the probe."""

from __future__ import annotations

import subprocess

from probing import PROGRAMS, decode, ncalls, python, run


PRELUDE = """
import os, sys, threading, time
from pathlib import Path
from pystack_nb.errors import ProbeError, ProfilerStateError
from pystack_nb.probe import CallOptions, Probe
from record_calls import Recording, record

def keep(data, name="out"):
    Path(name + ".pst").write_bytes(data)

def leaf():
    pass

def call(times):
    for _ in range(times):
        leaf()
"""


class Probed:
    def __init__(self, minor, folder):
        self.minor, self.folder = minor, folder

    def run(self, text, status=0):
        return run(self.minor, PRELUDE + text, self.folder, status=status)

    def recording(self, name="out"):
        return decode((self.folder / f"{name}.pst").read_bytes())

    def ncalls(self, name="out"):
        return ncalls(self.recording(name))

    def build_evaluator(self):
        text = "from sysconfig import *; print(get_path('include'), get_config_var('EXT_SUFFIX'))"
        facts = subprocess.run([python(self.minor), "-c", text], capture_output=True, check=True)
        include, suffix = facts.stdout.decode().split()
        target = self.folder / f"evaluator{suffix}"
        source = PROGRAMS / "evaluator.c"
        command = ["cc", "-O1", "-shared", "-fPIC", f"-I{include}", "-o", target, source]
        subprocess.run(command, check=True)
