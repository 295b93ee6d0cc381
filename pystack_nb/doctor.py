"""``pystack-nb doctor``: what this machine has and lacks for each mode, and what mends it.

What can be tried is tried: a line about a setting is only a hint, the last lines say what a real
collector did.
"""

from __future__ import annotations

import gzip
import os
import platform
import re
import shutil
import subprocess
import time

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pystack_nb.collector.client import SERVICE_SOCKET, SOCKET_VARIABLE, connect, disconnect
from pystack_nb.collector.locate import command_as_root
from pystack_nb.errors import (
    BccMissingError,
    BpfNotPermittedError,
    CollectorUnavailableError,
    ProbeError,
    PystackError,
)
from pystack_nb.rate import DEFAULT_HZ


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PYTHON = "/usr/bin/python3"
_BTF = Path("/sys/kernel/btf/vmlinux")
_SYSCTL = Path("/proc/sys/kernel")
_MARKS = {"has": "ok", "hint": "--", "lacks": "!!"}

# What each option is for; the modes that are not there yet are left out.
_CONFIG = {
    "CONFIG_BPF_SYSCALL": "loads BPF programs",
    "CONFIG_PERF_EVENTS": "the timer that samples",
    "CONFIG_BPF_EVENTS": "BPF programs on that timer, and on uprobes",
    "CONFIG_UPROBES": "fetches the probe's batches of calls",
    "CONFIG_UPROBE_EVENTS": "attaches BPF programs there",
    "CONFIG_DEBUG_INFO_BTF": "the kernel describes its structures",
}
# Bits of CapEff, linux/capability.h
_CAPABILITIES = {"CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_INSTALL_SERVICE = command_as_root("collector", "install")
_INSTALL_BCC = "sudo apt-get install python3-bpfcc"
_MORE_RIGHTS = "start this container with --cap-add BPF,PERFMON,SYS_PTRACE (docker) or the like"
_NO_VARIABLE = f"unset {SOCKET_VARIABLE}"
_REPORT = "run it once more; if it stays, report it with these lines"
_REMEDIES: dict[type[PystackError], str] = {
    BccMissingError: _INSTALL_BCC,
    BpfNotPermittedError: f"run it as root; {_MORE_RIGHTS}",
    CollectorUnavailableError: _INSTALL_SERVICE,
    ProbeError: "make setup",
}
_CAN = {True: "can", False: "can not"}
_TRIAL_SECONDS = 0.1
_TRIAL_CALLS = 1000
_WAYS = {"own": "started one, which this user may", "service": "the installed service answers"}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's.

    Attributes
    ----------
    state
        ``"has"``; ``"lacks"`` what the default mode can't do without; ``"hint"`` for what may or
        may not matter.
    subject, text
        What was looked at, and what is the matter.
    remedy
        The command, or the step, that mends it; of whatever is not ``"has"``.
    """

    state: str
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        if self.state != "has" and not self.remedy:
            raise ValueError(f"{self.subject}: a finding like this takes a remedy")

    def __str__(self) -> str:
        line = f"[{_MARKS[self.state]}] {self.subject}: {self.text}"
        return f"{line}\n     to mend it: {self.remedy}" if self.remedy else line


def main() -> int:
    """Examine this machine and print what was found; return the exit status."""
    lacking = set()
    for examine in EXAMINATIONS:
        for finding in examine():
            print(finding, flush=True)
            if examine in {examine_probe, examine_collector} and finding.state == "lacks":
                lacking.add(finding.subject)
    sample = not lacking - {"probe", "calls"}
    calls = not lacking
    print(f"mode sample: {_CAN[sample]} run on this machine")
    print(f"mode calls: {_CAN[calls]} run on this machine")
    if not calls and "probe" not in lacking:
        print("mode calls: can run without eBPF, with --source inprocess")
    # Without a probe the default leaves calls out, and says so.
    able = sample and (calls or "probe" in lacking)
    print(f"the default, both: {_CAN[able]} run on this machine")
    return 0 if able else 1


def examine_kernel() -> Iterator[Finding]:
    """Tell version and architecture."""
    machine = platform.machine()
    text = f"{platform.system()} {platform.release()} on {machine}"
    if machine == "x86_64" and platform.system() == "Linux":
        yield Finding("has", "kernel", text)
    else:
        yield Finding("lacks", "kernel", text, "use a Linux machine of the x86-64 architecture")


def examine_config() -> Iterator[Finding]:
    """Look for the options that the kernel was built with."""
    text = _kernel_config()
    if text is None:
        yield Finding(
            "hint",
            "kernel config",
            "can't be read here; what counts is tried further down",
            "sudo modprobe configs; in a container, mount the host's /boot",
        )
        return
    for option, purpose in _CONFIG.items():
        if re.search(rf"^{option}=[ym]$", text, re.MULTILINE):
            yield Finding("has", option, purpose)
        else:
            yield Finding("lacks", option, purpose, f"boot a kernel that has {option}=y")


def _kernel_config() -> str | None:
    for path in _config_files():
        try:
            data = path.read_bytes()
        except OSError:
            continue
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return None


def _config_files() -> list[Path]:
    release = platform.release()
    return [
        Path("/proc/config.gz"),
        Path(f"/boot/config-{release}"),
        Path(f"/lib/modules/{release}/config"),
    ]


def examine_btf() -> Iterator[Finding]:
    """Look for the kernel's own description of its structures."""
    if os.access(_BTF, os.R_OK):
        yield Finding("has", "BTF", str(_BTF))
    else:
        yield Finding(
            "lacks",
            "BTF",
            f"no {_BTF}",
            "boot a kernel that has CONFIG_DEBUG_INFO_BTF=y, or mount /sys in this container",
        )


def examine_tracefs() -> Iterator[Finding]:
    """Look for tracefs, which no mode needs: perf events take the probes."""
    mounted = next(
        (
            line.split()[1]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if line.split()[2] == "tracefs"
        ),
        None,
    )
    yield Finding("has", "tracefs", mounted or "not mounted, and no mode needs it")


def examine_lockdown() -> Iterator[Finding]:
    """Ask whether the kernel keeps BPF from reading memory."""
    try:
        text = Path("/sys/kernel/security/lockdown").read_text()
    except OSError:
        return  # no such thing here, or not for us to read: the trial decides
    if "[confidentiality]" in text:
        yield Finding(
            "lacks",
            "lockdown",
            "the kernel is locked down (confidentiality): BPF programs can read no memory",
            "boot without lockdown=confidentiality",
        )
    else:
        yield Finding("has", "lockdown", "does not keep BPF programs from reading memory")


def examine_rights() -> Iterator[Finding]:
    """Ask what this process may do, itself, through sudo or through a service."""
    # As `connect` tries them: a service that is named comes first, another one last.
    named = os.environ.get(SOCKET_VARIABLE)
    service = Path(named or SERVICE_SOCKET)
    if named and service.exists():
        yield Finding("has", "rights", f"those of the service on {service}")
    elif named:
        text = f"{SOCKET_VARIABLE} names a service on {service}, and there is none"
        yield Finding("lacks", "rights", text, _NO_VARIABLE)
    elif os.geteuid() == 0:
        held = _capabilities()
        text = f"root, with {', '.join(held) or 'no capability that counts'}"
        enough = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"} <= set(held) or {
            "CAP_BPF",
            "CAP_PERFMON",
            "CAP_SYS_PTRACE",
        } <= set(held)
        # Without them the kernel refuses the BPF program, further down.
        yield Finding("has" if enough else "lacks", "rights", text, "" if enough else _MORE_RIGHTS)
    elif shutil.which("sudo") and _succeeds("sudo", "-n", "true"):
        yield Finding("has", "rights", "sudo works without a password")
    elif service.exists():
        yield Finding("has", "rights", f"those of the service on {service}")
    else:
        yield Finding(
            "lacks",
            "rights",
            "not root, sudo asks for a password or is missing, and no service is installed",
            _INSTALL_SERVICE,
        )


def _capabilities() -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            bits = int(line.split()[1], 16)
            return [name for name, bit in _CAPABILITIES.items() if bits >> bit & 1]
    return []


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


_BCC = "import bcc, bcc.version; print(bcc.version.__version__, bcc.libbcc.lib._name)"


def examine_bcc() -> Iterator[Finding]:
    """Ask the distribution's Python for BCC."""
    if not Path(_PYTHON).exists():
        yield Finding("lacks", "bcc", f"there is no {_PYTHON}", _INSTALL_BCC)
        return
    answer = subprocess.run(
        [_PYTHON, "-I", "-c", _BCC], capture_output=True, text=True, check=False
    )
    if answer.returncode == 0:
        version, library = answer.stdout.split()
        yield Finding("has", "bcc", f"{version} ({library}) for {_PYTHON}")
    else:
        reason = answer.stderr.strip().rpartition("\n")[2]
        yield Finding("lacks", "bcc", f"{_PYTHON} has none ({reason})", _INSTALL_BCC)


def examine_perf_limits() -> Iterator[Finding]:
    """Read the kernel's limits on perf events."""
    names = ("perf_event_max_sample_rate", "perf_cpu_time_max_percent", "perf_event_mlock_kb")
    limits = {}
    for name in (*names, "perf_event_paranoid"):
        try:
            limits[name] = int((_SYSCTL / name).read_text())
        except OSError:
            yield Finding(
                "hint",
                name,
                "can't be read here; what counts is tried further down",
                "boot a kernel that has CONFIG_PERF_EVENTS=y, or mount /proc in this container",
            )
    rate = limits.get("perf_event_max_sample_rate", DEFAULT_HZ)
    if rate < DEFAULT_HZ:
        yield Finding(
            "lacks",
            "perf_event_max_sample_rate",
            f"{rate} Hz, less than the default rate of {DEFAULT_HZ} Hz",
            "sudo sysctl kernel.perf_event_max_sample_rate=100000",
        )
    text = ", ".join(f"{name} {limits[name]}" for name in names if name in limits)
    if text:
        yield Finding("has", "perf limits", text)
    paranoid = limits.get("perf_event_paranoid", 0)
    if paranoid > 1 and os.geteuid() != 0:
        yield Finding(
            "hint",
            "perf_event_paranoid",
            f"{paranoid}: users other than root see no kernel frames",
            "sudo sysctl kernel.perf_event_paranoid=1 kernel.kptr_restrict=0",
        )


def examine_interpreter() -> Iterator[Finding]:
    """Read this very interpreter as the collector would."""
    from pystack_nb.collector.protocol import CollectorProblem  # noqa: PLC0415
    from pystack_nb.collector.target import find_interpreter  # noqa: PLC0415

    try:
        found = find_interpreter(os.getpid())
    except CollectorProblem as problem:
        yield Finding(
            "lacks",
            "interpreter",
            problem.message,
            "make the environment anew with CPython 3.11, 3.12 or 3.13",
        )
    else:
        version = ".".join(map(str, found.version))
        yield Finding("has", "interpreter", f"CPython {version} in {found.executable_path}")


def examine_library() -> Iterator[Finding]:
    """Look for what the build leaves: the BPF source and the C library."""
    from pystack_nb.collector.locate import bpf_folder, library  # noqa: PLC0415

    for subject, locate in (("BPF source", bpf_folder), ("C library", library)):
        try:
            yield Finding("has", subject, str(locate()))
        except PystackError as error:
            yield Finding("lacks", subject, str(error), "make setup")


def examine_collector() -> Iterator[Finding]:
    """Reach a collector, have it load the BPF program, and record this process for a moment."""
    subject = "collector"
    try:
        client = connect()
        yield Finding("has", subject, _WAYS[client.way])
        subject = "BPF program"
        versions = client.prepare()
        client.release()
        text = ", ".join(f"{name} {version}" for name, version in versions.items())
        yield Finding("has", subject, f"compiled and loaded ({text})")
        subject = "recording"
        yield _record_myself()
        subject = "calls"
        yield from _record_my_calls()
    except PystackError as error:
        yield Finding("lacks", subject, str(error), _remedy(error))
    finally:
        disconnect()


def examine_probe() -> Iterator[Finding]:
    """Load the probe of calls mode, which tries itself on every kind of call."""
    from pystack_nb.probe import load  # noqa: PLC0415 - late, as above

    try:
        load()
    except PystackError as error:
        yield Finding("lacks", "probe", str(error), _remedy(error))
    else:
        version = platform.python_version()
        yield Finding("has", "probe", f"sees every kind of call in CPython {version}")


def _remedy(error: PystackError) -> str:
    named = os.environ.get(SOCKET_VARIABLE)
    if isinstance(error, CollectorUnavailableError) and named and not Path(named).exists():
        return _NO_VARIABLE
    return _REMEDIES.get(type(error), _REPORT)


def _record_my_calls() -> Iterator[Finding]:
    from pystack_nb.core import PyStackProfiler  # noqa: PLC0415 - imports NumPy
    from pystack_nb.errors import ProbeError  # noqa: PLC0415

    # Not of this package's own files, whose calls are left out.
    names: dict[str, Any] = {}
    exec(compile("def called(): pass", "<doctor>", "exec"), names)  # noqa: S102 - a constant
    try:
        profiler = PyStackProfiler(mode="calls")
        with profiler:
            for _ in range(_TRIAL_CALLS):
                names["called"]()
    except ProbeError:
        return  # has its own line
    recording = profiler.recording
    calls = 0 if recording is None else int((recording.calls["function"] == "called").sum())
    if calls == _TRIAL_CALLS:
        yield Finding("has", "calls", f"{calls} of {_TRIAL_CALLS} recorded")
    else:
        text = f"{calls} of {_TRIAL_CALLS} recorded"
        yield Finding("lacks", "calls", text, _REPORT)


def _record_myself() -> Finding:
    from pystack_nb.core import PyStackProfiler  # noqa: PLC0415 - imports NumPy

    profiler = PyStackProfiler(hz=DEFAULT_HZ)
    with profiler:
        until = time.process_time() + _TRIAL_SECONDS
        while time.process_time() < until:
            pass
    recording = profiler.recording
    samples = 0 if recording is None else int(recording.samples["function"].notna().sum())
    if samples:
        return Finding("has", "recording", f"{samples} samples of {_TRIAL_SECONDS:g} s of Python")
    return Finding(
        "lacks",
        "recording",
        f"not one sample of {_TRIAL_SECONDS:g} s of Python",
        _REPORT,
    )


EXAMINATIONS: tuple[Callable[[], Iterator[Finding]], ...] = (
    examine_kernel,
    examine_config,
    examine_btf,
    examine_tracefs,
    examine_lockdown,
    examine_rights,
    examine_bcc,
    examine_perf_limits,
    examine_interpreter,
    examine_library,
    examine_probe,
    examine_collector,
)
