"""What a user hears on a machine, or with rights, that can't record; each time for real."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest


pytestmark = pytest.mark.usefixtures("needs_root")

BCC = "/usr/lib/python3/dist-packages/bcc"
NOBODY = "42001"
ATTEMPT = """
import json, os, tempfile
from pathlib import Path
from pystack_nb import PyStackProfiler
from pystack_nb.collector.client import disconnect
from pystack_nb.errors import PystackError

profiler, said = PyStackProfiler(), []
with tempfile.TemporaryDirectory() as folder:
    os.environ["XDG_RUNTIME_DIR"] = folder
    for _ in range(2):
        try:
            profiler.start_profiling()
        except PystackError as error:
            said.append([type(error).__name__, str(error)])
    left = [str(path) for path in Path(folder).rglob("*") if path.is_file()]
disconnect()
print(json.dumps({"said": said, "left": left}))
"""
# A user without sudo, who may read this checkout wherever it lies.
AS_NOBODY = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
]
WITHOUT_BCC = [
    *("unshare", "--mount", "--propagation=private", "sh", "-c"),
    f'mount -t tmpfs none {BCC} && exec "$0" "$@"',
]


def without(*capabilities: str) -> list[str]:
    """Have root's rights, but for these."""
    return ["setpriv", "--bounding-set", ",".join(f"-{name}" for name in capabilities)]


def refused(command: list[str], **environment: str) -> tuple[str, str]:
    """Try to record twice, and return the class and the text of the error."""
    answer = subprocess.run(
        [*command, sys.executable, "-c", ATTEMPT],
        stdout=subprocess.PIPE,
        check=True,
        cwd="/",
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **environment},
    )
    told = json.loads(answer.stdout)
    first, second = told["said"]  # the second attempt does not fail for what the first one left
    assert first == second
    assert told["left"] == []
    return tuple(first)


@pytest.mark.parametrize(
    "rights",
    [
        without("bpf", "perfmon", "sys_admin"),
        without("bpf", "sys_admin"),
        without("perfmon", "sys_admin"),
        without("bpf", "perfmon", "sys_admin", "sys_ptrace", "sys_resource"),
    ],
    ids=["neither", "no BPF", "no events", "as in a container"],
)
def test_a_collector_without_the_right_to_bpf_says_which_rights_it_lacks(rights):
    name, message = refused(rights)
    assert name == "BpfNotPermittedError"
    for part in ("CAP_BPF", "CAP_PERFMON", "pystack-nb doctor"):
        assert part in message


def test_without_bcc_the_package_to_install_is_named():
    name, message = refused(WITHOUT_BCC)
    assert name == "BccMissingError"
    assert "apt-get install python3-bpfcc" in message


def test_without_rights_and_collector_the_three_ways_are_named():
    name, message = refused(AS_NOBODY)
    assert name == "CollectorUnavailableError"
    for way in ("as root", "sudo", "collector install", "PYSTACK_NB_SOCKET"):
        assert way in message


def test_the_command_that_is_named_runs_where_no_environment_is_active():
    _, message = refused(AS_NOBODY)
    # GIVEN the command of the error, with its last word exchanged for something harmless
    sudo, *command, verb = shlex.split(re.search("`(sudo .* collector install)`", message)[1])
    assert (sudo, verb) == ("sudo", "install")
    # WHEN root runs it with what sudo leaves of an environment
    answer = subprocess.run(
        [*command, "status"], capture_output=True, check=False, cwd="/", env={"PATH": "/usr/bin"}
    )
    # THEN it is there, and says that nothing is installed
    assert answer.returncode == 1
    assert b"installed" in answer.stdout


def test_a_service_that_is_not_there_is_told_with_its_path():
    name, message = refused(AS_NOBODY, PYSTACK_NB_SOCKET="/run/pystack_nb/nobody.sock")
    assert name == "CollectorUnavailableError"
    assert "/run/pystack_nb/nobody.sock" in message
