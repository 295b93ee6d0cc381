"""The processes of a measurement: the measured one, the floor, and py-spy."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys

from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self


if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

HERE = Path(__file__).resolve().parent
SYSTEM_PYTHON = "/usr/bin/python3"
PY_SPY = Path(sys.executable).with_name("py-spy")

_FRAME = re.compile(r"(.+) \(.*\)$")
_TICKS = os.sysconf("SC_CLK_TCK")


class _Program:
    """A child that ends when its standard input does."""

    def __init__(self, *command: str | Path) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin and stdout:
            stdin.close()
            self.process.wait()
            stdout.close()

    def _ask(self, line: str) -> str:
        if self.process.stdin is None:
            raise ValueError("the program has no input")
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        return _line(self.process)


class Target(_Program):
    """A measured process: ``target.py`` under the Python of this process, or another."""

    def __init__(
        self, python: str | Path = sys.executable, program: str = "target.py", *arguments: str
    ) -> None:
        super().__init__(python, HERE / program, *arguments)

    def ask(self, request: str, **arguments: Any) -> dict[str, Any]:
        """Have one piece of work done, and return what it tells."""
        answer: dict[str, Any] = json.loads(self._ask(json.dumps({"do": request, **arguments})))
        return answer

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def collector_cpu_s(self) -> float:
        """Return the CPU time that this process's collector has used."""
        mark = f"--client={self.pid}".encode()
        return sum(
            _cpu_s(int(folder.name))
            for folder in Path("/proc").glob("[0-9]*")
            if mark in _command(folder)
        )


def _command(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has ended since the folder was listed


class Floor(_Program):
    """``floor.py``, under the Python that has BCC."""

    def __init__(self) -> None:
        super().__init__(SYSTEM_PYTHON, "-I", HERE / "floor.py")
        self._answer()

    @contextmanager
    def attached(self, pid: int, hz: int) -> Iterator[None]:
        """Have the empty program run at a rate, on the threads of a process."""
        self._ask(f"{hz} {pid}")
        try:
            yield
        finally:
            self._ask("0 0")


class PySpy:
    """One run of ``py-spy record``.

    Attributes
    ----------
    path : pathlib.Path
        Its output; removed once it is read.
    counts : collections.Counter
        Samples of each innermost function below `inside`, once it has ended.
    facts : dict
        What it says about itself at its end, and the CPU time it used.
    """

    def __init__(self, path: Path, inside: str) -> None:
        self.counts: Counter[str] = Counter()
        self.facts: dict[str, Any] = {}
        self.path = path
        self._inside = inside

    @classmethod
    @contextmanager
    def attached(cls, pid: int, hz: int, folder: Path, inside: str = "") -> Iterator[Self]:
        """Sample a process, stopping it for each sample as py-spy does unless told otherwise."""
        spy = cls(folder / "py-spy.txt", inside)
        process = subprocess.Popen(
            [
                *(PY_SPY, "record", "--rate", str(hz), "--pid", str(pid)),
                *("--format", "raw", "--output", spy.path),
                *("--duration", "3600"),  # it is told to stop, long before
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            while "Sampling process" not in _line(process):
                pass
            yield spy
        finally:
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate()
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        spy._read(printed)
        spy.facts["agent_cpu_s"] = usage.ru_utime + usage.ru_stime - used.ru_utime - used.ru_stime

    def _read(self, printed: str) -> None:
        told = re.search(r"Samples: (\d+) Errors: (\d+)", printed)
        if told is None:
            raise RuntimeError(f"py-spy has recorded nothing: {printed}")
        self.facts = {"samples": int(told[1]), "errors": int(told[2])}
        self.facts["behind"] = printed.count("behind in sampling")
        for line in self.path.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            names = [found[1] for part in stack.split(";") if (found := _FRAME.match(part))]
            if not self._inside or self._inside in names:
                self.counts[names[-1] if names else ""] += int(count)
        self.path.unlink()


def _output(process: subprocess.Popen[str]) -> IO[str]:
    if process.stdout is None:
        raise ValueError("the program's output is not read")
    return process.stdout


def _line(process: subprocess.Popen[str]) -> str:
    line = _output(process).readline()
    if not line:
        raise RuntimeError(f"{process.args!r} has ended: see what it printed above")
    return line.strip()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
