"""The interpreters to measure under, each with this project and its peers installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib

from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "bench"

# Of the project's dependencies: what recording calls, and reading the recording, needs.
_NEEDED = {"numpy", "pandas", "pyarrow", "pyelftools"}
# Of its extras: who is measured beside it, and what builds it.
_PEERS = {"viztracer", "pyperformance"}
_BUILD = ("scikit-build-core>=0.10",)


_TELL = """
import importlib.metadata, json, sys
packages = {name: importlib.metadata.version(name) for name in sys.argv[1:]}
print(json.dumps({"version": sys.version, "packages": packages}))
"""


class NoPythonError(Exception):
    """There is no such interpreter, or it can't be used; the message says why."""


def ready(version: str) -> Path:
    """Return a Python of a minor version such as ``3.12``, in an environment of its own.

    The project as it stands is installed into it anew, as from a wheel.

    Raises
    ------
    NoPythonError
        When there is none, or it lacks what installing needs.
    """
    python = _environment(version) / "bin" / "python"
    # Without isolation, so that what builds it is fetched once.
    _run(
        *(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-build-isolation", "--force-reinstall"),
        *("--config-settings", f"build-dir={FOLDER / version / 'build'}", ROOT),
    )
    return python


def facts(python: Path) -> dict[str, Any]:
    """Tell what an interpreter of `ready` is, and what is installed there."""
    result: dict[str, Any] = json.loads(_run(python, "-c", _TELL, *sorted(_NEEDED | _PEERS)))
    return result


def _environment(version: str) -> Path:
    folder, requirements = FOLDER / version / "venv", _requirements()
    stamp = folder / "requirements.txt"
    wanted = "\n".join([str(_interpreter(version)), *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    print(f"making {folder.relative_to(ROOT)}")
    _run(_interpreter(version), "-m", "venv", "--clear", folder)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)
    stamp.write_text(wanted)
    return folder


def _interpreter(version: str) -> Path:
    """Find one: pyenv's newest of that minor version, or the one on the PATH."""
    found = shutil.which("pyenv")
    if found:
        root = Path(_run(found, "root").strip())
        patches = sorted(
            root.glob(f"versions/{version}.*/bin/python{version}"),
            key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[-3])],
        )
        if patches:
            return patches[-1]
    if program := shutil.which(f"python{version}"):
        return Path(program)
    raise NoPythonError(f"no Python {version} is here: pyenv install {version}")


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [*project["dependencies"], *project["optional-dependencies"]["bench"]]
    return [
        *_BUILD,
        *(each for each in known if re.split(r"[<>=!~ ]", each)[0] in _NEEDED | _PEERS),
    ]


def _run(*command: str | Path) -> str:
    result = subprocess.run(command, text=True, capture_output=True, check=False)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or ["nothing"]
        raise NoPythonError(f"{' '.join(map(str, command[:4]))} ... said: {said[-1]}")
    return result.stdout
