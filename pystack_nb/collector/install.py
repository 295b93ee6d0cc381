"""Install the collector as a service, for users who are not root."""

from __future__ import annotations

import os
import shutil
import subprocess

from pathlib import Path
from typing import NoReturn

from pystack_nb.collector import locate
from pystack_nb.collector.client import SERVICE_SOCKET, SOCKET_VARIABLE, try_service
from pystack_nb.collector.launch import PYTHON
from pystack_nb.errors import AccessDeniedError, CollectorUnavailableError, PystackError


PREFIX = Path("/usr/local/lib/pystack_nb")
UNIT = Path("/etc/systemd/system/pystack-nb-collector.service")

_UNIT_TEXT = """\
[Unit]
Description=Collector of pystack_nb: samples Python processes of whoever may read them

[Service]
ExecStart={command}
RuntimeDirectory={runtime}
Restart=on-failure
NoNewPrivileges=yes
MemoryMax=50%
TasksMax=512

[Install]
WantedBy=multi-user.target
"""
# What only the notebook's side imports stays out of what root runs.
_NOTEBOOK_SIDE = {"client.py", "install.py", "launch.py", "locate.py"}


def install(prefix: Path = PREFIX) -> list[str]:
    """Copy the collector to a place that only root can change, and start it as a service.

    Parameters
    ----------
    prefix
        The folder to put it in; an earlier installation there is replaced.

    Returns
    -------
    list of str
        What was done and what is left to do, a line each.

    Raises
    ------
    AccessDeniedError
        When not root.
    """
    _require_root("install")
    _remove(prefix)
    copy(prefix)
    lines = [f"installed in {prefix}"]
    if not _has_systemd():
        return [*lines, f"systemd does not run here; start it with: {' '.join(command(prefix))}"]
    UNIT.write_text(
        _UNIT_TEXT.format(command=" ".join(command(prefix)), runtime=SERVICE_SOCKET.parent.name)
    )
    _systemctl("daemon-reload")
    _systemctl("enable", UNIT.name)
    _systemctl("restart", UNIT.name)
    found = (
        f"every user's notebooks find it on {SERVICE_SOCKET}; who is root or may `sudo` without a "
        f"password starts a collector of his own, unless {SOCKET_VARIABLE} names this one"
    )
    return [*lines, f"started as {UNIT.name}", found]


def uninstall(prefix: Path = PREFIX) -> list[str]:
    """Stop the service and remove what `install` has made; return a line for each step.

    Raises
    ------
    AccessDeniedError
        When not root.
    """
    _require_root("uninstall")
    lines = []
    if UNIT.exists() and _has_systemd():
        _systemctl("disable", "--now", UNIT.name)
        UNIT.unlink()
        _systemctl("daemon-reload")
        lines.append(f"stopped and removed {UNIT.name}")
    if _remove(prefix):
        lines.append(f"removed {prefix}")
    return lines or ["there was nothing to remove"]


def status(prefix: Path = PREFIX, socket_path: Path = SERVICE_SOCKET) -> tuple[list[str], bool]:
    """Return lines that say whether the service is installed and answers, and whether it does."""
    there = (prefix / "collector" / "__main__.py").exists()
    lines = [f"installed in {prefix}" if there else "not installed"]
    # An empty variable is none, for the client too.
    path = Path(os.environ.get(SOCKET_VARIABLE) or socket_path)
    try:
        versions = try_service(path)
    except PystackError as error:
        return [*lines, str(error)], False
    return [*lines, f"answers on {path}, kernel {versions['kernel']}"], True


def run(socket_path: Path = SERVICE_SOCKET, prefix: Path = PREFIX) -> NoReturn:
    """Become the installed service.

    Raises
    ------
    AccessDeniedError
        When not root.
    CollectorUnavailableError
        When it is not installed.
    """
    _require_root("run")
    if not (prefix / "collector" / "__main__.py").exists():
        raise CollectorUnavailableError(
            "the collector is not installed: run "
            f"`{locate.command_as_root('collector', 'install')}` first."
        )
    socket_path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    arguments = command(prefix, socket_path)
    os.execv(arguments[0], arguments)  # noqa: S606 - signals are the service's from now on


def copy(prefix: Path) -> None:
    """Copy what the service needs to a folder, as files that only this user can change."""
    source = Path(__file__).parent
    bpf = locate.bpf_folder()
    for path in sorted(source.glob("*.py")):
        if path.name not in _NOTEBOOK_SIDE:
            _copy(path, prefix / "collector" / path.name)
    for path in (*sorted(bpf.glob("*.[ch]")), *sorted(bpf.glob("include/**/*.h"))):
        _copy(path, prefix / "bpf" / path.relative_to(bpf))
    _copy(locate.library(), prefix / "bpf" / locate.LIBRARY)


def command(prefix: Path, socket_path: Path = SERVICE_SOCKET) -> list[str]:
    """Return the command that runs the service installed in a folder."""
    return [
        PYTHON,
        "-I",
        "-B",
        str(prefix / "collector" / "__main__.py"),
        f"--bpf={prefix / 'bpf'}",
        f"--library={prefix / 'bpf' / locate.LIBRARY}",
        "serve",
        f"--socket={socket_path}",
    ]


def _copy(source: Path, destination: Path) -> None:
    # Made anew rather than copied with owner and mode: these are root's, whoever's those were.
    for folder in reversed([f for f in destination.parents if not f.exists()]):
        folder.mkdir()
        folder.chmod(0o755)
    destination.write_bytes(source.read_bytes())
    destination.chmod(0o644)


def _remove(prefix: Path) -> bool:
    """Remove what `copy` makes, and nothing else that may be in the folder."""
    parts = [part for name in ("collector", "bpf") if (part := prefix / name).exists()]
    for part in parts:
        shutil.rmtree(part)
    if prefix.is_dir() and not any(prefix.iterdir()):
        prefix.rmdir()
    return bool(parts)


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _systemctl(*arguments: str) -> None:
    subprocess.run(["systemctl", *arguments], check=True)


def _require_root(verb: str) -> None:
    if os.geteuid() != 0:
        raise AccessDeniedError(
            f"only root may {verb} the collector: run "
            f"`{locate.command_as_root('collector', verb)}`."
        )
